"""Human evaluation: the responses that an annotator judges, with the levels that are chosen.

After the paper: 30 queries each with the responses at all levels, 15 of them shared by every pair.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mergekit_av.data.records import Record
from mergekit_av.errors import AVError
from mergekit_av.io.journal import Journal, read_journal

# The folder of a data set's annotations: a journal an annotator, whose lines are
# {"item", "record", "intended", "chosen", "date"}; "chosen" is null where a choice was taken back.
ANNOTATIONS = "annotations"


@dataclass(frozen=True)
class AnnotationItem:
    """Hold a response to be judged.

    Attributes:
        id: tells nothing of the level; another where the text is another.
        record: the id of its record.
        intended: the level that it was made for.
    """

    id: str
    record: str
    query: str
    response: str
    intended: str


@dataclass(frozen=True)
class Choice:
    """Hold the level at which an annotator sees a response, and the one that it was made for."""

    item: str
    intended: str
    chosen: str


def items_of(record: Record) -> list[AnnotationItem]:
    """Return an item for each of a record's responses."""
    return [
        AnnotationItem(
            _digest(record.id, level, record.query, text)[:12], record.id, record.query, text, level
        )
        for level, text in record.responses.items()
    ]


def assignment(
    records: Sequence[Record], annotator: str, *, sample: int, shared: int, seed: int
) -> list[AnnotationItem]:
    """Return what an annotator judges, in random order, the responses of a query far from one another.

    Args:
        sample: queries, with all their responses.
        shared: so many of them are the same for every annotator; the others are drawn anew for
            each.
        seed: decides, with the annotator's name, what is drawn and in which order.

    Raises:
        AVError: there are not so many records.
    """
    if len(records) < sample:
        raise AVError(
            f"there are {len(records)} records to sample {sample} from: pass a smaller --sample"
        )
    common = sorted(records, key=lambda record: _digest(seed, record.id))
    rest = sorted(common[shared:], key=lambda record: _digest(seed, annotator, record.id))
    chosen = [*common[:shared], *rest[: sample - shared]]
    items = [item for record in chosen for item in items_of(record)]
    return sorted(items, key=lambda item: _digest(seed, annotator, item.id))


class Annotations:
    """Keep an annotator's choices on disk, each when it is made. To be used in a `with`.

    Attributes:
        chosen: item's id → level; the latest choice last.

    Raises:
        AVError: see `Journal`; the file is none of annotations.
    """

    def __init__(self, folder: Path, annotator: str):
        self._journal = Journal(annotations_file(folder, annotator))
        choices = _choices(self._journal.file, self._journal.entries)
        self.chosen = {choice.item: choice.chosen for choice in choices}

    def choose(self, choices: Sequence[tuple[AnnotationItem, str]]) -> None:
        """Keep the levels of some items."""
        self._append(choices)
        for item, level in choices:
            self.chosen.pop(item.id, None)
            self.chosen[item.id] = level

    def take_back(self, item: AnnotationItem) -> None:
        """Forget the level of an item."""
        self._append([(item, None)])
        del self.chosen[item.id]

    def _append(self, choices: Sequence[tuple[AnnotationItem, str | None]]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entries = [
            {
                "item": item.id,
                "record": item.record,
                "intended": item.intended,
                "chosen": level,
                "date": now,
            }
            for item, level in choices
        ]
        self._journal.append(*entries)

    def __enter__(self) -> "Annotations":
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.close()


def annotations_file(folder: Path, annotator: str) -> Path:
    """Return the file of an annotator's choices.

    Raises:
        AVError: the annotator's name is none that a file can have.
    """
    if not annotator.strip() or annotator.startswith(".") or Path(annotator).name != annotator:
        raise AVError(f"{annotator!r} is no name for an annotator: use letters and digits")
    return Path(folder) / f"{annotator}.jsonl"


def read_annotations(folder: Path) -> dict[str, list[Choice]]:
    """Return annotator → choices; those without any are left out.

    Raises:
        AVError: a file is none of annotations.
    """
    files = sorted(Path(folder).glob("*.jsonl"))
    found = {file.stem: _choices(file, read_journal(file)) for file in files}
    return {annotator: choices for annotator, choices in found.items() if choices}


def _choices(file: Path, entries: Sequence[dict[str, Any]]) -> list[Choice]:
    """Return the latest choice of each item, the latest one last."""
    latest: dict[str, Choice] = {}
    for number, entry in enumerate(entries, 1):
        try:
            choice = Choice(entry["item"], entry["intended"], entry["chosen"])
        except KeyError:
            raise AVError(f"{file}, line {number} is no annotation: remove the line") from None
        latest.pop(choice.item, None)
        if choice.chosen is not None:
            latest[choice.item] = choice
    return list(latest.values())


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
