"""Folders that are either whole or not there, and whose they are."""

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mergekit_av.errors import AVError

from .locks import LOCK, keep_folders, locked
from .temporary import (
    TEMPORARY,
    check_writable,
    errors_in_one_line,
    fsync,
    give_free_name,
    leftovers,
    temporary_name,
)

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Kind:
    """A kind of folder that we write.

    Attributes:
        name: for messages, e.g. `an alignment vector`.
        known: whether a folder is one of it.
        foreign: what is in such a folder, at any depth, that we did not put there.
    """

    name: str
    known: Callable[[Path], bool]
    foreign: Callable[[Path], list[Path]]


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder, without what killed processes left of us, by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if not (path.name.startswith(".") and path.name.endswith((TEMPORARY, LOCK)))
    )


def check_vacant(path: Path, overwrite: bool = False, kind: Kind | None = None) -> None:
    """Refuse, before any work is done, an output folder that may not be written.

    Args:
        kind: with `overwrite` a folder of this kind with nothing else in it, or an empty one, is
            replaced.

    Raises:
        AVError: the folder exists and `overwrite` is off, it holds something else, or its parent
            cannot be written to.
    """
    path = Path(path)
    with errors_in_one_line(path):
        if path.exists() or path.is_symlink():
            if not path.is_dir() or path.is_symlink():
                raise AVError(f"{path} exists and is not a folder: choose another place")
            if not overwrite:
                raise AVError(f"{path} exists: choose another folder or pass --overwrite")
            _check_ours(path, path, kind)
    check_writable(path)


def _check_ours(folder: Path, name: Path, kind: Kind | None) -> None:
    """Raise AVError unless a folder, in a message called `name`, may be replaced."""
    if not folder.is_dir() or folder.is_symlink():
        raise AVError(f"{name} is not a folder: choose another place")
    if not entries(folder):
        return
    if kind is None or not kind.known(folder):
        what = kind.name if kind else "empty"
        raise AVError(f"{name} is not {what}: --overwrite replaces only what we wrote")
    if foreign := kind.foreign(folder):
        raise AVError(
            f"{name} holds {foreign[0].relative_to(folder)}, which is not of {kind.name}, and "
            "--overwrite replaces only what we wrote: move it away, or choose another folder"
        )


@contextlib.contextmanager
def whole_folder(path: Path, overwrite: bool = False, kind: Kind | None = None) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `path` when the block ends well.

    A block that fails, or a process that is killed, leaves `path` as it was. The files are on disk
    (fsync) before the name appears; a folder that is replaced is exchanged in one step. `path` is
    locked meanwhile. What somebody else puts there nevertheless stays, and the new folder gets
    another name.
    """
    path = Path(path).absolute()
    with errors_in_one_line(path), locked(path, "choose another folder") as held:
        check_vacant(path, overwrite, kind)
        if held:
            _remove_abandoned_folders(path)
        temporary = temporary_name(path)
        try:
            temporary.mkdir()
            yield temporary
            for file in [*temporary.rglob("*"), temporary]:
                fsync(file)
            _settle(temporary, path, overwrite, kind)
            keep_folders(path)
            fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _settle(new: Path, path: Path, overwrite: bool, kind: Kind | None) -> None:
    """Give a finished folder its name. What it replaced, if anything, is then called `new`.

    Raises:
        AVError: something came to `path` that may not be replaced; both are kept.
    """
    while True:
        try:
            if not os.path.lexists(path):
                new.rename(path)  # fails on all but an empty folder, should one come this instant
                return
            check_vacant(path, overwrite, kind)
            _exchange(new, path)
            try:
                _check_ours(new, path, kind)  # it may have been exchanged since it was looked at
            except AVError:
                _exchange(new, path)
                raise
            return
        except AVError as error:
            kept = give_free_name(new, path)
            raise AVError(
                f"{error}. What was to go there is whole, and is kept in {kept}"
            ) from None
        except OSError as error:
            # It came, or went, this instant: look again.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT):
                raise
            if not new.exists():
                raise


def remove_whole(folder: Path, kind: Kind) -> list[Path]:
    """Remove what we wrote of a folder of a kind, in one step if that is all that it holds.

    Returns:
        What is in it beside that, which stays, with whatever it lies in.
    """
    folder = Path(folder).absolute()
    with errors_in_one_line(folder), locked(folder) as held:
        if held:
            _remove_abandoned_folders(folder)
        if not folder.is_dir():
            return []
        aside = temporary_name(folder)
        if not kind.foreign(folder):
            folder.rename(aside)
            if not kind.foreign(aside):
                shutil.rmtree(aside)
                fsync(folder.parent)
                return []
            aside.rename(folder)
        foreign = kind.foreign(folder)
        aside.mkdir()
        for path in entries(folder):
            if not any(other.is_relative_to(path) for other in foreign):
                path.rename(aside / path.name)
        shutil.rmtree(aside)
        return foreign


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _remove_abandoned_folders(path: Path) -> None:
    """Remove what killed processes left beside `path`, whose lock is held: nobody writes there."""
    for leftover in leftovers(path):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


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
