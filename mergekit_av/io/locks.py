"""Locks on what a command writes over time, so that two processes never write to one place.

A lock vanishes with its process, however that ends. Its file lies beside what is locked, which may
itself be exchanged for another while the lock is held, and is removed at the end; where a killed
process has left it behind it locks nothing.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergekit_av.errors import AVError

LOCK = ".av.lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass
class _Held:
    """A lock of this process.

    Attributes:
        descriptor: of its file; None where there are no locks.
        made: the folders that were made for it, the innermost first.
        times: how often it is held.
    """

    descriptor: int | None
    made: list[Path]
    times: int = 0


_held: dict[Path, _Held] = {}


@contextlib.contextmanager
def locked(
    path: str | os.PathLike, otherwise: str = "choose another place", wait: bool = False
) -> Iterator[bool]:
    """Hold the lock of a file or folder, which need not be there, nor the folder that it would be in.
    A process may hold it again.

    Args:
        otherwise: what else to do where another process has it, for the message.
        wait: for that process, instead of failing.

    Yields:
        Whether it is held: a file system may have no locks (some of clusters), and there everybody
        goes on without.

    Raises:
        AVError: another process has it, or it cannot be made.
    """
    place = Path(path).resolve()
    if place not in _held:
        made: list[Path] = []
        try:
            descriptor = _acquire(place, wait, made)
        except BlockingIOError:
            raise AVError(
                f"{path} is in use by another process: wait for it, or {otherwise}"
            ) from None
        except OSError as error:
            _remove_empty(made)
            raise AVError(
                f"could not write {path}: {error.strerror}. Nothing was changed there"
            ) from error
        _held[place] = _Held(descriptor, made)
    mine = _held[place]
    mine.times += 1
    try:
        yield mine.descriptor is not None
    finally:
        mine.times -= 1
        # In a process that was forked meanwhile it is not there: the lock is its parent's.
        if not mine.times and _held.get(place) is mine:
            del _held[place]
            _release(mine, place)


def keep_folders(path: str | os.PathLike) -> None:
    """Let the folders stay that were made for a lock of this process: something has come of it."""
    if held := _held.get(Path(path).resolve()):
        held.made.clear()


def try_lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed.

    Returns:
        False where another has it; None where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _files(place: Path) -> list[Path]:
    """Return where the lock may be: beside; or, where nobody may write there, inside."""
    return [place.with_name(f".{place.name}{LOCK}"), place / LOCK]


def _acquire(place: Path, wait: bool, made: list[Path]) -> int | None:
    """Return the descriptor of the lock; None where there are no locks.

    Args:
        made: gets the folders that are made for it, the innermost first.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be made.
    """
    beside, inside = _files(place)
    while True:
        missing = [folder for folder in place.parents if not folder.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        made += [folder for folder in missing if folder not in made]
        try:
            file, descriptor = beside, _open(beside)
        except FileNotFoundError:
            continue  # another process has just removed what it had made
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS) or not place.is_dir():
                raise
            file, descriptor = inside, _open(inside)
        try:
            got = try_lock(descriptor, wait)
            if got and is_at(descriptor, file):
                return descriptor
            if got is None:
                file.unlink(missing_ok=True)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if got is None:
            return None
        if not got:
            raise BlockingIOError
        # Whoever had it has just removed the file: another is the lock now.


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def _release(held: _Held, place: Path) -> None:
    if held.descriptor is not None:
        # Removed while it is held: who opens the name later makes a new file.
        for file in _files(place):
            with contextlib.suppress(OSError):
                if is_at(held.descriptor, file):
                    file.unlink()
    _remove_empty(held.made)
    if held.descriptor is not None:
        os.close(held.descriptor)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made for a lock, where nothing has come of it."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _forget() -> None:
    """Forget all locks in a forked child: it must neither keep a lock alive nor give it back."""
    for held in _held.values():
        if held.descriptor is not None:
            os.close(held.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
