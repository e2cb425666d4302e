"""Waiting until bytes are on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_NO_SYNC = (errno.ENOTSUP, errno.EINVAL)
"""What fsync says on file systems that have none."""


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk, where the file system can tell.

    Raises:
        OSError: it cannot be brought there.  Never to be tried again: the kernel may have dropped the pages.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
