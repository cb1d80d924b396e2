"""Evaluations on disk: each kept when it is done, none made twice."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError

# What an evaluation's numbers mean; a change that alters them counts up.
VERSION = 1
# The store's file in the folder of a sweep or a search: either goes on from the other's.
EVALUATIONS = "evaluations.jsonl"


class Store:
    """A file of evaluations, one JSON object a line: `key` says of what, `value` what came out, and
    `seconds` how long it took.

    A line is on disk when `put` returns. What a killed process left of a line is cut off when the
    file is opened next. One process at a time; close it, or use it in a `with`.

    Raises:
        AVError: another process has the file open, a line is no evaluation, or the file cannot be
            made.
    """

    def __init__(self, file: str | os.PathLike):
        self.file = Path(file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a buffer would try to write what failed once more when it is closed.
            self._stream = self.file.open("a+b", buffering=0)
        except OSError as error:
            raise AVError(f"cannot write {self.file}: {error.strerror}") from error
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._values = self._read()
        except BlockingIOError:
            self._stream.close()
            raise AVError(
                f"{self.file} is in use by another process: wait for it, or choose another folder"
            ) from None
        except BaseException:
            self._stream.close()
            raise

    def _read(self) -> dict[str, tuple[Any, float]]:
        self._stream.seek(0)
        content = self._stream.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._stream.truncate(whole)
        values = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                # An older store does not say how long.
                values[_digest(entry["key"])] = entry["value"], float(entry.get("seconds", 0))
            except (ValueError, KeyError, TypeError) as error:
                raise AVError(
                    f"{self.file}, line {number} is no evaluation: remove the line or the file"
                ) from error
        return values

    def get(self, key: Mapping[str, Any]) -> Any | None:
        """What was put under the key, or None."""
        return self._entry(key)[0]

    def seconds(self, key: Mapping[str, Any]) -> float:
        """How long what was put under the key took; 0 where there is nothing, or it does not say."""
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
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        end = self._stream.seek(0, os.SEEK_END)
        rest = memoryview(text.encode() + b"\n")
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
            os.fsync(self._stream.fileno())
        except BaseException as error:
            # A later line must not be joined to half of this one. Interrupted, a whole one stays.
            if rest or isinstance(error, OSError):
                self._stream.truncate(end)
            if isinstance(error, OSError):
                raise AVError(f"could not write {self.file}: {error.strerror}") from error
            raise
        # As it will be read again.
        entry = json.loads(text)
        self._values[_digest(key)] = entry["value"], entry["seconds"]

    def __len__(self) -> int:
        return len(self._values)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
