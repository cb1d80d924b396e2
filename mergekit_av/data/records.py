"""Records: a query and one response per level; their formats and their splits."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError, first_line

from .domain import DOMAIN, SPLITS, Domain

# Of the rows of a Hub dataset that has a test split but none for validation: one of the two others.
TRAINING_PART = "train or validation"
# How the splits of Hub datasets begin, in the words that `datasets` knows in file names.
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
HUB_DATASET = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")
# The paper's shares: 20 % for testing, and 3 % of the rest for validation while training.
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.03
# 3 % of a small set says nothing: so many records of the first ones validate in any case.
MIN_VALIDATION = 16

# The records in a folder that av-synth made.
RECORDS = "records.jsonl"

Message = dict[str, str]


@dataclass(frozen=True)
class Record:
    """One query with a response per level.

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
        """What was asked last."""
        return query_of(self.prompt)


def query_of(prompt: str | tuple[Message, ...]) -> str:
    """What a prompt asks last: the text, or the conversation's last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def load_records(domain: Domain, source: str | os.PathLike | None = None) -> list[Record]:
    """All records of a domain, each in its split.

    Args:
        source: instead of the domain's own records: a .jsonl, .json or .parquet file, a folder of
            av-synth, or a Hub dataset id. Rows are our records (`query`, `responses` by level), TRL's preferences
            (`prompt`, `chosen`, `rejected`; text or messages) or PKU-SafeRLHF's.

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
    """The Hub id of the dataset that `load_records` reads; None where it reads a file."""
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


def read_row(
    row: Any, domain: Domain, where: str
) -> tuple[str | tuple[Message, ...], dict[str, str]]:
    """Prompt and responses by level, best first, of a row in any of the formats.

    Args:
        where: the row stands, for the error.

    Raises:
        AVError: the row is in none of the formats, lacks something, or is of another domain.
    """
    if not isinstance(row, dict):
        raise AVError(f"{where}: a record must be an object, not {type(row).__name__}")
    levels = list(domain.levels)
    if "responses" in row:
        prompt, texts = _read_record(row, levels, where)
    elif "chosen" in row or "rejected" in row:
        prompt, texts = _read_preference(row, levels, where)
    elif "response_0" in row:
        prompt, texts = _read_safe_rlhf(row, levels, where)
    else:
        raise AVError(
            f"{where}: neither `responses` (our records) nor `chosen` and `rejected` (TRL's)"
        )
    if row.get("domain") not in (None, domain.name):
        raise AVError(f"{where}: `domain` is {row['domain']!r}, not {domain.name!r}")
    return prompt, dict(zip(levels, texts, strict=True))


class _Draft:
    """A row on its way to a record: read and checked, not yet in a split."""

    def __init__(self, row: Any, domain: Domain, where: str, part: str | None):
        self.prompt, self.responses = read_row(row, domain, where)
        self.repeat, self.section = 0, ""
        split = row.get("split")
        if split not in (None, *SPLITS):
            raise AVError(f"{where}: `split` is {split!r}, not one of {', '.join(SPLITS)}")
        self.split = split or part
        id = row.get("id")
        if isinstance(id, str):
            _text(row, "id", where)
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


def _text(row: dict, field: str, where: str, inside: str = "") -> str:
    value = row.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise AVError(f"{where}: `{inside}{field}` is missing or empty")
    if not isinstance(value, str):
        raise AVError(f"{where}: `{inside}{field}` must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud800"
        raise AVError(f"{where}: `{inside}{field}` is not valid Unicode") from error
    return value


def _read_record(row: dict, levels: list[str], where: str):
    query, responses = _text(row, "query", where), row["responses"]
    if not isinstance(responses, dict):
        raise AVError(f"{where}: `responses` must map levels to texts")
    unknown = [level for level in responses if level not in levels]
    if unknown:
        raise AVError(
            f"{where}: `responses` has the level {unknown[0]!r}; this domain's are {', '.join(levels)}"
        )
    missing = [level for level in levels if level not in responses]
    if missing:
        raise AVError(f"{where}: `responses` lacks the level {missing[0]!r}")
    texts = [_text(responses, level, where, inside="responses.") for level in levels]
    return ({"role": "user", "content": query},), texts


def _read_preference(row: dict, levels: list[str], where: str):
    if len(levels) != 2:
        raise AVError(
            f"{where}: chosen/rejected pairs need a domain of 2 levels, not {len(levels)}"
        )
    fields = ("chosen", "rejected")
    if not isinstance(row.get("prompt"), list):
        return _text(row, "prompt", where), [_text(row, field, where) for field in fields]
    prompt = _messages(row, "prompt", where)
    answers = [_messages(row, field, where) for field in fields]
    for field, answer in zip(fields, answers, strict=True):
        if [message["role"] for message in answer] != ["assistant"]:
            raise AVError(f"{where}: `{field}` must be one assistant message, as TRL's format says")
    return tuple(prompt), [answer[0]["content"] for answer in answers]


def _messages(row: dict, field: str, where: str) -> list[Message]:
    value = row.get(field)
    if not value:
        raise AVError(f"{where}: `{field}` is missing or empty")
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise AVError(f"{where}: `{field}` must be a list of role/content messages")
    return [
        {key: _text(message, key, where, inside=f"{field}.") for key in ("role", "content")}
        for message in value
    ]


def _read_safe_rlhf(row: dict, levels: list[str], where: str):
    """PKU-SafeRLHF: two responses, of which one is the safer."""
    if len(levels) != 2:
        raise AVError(f"{where}: response pairs need a domain of 2 levels, not {len(levels)}")
    if row.get("safer_response_id") not in (0, 1):
        raise AVError(f"{where}: `safer_response_id` must be 0 or 1")
    safer = int(row["safer_response_id"])
    texts = [_text(row, f"response_{i}", where) for i in (safer, 1 - safer)]
    return ({"role": "user", "content": _text(row, "prompt", where)},), texts


def _rows(source: str | os.PathLike) -> Iterator[tuple[str, Any, str | None, str]]:
    """Each row of a file or a Hub dataset.

    Returns:
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
        yield from _hub_rows(str(source))


def _of_datasets(folder: Path) -> bool:
    """Whether a folder is a copy of a Hub dataset, and not one that av-synth has begun."""
    return any(folder.iterdir()) and not (folder / DOMAIN).is_file()


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a .jsonl, .json or .parquet file, as it is, and where it is.

    Raises:
        AVError: naming file and line that cannot be read.
    """
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise AVError(f"{path} is not readable Parquet: {first_line(error)}") from error
        yield from ((f"{path} row {i}", row) for i, row in enumerate(rows, 1))
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise AVError(f"{path} line {line}: not UTF-8; save the file in that encoding") from error
    if path.suffix == ".json":
        rows = _parse(text, path)
        if not isinstance(rows, list):
            raise AVError(f"{path} must hold a JSON array of records")
        yield from ((f"{path} record {i}", row) for i, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path} line {number}", _parse(line, path, number)


def _parse(text: str, path: Path, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1}"
        raise AVError(f"{path} {at}: not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise AVError(f"{path} line {line}: not JSON ({first_line(error)})") from error


def _hub_rows(name: str) -> Iterator[tuple[str, Any, str | None, str]]:
    """Rows of a Hub dataset; its test and validation splits are kept."""
    from datasets import load_dataset

    repo, _, revision = name.partition("@")
    try:
        splits = load_dataset(repo, revision=revision or None)
    except Exception as error:  # of httpx, of pyarrow, of datasets itself
        raise AVError(
            f"{name} is no record file here, and the Hub has not given it as a dataset: "
            f"{first_line(error)}"
        ) from error
    parts = {split: _part(split) for split in splits}
    training = None
    if "test" in parts.values():
        training = "train" if "validation" in parts.values() else TRAINING_PART
    for split, rows in splits.items():
        part = parts[split] if parts[split] in ("test", "validation") else training
        for number, row in enumerate(rows, 1):
            yield f"{name} {split} row {number}", row, part, split


def _part(split: str) -> str | None:
    """Which of our splits a Hub dataset's is: `train_prefs` is for training."""
    return SPLIT_WORDS.get(re.split("[^a-z]", split.lower())[0])
