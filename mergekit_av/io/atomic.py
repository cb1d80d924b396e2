"""Files and folders that are either whole or not there."""

import contextlib
import ctypes
import errno
import glob
import itertools
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mergekit_av.errors import AVError

from .locks import LOCK, is_at, keep_folders, locked, try_lock

AT_FDCWD = -100
RENAME_EXCHANGE = 2
TEMPORARY = ".av.tmp"
# A descriptor that is open in this process or another; /dev/stdout is a link to one.
DESCRIPTOR = re.compile(r"(?:/dev|/proc/(\d+)(?:/task/\d+)?)/fd/(\d+)")


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
    with _as_av_error(path):
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


def check_file(path: Path, overwrite: bool = True) -> None:
    """Refuse, before any work is done, an output file that may not be written.

    Raises:
        AVError: it is there and `overwrite` is off, it is a folder, or nothing can be written there.
    """
    with _as_av_error(path):
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
def whole_folder(path: Path, overwrite: bool = False, kind: Kind | None = None) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `path` when the block ends well.

    A block that fails, or a process that is killed, leaves `path` as it was. The files are on disk
    (fsync) before the name appears; a folder that is replaced is exchanged in one step. `path` is
    locked meanwhile. What somebody else puts there nevertheless stays, and the new folder gets
    another name.
    """
    path = Path(path).absolute()
    with _as_av_error(path), locked(path, "choose another folder") as held:
        check_vacant(path, overwrite, kind)
        if held:
            _remove_abandoned_folders(path)
        temporary = _temporary(path)
        try:
            temporary.mkdir()
            yield temporary
            for file in [*temporary.rglob("*"), temporary]:
                _fsync(file)
            _settle(temporary, path, overwrite, kind)
            keep_folders(path)
            _fsync(path.parent)
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
            kept = _free_name(new, path)
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
    with _as_av_error(folder), locked(folder) as held:
        if held:
            _remove_abandoned_folders(folder)
        if not folder.is_dir():
            return []
        aside = _temporary(folder)
        if not kind.foreign(folder):
            folder.rename(aside)
            if not kind.foreign(aside):
                shutil.rmtree(aside)
                _fsync(folder.parent)
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


def write_whole(path: Path, content: str | bytes, overwrite: bool = True) -> None:
    """Write a file in one step: readers see the old content or the new one, never a part.

    Text is written in UTF-8. A link stays, and what it leads to is written. What is no file (a
    device, a pipe, an open descriptor like /dev/stdout) is written to.

    Raises:
        AVError: it cannot be written; or something is there and `overwrite` is off, which keeps the
            content under another name.
    """
    content = content.encode() if isinstance(content, str) else content
    with _as_av_error(path):
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
                elif not _name(temporary, target):
                    kept = _free_name(temporary, target)
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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def _temporary_file(path: Path) -> BinaryIO:
    """Return a new file beside `path`, locked as long as it is open, which tells that it is not
    abandoned."""
    while True:
        file = open(_temporary(path), "xb")  # noqa: SIM115
        try_lock(file.fileno(), wait=True)
        if is_at(file.fileno(), Path(file.name)):
            return file
        file.close()  # it was taken for abandoned before it was locked


def _leftovers(path: Path) -> Iterator[Path]:
    return path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}")


def _remove_abandoned_folders(path: Path) -> None:
    """Remove what killed processes left beside `path`, whose lock is held: nobody writes there."""
    for leftover in _leftovers(path):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


def _remove_abandoned_files(path: Path) -> None:
    """Remove what killed processes left beside `path`: files that nobody has locked."""
    for leftover in _leftovers(path):
        with contextlib.suppress(OSError):
            if not leftover.is_dir():
                with open(leftover, "r+b") as file:
                    if try_lock(file.fileno()):
                        leftover.unlink(missing_ok=True)


def _name(temporary: Path, path: Path) -> bool:
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


def _free_name(new: Path, path: Path) -> Path:
    """Give what could not be put at `path` a name beside it, and return that."""
    stem, suffix = (path.stem, path.suffix) if new.is_file() else (path.name, "")
    for number in itertools.count(1):
        kept = path.with_name(f"{stem}.new{number if number > 1 else ''}{suffix}")
        if os.path.lexists(kept):
            continue
        if not new.is_dir():
            if _name(new, kept):
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
