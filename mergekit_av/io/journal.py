"""A file that grows by lines of JSON: each is on disk when it is added, none is ever half there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError

from .locks import try_lock


class Journal:
    """Lines of JSON objects, one process at a time; close it, or use it in a `with`.

    What a killed process left of a line is cut off when the file is opened next.

    Attributes:
        entries: all lines, in order.

    Raises:
        AVError: another process has the file open, a line is no JSON object, or the file cannot be
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
            if try_lock(self._stream.fileno()) is False:
                raise AVError(
                    f"{self.file} is in use by another process: wait for it, or choose another folder"
                )
            self._stream.seek(0)
            content = self._stream.read()
            self.entries, whole = _parse(self.file, content)
            if whole < len(content):
                self._stream.truncate(whole)
        except BaseException:
            self._stream.close()
            raise

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Add lines, which are on disk when this returns.

        Raises:
            AVError: they could not be written, e.g. because the disk is full; the file holds what it
                held before.
        """
        lines = [json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in entries]
        # A model can write half a character, which UTF-8 has no bytes for.
        encoded = [f"{line}\n".encode(errors="replace") for line in lines]
        end = self._stream.seek(0, os.SEEK_END)
        rest = memoryview(b"".join(encoded))
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
            os.fsync(self._stream.fileno())
        except BaseException as error:
            # A later line must not be joined to half of this one. Interrupted, whole ones stay.
            if rest or isinstance(error, OSError):
                self._stream.truncate(end)
            if isinstance(error, OSError):
                raise AVError(f"could not write {self.file}: {error.strerror}") from error
            raise
        # As they will be read again.
        self.entries += map(json.loads, encoded)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_journal(file: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the whole lines of a journal that somebody else may be writing; none where there is no
    file.

    Raises:
        AVError: it cannot be read, or a line is no JSON object.
    """
    try:
        content = Path(file).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AVError(f"cannot read {file}: {error.strerror}") from error
    return _parse(Path(file), content)[0]


def _parse(file: Path, content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines, and how many bytes they have."""
    whole = content.rfind(b"\n") + 1
    entries = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise AVError(f"{file}, line {number} is no JSON object: remove the line or the file")
        entries.append(entry)
    return entries, whole
