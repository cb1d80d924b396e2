"""Files and folders that are either whole or not there."""

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import AVError

AT_FDCWD = -100
RENAME_EXCHANGE = 2


def check_vacant(path: Path, overwrite: bool, marker: str) -> None:
    """Refuse, before any work is done, an output folder that may not be written.

    Args:
        marker: the file that tells a folder of ours; with `overwrite` only such a folder, or an
            empty one, is replaced.

    Raises:
        AVError: the folder exists and `overwrite` is off, it holds something else, or its parent
            cannot be written to.
    """
    path = Path(path)
    with _as_av_error(path):
        if path.exists() or path.is_symlink():
            if not path.is_dir() or path.is_symlink():
                raise AVError(f"{path} exists and is not a folder: choose another place")
            if not overwrite:
                raise AVError(f"{path} exists: choose another folder or pass --overwrite")
            if not (path / marker).is_file() and any(path.iterdir()):
                raise AVError(f"{path} has no {marker}: --overwrite replaces only what we wrote")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Make the parent folder of a file or folder that is to be written.

    Raises:
        AVError: that cannot be done, or nothing can be written there.
    """
    parent = Path(path).absolute().parent
    with _as_av_error(path):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass


@contextlib.contextmanager
def whole_folder(path: Path, overwrite: bool = False, marker: str = "") -> Iterator[Path]:
    """Yield a temporary sibling that becomes `path` when the block ends well.

    A block that fails, or a process that is killed, leaves `path` as it was. The files are on disk
    (fsync) before the name appears; a folder that is replaced is exchanged in one step.
    """
    path = Path(path).absolute()
    check_vacant(path, overwrite, marker)
    temporary = _temporary(path)
    with _as_av_error(path):
        _remove_abandoned(path)
        try:
            temporary.mkdir()
            yield temporary
            for file in [*temporary.rglob("*"), temporary]:
                _fsync(file)
            if path.exists():
                _exchange(temporary, path)
            else:
                temporary.rename(path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step: readers see the old content or the new one, never a part.

    Text is written in UTF-8.
    """
    path = Path(path).absolute()
    temporary = _temporary(path)
    with _as_av_error(path):
        _remove_abandoned(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.av.tmp")


def _remove_abandoned(path: Path) -> None:
    """Remove what a killed process left beside `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.av.tmp"):
        pid = leftover.name.split(".")[-3]
        # Our own number means a dead process too: a restarted container counts from 1 again.
        if pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders: in one step where the system can (Linux), else in two renames."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        args = (AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE)
        if rename(*args) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(old))
    aside = new.with_name(new.name + ".old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


@contextlib.contextmanager
def _as_av_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AVError(f"could not write {path}: {reason}. Nothing was changed there") from error
