"""Names and steps by which files and folders come to their places."""

import contextlib
import errno
import glob
import itertools
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mergekit_av.errors import AVError

TEMPORARY = ".av.tmp"


def check_writable(path: Path) -> None:
    """Make the parent folder of a file or folder that is to be written.

    Raises:
        AVError: that cannot be done, or nothing can be written there.
    """
    parent = Path(path).absolute().parent
    with errors_in_one_line(path):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass


def temporary_name(path: Path) -> Path:
    """Return a new hidden name beside `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def leftovers(path: Path) -> Iterator[Path]:
    """Yield what stands beside `path` under temporary names."""
    return path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}")


def give_name(temporary: Path, path: Path) -> bool:
    """Give a file a name that is free; False where it is not."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.lexists(path):
            return False
        temporary.rename(path)
    return True


def give_free_name(new: Path, path: Path) -> Path:
    """Give what could not be put at `path` a name beside it, and return that."""
    stem, suffix = (path.stem, path.suffix) if new.is_file() else (path.name, "")
    for number in itertools.count(1):
        kept = path.with_name(f"{stem}.new{number if number > 1 else ''}{suffix}")
        if os.path.lexists(kept):
            continue
        if not new.is_dir():
            if give_name(new, kept):
                return kept
            continue
        try:
            new.rename(kept)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return kept
    raise AssertionError("there are always more numbers")


def fsync(path: Path) -> None:
    """Put a file or folder on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def errors_in_one_line(path: Path) -> Iterator[None]:
    """Raise AVError for what the system refuses while `path` is written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AVError(f"could not write {path}: {reason}. Nothing was changed there") from error
