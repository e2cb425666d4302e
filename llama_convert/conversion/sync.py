"""What the disk does and says: waiting until bytes are on it, and what to tell of a failure."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from llama_convert.errors import OutputError
from llama_convert.units import format_size

_NO_SYNC = (errno.ENOTSUP, errno.EINVAL)
"""What fsync says on file systems that have none."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk, where the file system can tell.

    Raises:
        OSError: it cannot be brought there.  Never to be tried again: the kernel may have dropped the pages.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int) -> None:
    """As `sync`, of a file that is open."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def discard(file: Path) -> None:
    """Remove a file that could not be written, as far as possible: that is told of, not this."""
    with suppress(OSError):
        file.unlink(missing_ok=True)


def failure(what: str, error: OSError, file: Path) -> OutputError:
    """What to tell a person of a file that the machine could not write; of a full disk, with its numbers."""
    message = f"{what}: {error.strerror or error}"
    if error.errno in _FULL:
        return OutputError("OUTPUT_SPACE", f"{message}; {_free_space(file)}", file=file)
    return OutputError("OUTPUT_PERMISSION" if error.errno in _FORBIDDEN else "OUTPUT_IO", message, file=file)


def _free_space(file: Path) -> str:
    folder = next((folder for folder in (file, *file.parents) if folder.is_dir()), Path("/"))
    try:
        return f"{format_size(shutil.disk_usage(folder).free)} are free"
    except OSError:
        return "how much is free cannot be told"
