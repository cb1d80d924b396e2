"""The store of evaluations on disk: each kept when it is done, none made twice."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from mergekit_av.errors import AVError
from mergekit_av.io.journal import Journal

# What an evaluation's numbers mean; a change that alters them counts up.
VERSION = 1
# The store's file in the folder of a sweep or a search: either goes on from the other's.
EVALUATIONS = "evaluations.jsonl"


class Store:
    """A file of evaluations, one JSON object a line: `key` says of what, `value` what came out, and
    `seconds` how long it took.

    A line is on disk when `put` returns: see `Journal`. One process at a time; close it, or use it in
    a `with`.

    Raises:
        AVError: see `Journal`; a line is no evaluation.
    """

    def __init__(self, file: str | os.PathLike):
        self._journal = Journal(file)
        self.file = self._journal.file
        self._values: dict[str, tuple[Any, float]] = {}
        for number, entry in enumerate(self._journal.entries, 1):
            try:
                # An older store does not say how long.
                seconds = float(entry.get("seconds", 0))
                self._values[_digest(entry["key"])] = entry["value"], seconds
            except (KeyError, TypeError, ValueError) as error:
                self.close()
                raise AVError(
                    f"{self.file}, line {number} is no evaluation: remove the line or the file"
                ) from error

    def get(self, key: Mapping[str, Any]) -> Any:
        """Return what was put under the key, or None."""
        return self._entry(key)[0]

    def seconds(self, key: Mapping[str, Any]) -> float:
        """Return how long what was put under the key took; 0 where it does not say."""
        return self._entry(key)[1]

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return self._entry(key)[0] is not None

    def _entry(self, key: Mapping[str, Any]) -> tuple[Any, float]:
        return self._values.get(_digest({**key, "version": VERSION}), (None, 0.0))

    def put(self, key: Mapping[str, Any], value: Any, seconds: float = 0.0) -> None:
        """Keep a value (JSON) under a key.

        Raises:
            AVError: it could not be written, e.g. because the disk is full; the file holds what it
                held before.
        """
        key = {**key, "version": VERSION}
        entry = {"key": key, "value": value, "seconds": round(seconds, 3)}
        self._journal.append(entry)
        entry = self._journal.entries[-1]
        self._values[_digest(key)] = entry["value"], entry["seconds"]

    def __len__(self) -> int:
        return len(self._values)

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
