"""The finished data set: its records with their card."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from mergekit_av.data.records import RECORDS
from mergekit_av.io.atomic import write_whole
from mergekit_av.text.card import Kept, assemble
from mergekit_av.text.markdown import facts, fenced, table, text

from .folder import DataFolder

CARD = "README.md"
# Fields of the record format, with those that are added to it.
FIELDS = ("id", "domain", "split", "persona", "query", "responses", "provenance")
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def write_records(
    folder: DataFolder, rows: Sequence[Mapping[str, Any]], cleaning: str, language: str
) -> None:
    """Write the records of a data set, and its card; what a user wrote into the card is kept.

    Args:
        rows: see `candidates`; at least one, each with a response at every level.
        cleaning: Markdown on what was left out and why, for the card.
        language: of the texts, ISO 639-1.

    Raises:
        AVError: they cannot be written.
    """
    lines = [{key: row[key] for key in FIELDS if row.get(key) is not None} for row in rows]
    file = folder.path / CARD
    kept = Kept.at(file)
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(folder.path / RECORDS, content)
    write_whole(file, card(folder, lines, cleaning, language, kept))


def card(
    folder: DataFolder,
    rows: Sequence[Mapping[str, Any]],
    cleaning: str,
    language: str,
    kept: Kept,
) -> str:
    """Return the data set's page on the Hub."""
    domain = folder.domain
    front = DatasetCardData(
        language=language,
        pretty_name=f"{domain.name}: {', '.join(domain.levels)}",
        size_categories=[_size(len(rows))],
        task_categories=["text-generation"],
        tags=["synthetic", "preference", "alignment-vector", "mergekit-av", domain.name],
        # The prompts beside the records are no data.
        configs=[{"config_name": "default", "data_files": RECORDS}],
        **kept.license,
    )
    levels = [
        (text(level), text(definition), *_words(row["responses"][level] for row in rows))
        for level, definition in domain.levels.items()
    ]
    parts = [
        f"# {text(domain.name)}: one query, a response at each level",
        f"{len(rows):,} queries of made-up people, each answered at {len(domain.levels)} levels"
        f"{': ' + text(domain.description) if domain.description else ''}. Made by a language model "
        "with `av-synth` of mergekit-av, after the pipeline of arXiv 2410.19206.",
        table(("level, best first", "what it is", "words, mean", "words, range"), levels),
        "## Use",
        fenced(f"av-train --domain domain.yml --data {RECORDS}", "bash"),
        "`domain.yml` is the dimension, `prompts/` is what the model was asked.",
        "## Making",
        facts(
            {
                "personas": _counts(rows, "persona_source"),
                "queries by": _counts(rows, "query_model"),
                "responses by": _counts(rows, "response_model"),
                "last made": max((_provenance(row, "date") for row in rows), default=""),
            }
        ),
        "## Cleaning",
        cleaning,
        "## Limits",
        "Nobody made these experiences, and no professional has checked the answers: they are material "
        "for alignment, not advice. The terms of whoever provided the model may limit what it is used "
        "for.",
    ]
    return assemble(front, parts, kept, DatasetCard)


def _provenance(row: Mapping[str, Any], key: str) -> str:
    return str(row.get("provenance", {}).get(key) or "unknown")


def _counts(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    counts = Counter(_provenance(row, key) for row in rows)
    return ", ".join(f"{name} ({count:,})" for name, count in counts.most_common())


def _words(texts: Iterable[str]) -> tuple[str, str]:
    lengths = [len(one.split()) for one in texts]
    return f"{statistics.mean(lengths):.0f}", f"{min(lengths)}–{max(lengths)}"


def _size(count: int) -> str:
    """Return the size as the Hub names it."""
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
    return names[sum(count >= size for size in SIZES)]
