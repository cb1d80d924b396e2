"""The workflow of `av-synth clean`.

Beside what a data set was made of, which stays as it is, it writes

    records.jsonl      the clean records
    dropped.jsonl      the others: id, step, reason, row
    cleaning.md        how many were dropped by which step, and what the lengths tell
    cleaning.json      the same in numbers
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain, load_domain
from mergekit_av.data.records import RECORDS
from mergekit_av.errors import AVError, UsageError
from mergekit_av.extras import require
from mergekit_av.io.atomic import write_whole
from mergekit_av.io.locks import locked
from mergekit_av.synthesis.dataset import CARD, write_records
from mergekit_av.synthesis.folder import IN_USE, DataFolder, locked_folder

from .candidates import Candidate, made_candidates, read_candidates
from .duplicates import SIMILARITY
from .filters import Cleaned, Rules, apply_filters
from .report import as_json, as_markdown

DROPPED, REPORT, NUMBERS = "dropped.jsonl", "cleaning.md", "cleaning.json"


@dataclass(frozen=True)
class CleanConfig:
    """Say what to clean, by which rules.

    Attributes:
        path: the data folder.
        domain: a name or YAML file: clean its records into the folder, instead of what was made there.
        data: a file of records instead of that domain's own.
        language, similarity, balance: see `Rules`.
        refusals: the levels at which refusing is right; without any, those that ask for it.

    Raises:
        UsageError: `data` without a domain.
    """

    path: Path
    domain: str | Path | None = None
    data: str | None = None
    language: str = "en"
    similarity: float = SIMILARITY
    refusals: Sequence[str] = ()
    balance: bool = False

    def __post_init__(self):
        if self.data and not self.domain:
            raise UsageError("--data goes with --domain")

    def rules(self, domain: Domain) -> Rules:
        """Return the rules for the records of a domain; see `Rules.of`."""
        return Rules.of(
            domain,
            self.refusals,
            language=self.language,
            similarity=self.similarity,
            balance=self.balance,
        )


@dataclass(frozen=True)
class Cleaning:
    """Hold a data set that was cleaned; as text, a line on it."""

    folder: Path
    cleaned: Cleaned

    def __str__(self) -> str:
        return (
            f"{len(self.cleaned.kept):,} of {self.cleaned.read:,} records kept: "
            f"{self.folder / REPORT}"
        )


def clean(config: CleanConfig) -> Cleaning:
    """Write the clean ones of a folder's records, and a report of what was dropped and why.

    Raises:
        AVError: a library is missing, no record is clean, a file cannot be read or written, or
            another process is at the folder.
    """
    if config.domain:
        domain = load_domain(config.domain)
        with locked(config.path, IN_USE):
            return clean_others(config.path, domain, config.data, config.rules(domain))
    with locked_folder(config.path) as folder:
        return clean_generated(folder, config.rules(folder.domain))


def clean_generated(folder: DataFolder, rules: Rules | None = None) -> Cleaning:
    """Clean what was made in a data folder, and write its records and card.

    Args:
        rules: by default those of the domain.

    Raises:
        AVError: a library is missing, no record is clean, or a file cannot be written.
    """
    rules = rules or Rules.of(folder.domain)
    candidates = made_candidates(folder)
    if not candidates:
        raise AVError(f"{folder.path} has no queries yet: make them with av-synth queries")
    cleaned = _clean(folder, candidates, rules, (RECORDS, CARD))
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
    others = read_candidates(domain, source)
    folder = DataFolder.begin(path, domain)
    if folder.responses():
        raise AVError(f"{path} has responses of its own: choose another folder")
    read = source or domain.records
    if read and (path / RECORDS).resolve() == Path(read).resolve():
        raise AVError(f"{path / RECORDS} would be written over: choose another folder")
    cleaned = _clean(folder, others, rules, (RECORDS,))
    write_whole(folder.path / RECORDS, _lines(one.row for one in cleaned.kept))
    return Cleaning(folder.path, cleaned)


def require_libraries() -> None:
    """Raise AVError where something that cleaning needs is not installed."""
    require("synth", "lingua", "datasketch", "markdown_it", to="clean records")


def _clean(
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
    cleaned = apply_filters(candidates, folder.domain, rules)
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
