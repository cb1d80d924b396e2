"""Records: a query and one response per level; their formats and their splits."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .domains import Domain
from .errors import AVError

SPLITS = ("train", "validation", "test")
# The paper's shares: 20 % for testing, and 3 % of the rest for validation while training.
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.03
# 3 % of a small set says nothing: so many records of the first ones validate in any case.
MIN_VALIDATION = 16

Message = dict[str, str]


@dataclass(frozen=True)
class Record:
    """One query with a response per level.

    Attributes:
        id: unique in its file.
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


def load_records(domain: Domain, source: str | os.PathLike | None = None) -> list[Record]:
    """All records of a domain, each in its split.

    Args:
        source: instead of the domain's own records: a .jsonl, .json or .parquet file, or a Hub
            dataset id. Rows are our records (`query`, `responses` by level), TRL's preferences
            (`prompt`, `chosen`, `rejected`; text or messages) or PKU-SafeRLHF's.

    A record's own `split` is honoured. Without one, the test share is drawn by a hash of the id
    (of the prompt, for preferences: answers to one prompt never straddle splits), and validation
    takes every third record until it has 16, then 3 % of the rest; so a record stays in its
    split when others are appended.

    Raises:
        AVError: naming file, line and field of the first row that is wrong.
    """
    source = source or domain.records
    if source is None:
        raise AVError(f"the domain {domain.name} has no records: pass --data")
    drafts = []
    seen: dict[str, str] = {}
    for where, row in _rows(source):
        draft = _Draft(row, domain, where)
        if draft.explicit_id and draft.id in seen:
            raise AVError(f"{where}: the id {draft.id!r} stands already in {seen[draft.id]}")
        while draft.id in seen:
            draft.repeat += 1
        seen[draft.id] = where
        drafts.append(draft)
    if not drafts:
        raise AVError(f"{source} holds no records")
    return list(_split(drafts, domain))


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
    """A row on its way to a record: read and checked, not yet in a split."""

    def __init__(self, row: Any, domain: Domain, where: str):
        if not isinstance(row, dict):
            raise AVError(f"{where}: a record must be an object, not {type(row).__name__}")
        self.where, self.repeat = where, 0
        levels = list(domain.levels)
        if "responses" in row:
            self.prompt, texts = _read_record(row, levels, where)
        elif "chosen" in row or "rejected" in row:
            self.prompt, texts = _read_preference(row, levels, where)
        elif "response_0" in row:
            self.prompt, texts = _read_safe_rlhf(row, levels, where)
        else:
            raise AVError(
                f"{where}: neither `responses` (our records) nor `chosen` and `rejected` (TRL's)"
            )
        self.responses = dict(zip(levels, texts, strict=True))
        for level, text in self.responses.items():
            if not isinstance(text, str) or not text.strip():
                raise AVError(f"{where}: the {level} response is empty")
        if row.get("domain") not in (None, domain.name):
            raise AVError(f"{where}: `domain` is {row['domain']!r}, not {domain.name!r}")
        self.split = row.get("split") or domain.split
        if self.split not in (None, *SPLITS):
            raise AVError(f"{where}: `split` is {self.split!r}, not one of {', '.join(SPLITS)}")
        self.explicit_id = row.get("id") is not None
        self.key = str(row["id"]) if self.explicit_id else _hash(self.prompt)[:16]

    @property
    def id(self) -> str:
        return f"{self.key}#{self.repeat + 1}" if self.repeat else self.key

    def in_split(self, split: str) -> Record:
        return Record(self.id, self.prompt, self.responses, split)


def _split(drafts: list[_Draft], domain: Domain) -> Iterator[Record]:
    validation = 0
    for position, draft in enumerate(drafts):
        split = draft.split
        if split is None:
            draw = int(_hash(draft.key)[:13], 16) / 16**13
            rest = (draw - TEST_SHARE) / (1 - TEST_SHARE)
            short = validation < MIN_VALIDATION and 3 * validation <= position
            if rest < 0:
                split = "test"
            else:
                split = "validation" if short or rest < VALIDATION_SHARE else "train"
        validation += split == "validation"
        yield draft.in_split(split)


def _hash(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(row: dict, field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise AVError(f"{where}: `{field}` is missing or empty")
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
    return ({"role": "user", "content": query},), [responses[level] for level in levels]


def _read_preference(row: dict, levels: list[str], where: str):
    if len(levels) != 2:
        raise AVError(
            f"{where}: chosen/rejected pairs need a domain of 2 levels, not {len(levels)}"
        )
    for field in ("prompt", "chosen", "rejected"):
        if not row.get(field):
            raise AVError(f"{where}: `{field}` is missing or empty")
    conversational = isinstance(row["prompt"], list)
    texts = []
    for field in ("chosen", "rejected"):
        value = row[field]
        if conversational:
            value = value[0].get("content") if isinstance(value, list) and len(value) == 1 else None
        if not isinstance(value, str):
            raise AVError(
                f"{where}: `{field}` must be "
                + ("one assistant message, as `prompt` is messages" if conversational else "text")
            )
        texts.append(value)
    if not conversational:
        return _text(row, "prompt", where), texts
    messages = []
    for message in row["prompt"]:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise AVError(f"{where}: `prompt` must be text or a list of role/content messages")
        messages.append({"role": str(message.get("role")), "content": message["content"]})
    return tuple(messages), texts


def _read_safe_rlhf(row: dict, levels: list[str], where: str):
    """PKU-SafeRLHF: two responses, of which one is the safer."""
    if len(levels) != 2:
        raise AVError(f"{where}: response pairs need a domain of 2 levels, not {len(levels)}")
    safer = row.get("safer_response_id")
    if safer not in (0, 1):
        raise AVError(f"{where}: `safer_response_id` must be 0 or 1")
    texts = [_text(row, f"response_{i}", where) for i in (safer, 1 - safer)]
    return ({"role": "user", "content": _text(row, "prompt", where)},), texts


def _rows(source: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """(place, row) of each row of a file or a Hub dataset."""
    path = Path(source)
    if path.suffix in (".jsonl", ".json", ".parquet") or path.exists():
        if not path.is_file():
            raise AVError(f"there is no record file {path}")
        yield from _file_rows(path)
    else:
        yield from _hub_rows(str(source))


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise AVError(
                f"{path} is not readable Parquet: {str(error).splitlines()[0]}"
            ) from error
        yield from ((f"{path} row {i}", row) for i, row in enumerate(rows, 1))
        return
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise AVError(f"{path} line {line}: not UTF-8; save the file in that encoding") from error
    if path.suffix == ".json":
        rows = _parse(text, str(path))
        if not isinstance(rows, list):
            raise AVError(f"{path} must hold a JSON array of records")
        yield from ((f"{path} record {i}", row) for i, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path} line {number}", _parse(line, f"{path} line {number}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AVError(f"{where}: not JSON ({error})") from error


def _hub_rows(name: str) -> Iterator[tuple[str, Any]]:
    """Rows of a Hub dataset; its own train and test splits are kept."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    repo, _, revision = name.partition("@")
    try:
        splits = load_dataset(repo, revision=revision or None)
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AVError(
            f"{name} is no record file here, and the Hub has not given it as a dataset: {reason}"
        ) from error
    for split, rows in splits.items():
        for number, row in enumerate(rows, 1):
            own = {"split": split} if split in ("test", "validation") else {}
            yield f"{name} {split} row {number}", {**own, **row}
