"""Readers of rows: from a file, or a dataset on the Hub.

pyarrow and datasets take a second to import, and most records are JSON: they wait for who needs them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError, first_line

# Of the rows of a Hub dataset that has a test split but none for validation: one of the two others.
TRAINING_PART = "train or validation"
# Our split → how Hub datasets call it, in the words that `datasets` knows in file names.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each row of a .jsonl, .json or .parquet file is, and the row as it is.

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
        at = error.object[: error.start].count(b"\n") + 1
        raise AVError(f"{path} line {at}: not UTF-8; save the file in that encoding") from error
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


def hub_rows(name: str) -> Iterator[tuple[str, Any, str | None, str]]:
    """Yield the rows of a Hub dataset, whose test and validation splits are kept.

    Yields:
        Where it is; the row; the split of a row that names none; the split of the dataset.

    Raises:
        AVError: the Hub does not give it.
    """
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
    """Return which of our splits a Hub dataset's is: `train_prefs` is for training."""
    word = re.split("[^a-z]", split.lower())[0]
    return next((ours for ours, words in SPLIT_WORDS.items() if word in words), None)
