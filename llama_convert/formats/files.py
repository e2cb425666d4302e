"""Opening a file that somebody named."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llama_convert.errors import InputError


def open_regular(path: Path) -> int:
    """A descriptor for reading ``path``, which must be a regular file with something in it.

    Raises:
        InputError: it is missing, empty, unreadable, or a pipe, folder or device (reading those may hang).
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError("INPUT_NOT_REGULAR", "not a regular file", file=path)
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        dangling = (
            f"a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else "not found"
        )
        raise InputError("INPUT_NOT_FOUND", dangling, file=path) from None
    except PermissionError:
        raise InputError("INPUT_PERMISSION", "permission denied", file=path) from None
    except OSError as error:
        raise InputError("INPUT_IO", error.strerror or str(error), file=path) from None
    return descriptor
