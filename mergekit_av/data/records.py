"""Records: a query with one response per level, each in a split."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError

from .domain import DOMAIN, SPLITS, Domain
from .formats import Message, read_row, text_field
from .readers import TRAINING_PART, file_rows, hub_rows

HUB_DATASET = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")
# The paper's shares: 20 % for testing, and 3 % of the rest for validation while training.
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.03
# 3 % of a small set says nothing: so many records of the first ones validate in any case.
MIN_VALIDATION = 16

# The records in a folder that av-synth made.
RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Record:
    """Hold one query with a response per level.

    Attributes:
        id: unique in its file or Hub dataset; an id that the dataset repeats in a later split has
            that split's name before it, `test/17`.
        prompt: a conversation (list of role/content messages), which the chat template renders; or
            plain text, used as it is (TRL's standard format).
        responses: level → text, best level first.
        split: `train`, `validation` or `test`.
    """

    id: str
    prompt: str | tuple[Message, ...]
    responses: dict[str, str]
    split: str

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def query(self) -> str:
        """Return what was asked last."""
        return query_of(self.prompt)


def query_of(prompt: str | tuple[Message, ...]) -> str:
    """Return what a prompt asks last: the text, or the conversation's last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def load_records(domain: Domain, source: str | os.PathLike | None = None) -> list[Record]:
    """Load all records of a domain, each in its split.

    Args:
        source: instead of the domain's own records: a .jsonl, .json or .parquet file, a folder of
            av-synth, or a Hub dataset id. Rows are our records (`query`, `responses` by level), TRL's
            preferences (`prompt`, `chosen`, `rejected`; text or messages) or PKU-SafeRLHF's.

    A record's own `split` is honoured. Without one, the test share is drawn by a hash of the id
    (of the prompt, where there is none), and validation takes every third record until it has 16,
    then 3 % of the rest; so a record stays in its split when others are appended. Records with the
    same prompt follow the first of them: only their own `split` could part them.

    Raises:
        AVError: naming file, line and field of the first row that is wrong.
    """
    source = source or domain.records
    if source is None:
        raise AVError(f"the domain {domain.name} has no records: pass --data")
    drafts = []
    seen: dict[str, tuple[str, str]] = {}
    for where, row, part, section in _rows(source):
        draft = _Draft(row, domain, where, part or domain.split)
        if draft.explicit_id and draft.id in seen and seen[draft.id][1] != section:
            draft.section = section
        if draft.explicit_id and draft.id in seen:
            raise AVError(f"{where}: the id {draft.id!r} stands already in {seen[draft.id][0]}")
        while draft.id in seen:
            draft.repeat += 1
        seen[draft.id] = (where, section)
        drafts.append(draft)
    if not drafts:
        raise AVError(f"{source} holds no records")
    return list(_split(drafts))


def dataset_of(domain: Domain, source: str | os.PathLike | None = None) -> str | None:
    """Return the Hub id of the dataset that `load_records` reads; None where it reads a file."""
    name = str(source or domain.records or "")
    is_id = HUB_DATASET.fullmatch(name) and not Path(name).exists()
    return name.partition("@")[0] if is_id else None


def require_splits(records: Iterable[Record], *splits: str, source: str) -> None:
    """Raise AVError where one of the splits has no record."""
    records = list(records)
    for split in splits:
        if not any(record.split == split for record in records):
            raise AVError(
                f"{source}: none of the {len(records)} records is in the {split} split; bring more "
                "records or give each its `split`"
            )


class _Draft:
    """Read and check a row that is not yet in a split."""

    def __init__(self, row: Any, domain: Domain, where: str, part: str | None):
        self.prompt, self.responses = read_row(row, domain, where)
        self.repeat, self.section = 0, ""
        split = row.get("split")
        if split not in (None, *SPLITS):
            raise AVError(f"{where}: `split` is {split!r}, not one of {', '.join(SPLITS)}")
        self.split = split or part
        id = row.get("id")
        if isinstance(id, str):
            text_field(row, "id", where)
        elif not isinstance(id, int | None) or isinstance(id, bool):
            raise AVError(f"{where}: `id` must be text or a whole number, not {id!r}")
        self.explicit_id = id is not None
        self.prompt_hash = _hash(self.prompt)
        self.key = str(id) if self.explicit_id else self.prompt_hash[:16]

    @property
    def id(self) -> str:
        name = f"{self.section}/{self.key}" if self.section else self.key
        return f"{name}#{self.repeat + 1}" if self.repeat else name

    def in_split(self, split: str) -> Record:
        return Record(self.id, self.prompt, self.responses, split)


def _split(drafts: list[_Draft]) -> Iterator[Record]:
    validation = 0
    placed = {draft.prompt_hash: draft.split for draft in drafts if draft.split in SPLITS}
    for position, draft in enumerate(drafts):
        split = draft.split if draft.split in SPLITS else placed.get(draft.prompt_hash)
        if split is None:
            draw = int(_hash(draft.key)[:13], 16) / 16**13
            rest = draw if draft.split == TRAINING_PART else (draw - TEST_SHARE) / (1 - TEST_SHARE)
            short = validation < MIN_VALIDATION and 3 * validation <= position
            if rest < 0:
                split = "test"
            else:
                split = "validation" if short or rest < VALIDATION_SHARE else "train"
            placed[draft.prompt_hash] = split
        validation += split == "validation"
        yield draft.in_split(split)


def _hash(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(source: str | os.PathLike) -> Iterator[tuple[str, Any, str | None, str]]:
    """Yield each row of a file or a Hub dataset.

    Yields:
        Where it is; the row; the split of a row that names none; the section of the source in
        which ids are unique: a split of a Hub dataset.
    """
    path = Path(source)
    if path.is_dir() and (path / RECORDS).is_file():
        path = path / RECORDS
    elif path.is_dir() and not (HUB_DATASET.fullmatch(str(source)) and _of_datasets(path)):
        raise AVError(f"{source} has no {RECORDS}: make it with av-synth clean {source}")
    if path.is_file():
        yield from ((where, row, None, "") for where, row in file_rows(path))
    elif path.suffix in (".jsonl", ".json", ".parquet") or not HUB_DATASET.fullmatch(str(source)):
        raise AVError(f"there is no record file {path}; a Hub dataset id is owner/name")
    else:
        yield from hub_rows(str(source))


def _of_datasets(folder: Path) -> bool:
    """Tell whether a folder is a copy of a Hub dataset, and not one that av-synth has begun."""
    return any(folder.iterdir()) and not (folder / DOMAIN).is_file()
