"""Cleaning a data set: clean records, those that were dropped, and a report, beside what it was made
of, which stays as it is.

    records.jsonl      the clean records
    dropped.jsonl      the others: id, step, reason, row
    cleaning.md        how many were dropped by which step, and what the lengths tell
    cleaning.json      the same in numbers
"""

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import RECORDS
from mergekit_av.errors import AVError
from mergekit_av.io.atomic import write_whole
from mergekit_av.synthesis.assembly import candidates
from mergekit_av.synthesis.dataset import CARD, write_records
from mergekit_av.synthesis.folder import DataFolder

from .candidates import Candidate, found, made
from .filters import Cleaned, Rules, sift
from .report import as_json, as_markdown

DROPPED, REPORT, NUMBERS = "dropped.jsonl", "cleaning.md", "cleaning.json"
LIBRARIES = ("lingua", "datasketch", "markdown_it")


@dataclass(frozen=True)
class Cleaning:
    """A data set that was cleaned; as text, a line on it."""

    folder: Path
    cleaned: Cleaned

    def __str__(self) -> str:
        return (
            f"{len(self.cleaned.kept):,} of {self.cleaned.read:,} records kept: "
            f"{self.folder / REPORT}"
        )


def clean_made(folder: DataFolder, rules: Rules | None = None) -> Cleaning:
    """Clean what was made in a data folder, and write its records and card.

    Args:
        rules: by default those of the domain.

    Raises:
        AVError: a library is missing, no record is clean, or a file cannot be written.
    """
    rules = rules or Rules.of(folder.domain)
    rows = candidates(folder)
    if not rows:
        raise AVError(f"{folder.path} has no queries yet: make them with av-synth queries")
    cleaned = _sift(folder, made(rows), rules, (RECORDS, CARD))
    kept = [one.row for one in cleaned.kept]
    write_records(folder, kept, as_markdown(cleaned, rules), rules.language)
    return Cleaning(folder.path, cleaned)


def clean_others(path: Path, domain: Domain, source: str | None, rules: Rules) -> Cleaning:
    """Clean records that come from elsewhere, and write them as they are to a data folder, which has
    none of its own.

    Args:
        source: a file; without one, the domain's own records.

    Raises:
        AVError: the same; the records cannot be read, or the folder is of something else.
    """
    others = found(domain, source)
    folder = DataFolder.begin(path, domain)
    if folder.responses():
        raise AVError(f"{path} has responses of its own: choose another folder")
    if (path / RECORDS).resolve() == Path(source or domain.records).resolve():
        raise AVError(f"{path / RECORDS} would be written over: choose another folder")
    cleaned = _sift(folder, others, rules, (RECORDS,))
    write_whole(folder.path / RECORDS, _lines(one.row for one in cleaned.kept))
    return Cleaning(folder.path, cleaned)


def require_libraries() -> None:
    """Raise AVError where something that cleaning needs is not installed."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise AVError(f"cleaning needs {missing[0]}: pip install 'mergekit-av[synth]'")


def _sift(
    folder: DataFolder, candidates: Sequence[Candidate], rules: Rules, writes: Sequence[str]
) -> Cleaned:
    require_libraries()
    # The numbers are written before these: what is there without them is somebody's own.
    for name in writes:
        if (folder.path / name).exists() and not (folder.path / NUMBERS).exists():
            raise AVError(
                f"{folder.path / name} was not written by av-synth: move it away, or choose another "
                "folder"
            )
    cleaned = sift(candidates, folder.domain, rules)
    dropped = _lines(
        {"id": one.candidate.id, "step": one.step, "reason": one.reason, "row": one.candidate.row}
        for one in cleaned.dropped
    )
    numbers = {"domain": folder.domain.name, **as_json(cleaned, rules)}
    head = f"# Cleaning of {folder.domain.name}\n\n"
    write_whole(folder.path / DROPPED, dropped)
    write_whole(folder.path / REPORT, head + as_markdown(cleaned, rules) + "\n")
    write_whole(folder.path / NUMBERS, json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    return cleaned


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    # Parquet holds more kinds of values than JSON.
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
