"""Personas from elsewhere: a file, or a Hub dataset like PersonaHub."""

import os
from pathlib import Path

import numpy as np

from mergekit_av.data.readers import file_rows
from mergekit_av.data.records import HUB_DATASET
from mergekit_av.errors import AVError, first_line
from mergekit_av.synthesis.folder import SAMPLED, DataFolder, id_of

FIELD = "persona"
FILES = (".txt", ".jsonl", ".json", ".parquet")
# Short name → Hub dataset, configuration.
SHORT_NAMES = {"personahub": ("proj-persona/PersonaHub", "persona")}


def sample(
    folder: DataFolder, source: str | os.PathLike, count: int | None, seed: int, restart: bool
) -> int:
    """Add a random sample of a source's personas to a folder, and return how many there are now.

    A larger sample with the same seed holds the smaller one.

    Args:
        source: a file with a persona a line (.txt), or with rows that have `persona` (.jsonl, .json,
            .parquet); a Hub dataset with such rows; or `personahub`.
        count: None for all.

    Raises:
        AVError: the source cannot be read or holds fewer; the folder's sample is of another source
            or seed.
    """
    found = list(dict.fromkeys(_personas(source)))
    if not found:
        raise AVError(f"{source} holds no personas")
    if count is not None and count > len(found):
        raise AVError(f"{source} holds {len(found):,} personas: a sample cannot have {count:,}")
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    name = Path(source).name if Path(source).is_file() else str(source)
    with folder.stage(SAMPLED, {"source": name, "seed": seed}, restart) as journal:
        there = {entry["id"] for entry in journal.entries}
        drawn = [(id_of(found[i]), found[i]) for i in order]
        new = [{"id": id, "persona": text, "source": name} for id, text in drawn if id not in there]
        journal.append(*new)
        return len(journal.entries)


def _personas(source: str | os.PathLike) -> list[str]:
    path = Path(source)
    if path.suffix == ".txt" and path.is_file():
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise AVError(f"{path} is not UTF-8: save the file in that encoding") from error
        return [line.strip() for line in lines if line.strip()]
    if path.is_file():
        return [_persona(row, where) for where, row in file_rows(path)]
    repo, configuration = SHORT_NAMES.get(str(source), (str(source), None))
    if path.suffix in FILES or not HUB_DATASET.fullmatch(repo):
        known = ", ".join(SHORT_NAMES)
        raise AVError(f"there is no file {source}; a Hub dataset is owner/name, or {known}")
    return _hub_personas(repo, configuration)


def _hub_personas(source: str, configuration: str | None) -> list[str]:
    from datasets import load_dataset

    repo, _, revision = source.partition("@")
    try:
        splits = load_dataset(repo, configuration, revision=revision or None)
    except Exception as error:  # of httpx, of pyarrow, of datasets itself
        raise AVError(f"the Hub has not given the dataset {repo}: {first_line(error)}") from error
    found = []
    for split, rows in splits.items():
        if FIELD not in rows.column_names:
            raise AVError(
                f"{repo} has no column `{FIELD}`; it has {', '.join(rows.column_names)}: put its "
                "personas into a .txt file, one a line"
            )
        found += [
            _persona({FIELD: text}, f"{repo} {split} row {number}")
            for number, text in enumerate(rows[FIELD], 1)
        ]
    return found


def _persona(row: object, where: str) -> str:
    text = row.get(FIELD) if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise AVError(f"{where}: `{FIELD}` is missing or empty")
    return " ".join(text.split())
