"""Write a small file whole or not at all, next to files that are not ours."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from llama_convert.conversion.sync import discard, sync, sync_open

_TEMPORARY = re.compile(r"\.llama-convert-[0-9a-f]{32}\.new")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def write_atomically(
    file: Path, content: bytes, *, may_replace: Callable[[Path], bool] = lambda _: True
) -> None:
    """Write ``content`` to ``file``, on disk when this returns.

    The content goes to a new file with an unpredictable name in the same folder, which is then renamed:
    readers see the old content or the new one, and a link that has the name is replaced, never followed.
    The new file keeps the permissions of the one it replaces.

    Args:
        file: where to write.
        content: all of it.
        may_replace: decides about a file that exists, just before it is replaced.

    Raises:
        FileExistsError: ``may_replace`` says no.
        OSError: the file cannot be written. Nothing is left behind.
    """
    descriptor, new = _create_temporary(file.parent)
    try:
        _write_all(descriptor, content)
        if (mode := _permissions(file)) is not None:
            os.fchmod(descriptor, mode)
        sync_open(descriptor)
        _rename(new, file, may_replace)
        sync(file.parent)
    finally:
        os.close(descriptor)
        discard(new)
        _remove_leftovers(file.parent)


def _create_temporary(folder: Path) -> tuple[int, Path]:
    """A new file, locked as long as its descriptor is open, which keeps other runs from removing it."""
    while True:
        new = folder / f".llama-convert-{secrets.token_hex(16)}.new"
        descriptor = os.open(new, _CREATE, 0o666)
        with suppress(OSError):  # file systems without locks: then no leftover is removed either
            flock(descriptor, LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, new
        os.close(descriptor)  # another run removed it before it was locked


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of runs that were killed: no process has them locked."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        count = os.write(descriptor, rest)
        if not count:
            raise OSError(errno.EIO, "the file system accepts no bytes")
        rest = rest[count:]


def _permissions(file: Path) -> int | None:
    """Permission bits of a regular file; None if there is none."""
    try:
        mode = file.lstat().st_mode
    except OSError:
        return None
    return mode & 0o777 if stat.S_ISREG(mode) else None


def _rename(new: Path, file: Path, may_replace: Callable[[Path], bool]) -> None:
    if not os.path.lexists(file) and _link(new, file):
        return
    if os.path.lexists(file) and not may_replace(file):
        raise FileExistsError(f"{file} exists")
    os.replace(new, file)


def _link(new: Path, file: Path) -> bool:
    """Give ``new`` the name ``file`` too, which replaces nothing; False where there are no hard links."""
    try:
        os.link(new, file, follow_symlinks=False)
    except OSError:
        return False
    return True
