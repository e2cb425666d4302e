"""Operations on local files: safe creation, removal, fsync, and errors with a cause."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from llama_convert.errors import OutputError
from llama_convert.units import format_size

_FSYNC_UNSUPPORTED = (errno.ENOTSUP, errno.EINVAL)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_safe_to_write(status: os.stat_result, owner: int) -> bool:
    """Return whether a file is regular, belongs to ``owner`` and has no other hard link."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == owner


def open_for_writing(path: Path, flags: int) -> int:
    """Open a file in a staging folder for writing, creating it if it does not exist.

    Anything at ``path`` that is not safe to write to, for example a link to another file, is removed and
    never written to. The file must belong to the folder's owner rather than to this user: some network file
    systems report another user than the one who writes.

    Raises:
        OSError: the file cannot be opened.
    """
    while True:
        with suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        descriptor = _open_if_safe(path, flags)
        if descriptor is not None:
            return descriptor
        remove(path)


def _open_if_safe(path: Path, flags: int) -> int | None:
    """Open an existing file; None if it is not safe to write to or no longer exists."""
    owner = path.parent.stat().st_uid
    try:
        if not is_safe_to_write(path.lstat(), owner):
            return None
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if is_safe_to_write(os.fstat(descriptor), owner):
        return descriptor
    os.close(descriptor)
    return None


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet.

    Raises:
        OSError: the file exists or cannot be written.
    """
    with path.open("xb") as file:
        file.write(content)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all its content, if it exists.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_if_possible(file: Path) -> None:
    """Remove a file and ignore failures: used where another error is already being reported."""
    with suppress(OSError):
        file.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk; does nothing on file systems without fsync.

    Raises:
        OSError: the flush failed. It must not be retried: the kernel may have dropped the pages.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Flush an open file to disk; see `sync`."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _FSYNC_UNSUPPORTED:
            raise


def output_error(what: str, error: OSError, file: Path) -> OutputError:
    """Return the error to raise for a failed disk operation.

    Args:
        what: what failed, for example ``Cannot write``, without a period.
        error: the cause; a full disk also reports the free space.
        file: the file that could not be read or written.
    """
    message = f"{what} ({error.strerror or error})."
    if error.errno in _DISK_FULL:
        return OutputError("OUTPUT_SPACE", f"{message} {_free_space(file)}", file=file)
    code = "OUTPUT_PERMISSION" if error.errno in _NOT_PERMITTED else "OUTPUT_IO"
    return OutputError(code, message, file=file)


def _free_space(file: Path) -> str:
    folder = next((folder for folder in (file, *file.parents) if folder.is_dir()), Path("/"))
    try:
        return f"Free space: {format_size(shutil.disk_usage(folder).free)}."
    except OSError:
        return "Free space is unknown."
