"""Files that are either whole or not there."""

import contextlib
import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from mergekit_av.errors import AVError

from .locks import is_at, try_lock
from .temporary import (
    check_writable,
    errors_in_one_line,
    give_free_name,
    give_name,
    leftovers,
    temporary_name,
)

# A descriptor that is open in this process or another; /dev/stdout is a link to one.
DESCRIPTOR = re.compile(r"(?:/dev|/proc/(\d+)(?:/task/\d+)?)/fd/(\d+)")


def check_file(path: Path, overwrite: bool = True) -> None:
    """Refuse, before any work is done, an output file that may not be written.

    Raises:
        AVError: it is there and `overwrite` is off, it is a folder, or nothing can be written there.
    """
    with errors_in_one_line(path):
        if _is_no_file(path):
            if _descriptor(path) is None and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise AVError(f"{path} is a folder: name a file")
        if target.exists() and not overwrite:
            raise AVError(f"{path} exists: choose another name or pass --overwrite")
    check_writable(target)


def write_whole(path: Path, content: str | bytes, overwrite: bool = True) -> None:
    """Write a file in one step: readers see the old content or the new one, never a part.

    Text is written in UTF-8. A link stays, and what it leads to is written. What is no file (a
    device, a pipe, an open descriptor like /dev/stdout) is written to.

    Raises:
        AVError: it cannot be written; or something is there and `overwrite` is off, which keeps the
            content under another name.
    """
    content = content.encode() if isinstance(content, str) else content
    with errors_in_one_line(path):
        if _is_no_file(path):
            _write_to(path, content)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned_files(target)
        file = _temporary_file(target)
        temporary = Path(file.name)
        try:
            with file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                if overwrite:
                    temporary.replace(target)
                elif not give_name(temporary, target):
                    kept = give_free_name(temporary, target)
                    raise AVError(
                        f"{path} exists by now: what was to go there is whole, and is kept in {kept}"
                    )
        finally:
            temporary.unlink(missing_ok=True)


def _is_no_file(path: Path) -> bool:
    """Return whether something is there that is neither a file nor a folder, or only looks like
    one."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _descriptor(path: Path) -> re.Match | None:
    """Return the match of DESCRIPTOR where a path, or a link that it leads over, is one."""
    step = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        parent = os.path.realpath(os.path.dirname(step))
        step = os.path.join(parent, os.path.basename(step))
        if found := DESCRIPTOR.fullmatch(step):
            return found
        if not os.path.islink(step):
            return None
        step = os.path.join(parent, os.readlink(step))
    return None


def _write_to(path: Path, content: bytes) -> None:
    found = _descriptor(path)
    # Our own is written to where it is: opened anew, a file behind it would begin from its start.
    target: int | Path = path
    if found is not None and found[1] in (None, str(os.getpid())):
        target = os.dup(int(found[2]))
    with open(target, "wb") as stream:
        stream.write(content)


def _temporary_file(path: Path) -> BinaryIO:
    """Return a new file beside `path`, locked as long as it is open, which tells that it is not
    abandoned."""
    while True:
        file = open(temporary_name(path), "xb")  # noqa: SIM115
        try_lock(file.fileno(), wait=True)
        if is_at(file.fileno(), Path(file.name)):
            return file
        file.close()  # it was taken for abandoned before it was locked


def _remove_abandoned_files(path: Path) -> None:
    """Remove what killed processes left beside `path`: files that nobody has locked."""
    for leftover in leftovers(path):
        with contextlib.suppress(OSError):
            if not leftover.is_dir():
                with open(leftover, "r+b") as file:
                    if try_lock(file.fileno()):
                        leftover.unlink(missing_ok=True)
