"""Atomic writes of small files."""

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

from llama_convert.conversion.disk import remove_if_possible, sync, sync_descriptor

_TEMPORARY = re.compile(r"\.llama-convert-[0-9a-f]{32}\.new")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def write_atomically(
    file: Path, content: bytes, *, may_replace: Callable[[Path], bool] = lambda _: True
) -> None:
    """Write ``content`` to ``file`` completely or not at all. It is on disk when this returns.

    The content goes to a new file with an unpredictable name in the same folder, which is then renamed.
    Readers see the old content or the new one. A link with the name ``file`` is replaced and never followed.
    The new file keeps the permissions of the one it replaces.

    Args:
        file: where to write.
        content: the whole content.
        may_replace: called with an existing file just before it is replaced.

    Raises:
        FileExistsError: ``may_replace`` returned False.
        OSError: the file cannot be written. Nothing is left behind.
    """
    descriptor, temporary = _create_temporary(file.parent)
    try:
        _write_all(descriptor, content)
        if (mode := _permissions(file)) is not None:
            os.fchmod(descriptor, mode)
        sync_descriptor(descriptor)
        _rename(temporary, file, may_replace)
        sync(file.parent)
    finally:
        os.close(descriptor)
        remove_if_possible(temporary)
        _remove_leftovers(file.parent)


def _create_temporary(folder: Path) -> tuple[int, Path]:
    """Create a file that is locked while its descriptor is open, so that other runs do not remove it."""
    while True:
        temporary = folder / f".llama-convert-{secrets.token_hex(16)}.new"
        descriptor = os.open(temporary, _CREATE, 0o666)
        with suppress(OSError):  # a file system without locks: no run removes leftovers there
            flock(descriptor, LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)  # another run removed it before it was locked


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed runs: no process holds their locks."""
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
    remaining = memoryview(content)
    while remaining:
        count = os.write(descriptor, remaining)
        if not count:
            raise OSError(errno.EIO, "the file system accepts no bytes")
        remaining = remaining[count:]


def _permissions(file: Path) -> int | None:
    """Return the permission bits of a regular file; None if it does not exist."""
    try:
        mode = file.lstat().st_mode
    except OSError:
        return None
    return mode & 0o777 if stat.S_ISREG(mode) else None


def _rename(temporary: Path, file: Path, may_replace: Callable[[Path], bool]) -> None:
    if not os.path.lexists(file) and _link(temporary, file):
        return
    if os.path.lexists(file) and not may_replace(file):
        raise FileExistsError(f"{file} exists")
    os.replace(temporary, file)


def _link(temporary: Path, file: Path) -> bool:
    """Add the name ``file`` without replacing anything; False on file systems without hard links."""
    try:
        os.link(temporary, file, follow_symlinks=False)
    except OSError:
        return False
    return True
