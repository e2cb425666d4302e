"""Opening a file that somebody named, and telling what lies there in place of what was expected."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from llama_convert.errors import InputError, OutputError

MAX_TOKENIZER = 8 << 20
"""Bytes of a ``tokenizer.model``; Llama 4's, the largest, has 3.6 MB."""
_LONGEST_NAME = 500
_NO_SUCH_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)


def open_regular(path: Path) -> int:
    """A descriptor for reading ``path``, which must be a regular file, and downloaded to its end.

    Raises:
        InputError: it is missing, unfinished, forbidden, or a pipe, folder or device, which may never end.
        OutputError: the machine cannot open it.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError("INPUT_NOT_REGULAR", "not a regular file", file=path)
        if os.path.lexists(f"{path}.aria2"):
            message = "download not finished: an .aria2 file lies beside it"
            raise InputError("INPUT_TRUNCATED", message, file=path)
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        dangling = (
            f"a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else "not found"
        )
        raise InputError("INPUT_NOT_FOUND", dangling, file=path) from None
    except PermissionError:
        raise InputError("INPUT_PERMISSION", "permission denied", file=path) from None
    except OSError as error:
        if error.errno in _NO_SUCH_PATH:
            raise InputError("INPUT_NOT_FOUND", os.strerror(error.errno or 0), file=path) from None
        raise OutputError("INPUT_IO", f"cannot be opened: {error.strerror}", file=path) from error
    return descriptor


def read_at(path: Path, descriptor: int, size: int, offset: int) -> bytes:
    """``size`` bytes from ``offset`` on of the file open as ``descriptor``; fewer where it ends.

    Raises:
        OutputError: the machine cannot read them.
    """
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        message = f"cannot be read at byte {offset:,}: {error.strerror}"
        raise OutputError("INPUT_IO", message, file=path) from error


def read_small(path: Path, most: int) -> bytes:
    """All of a regular file that has ``most`` bytes at most.

    Raises:
        InputError: as `open_regular`; or it has more bytes.
        OutputError: the machine cannot read it.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > most:
            raise InputError("INPUT_TOO_LARGE", f"{size:,} bytes; that is no {path.name}", file=path)
        return read_at(path, descriptor, size, 0)
    finally:
        os.close(descriptor)


_OTHER_KINDS = (
    (b"<", "an HTML page (expired link?)", "download it again"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run: git lfs pull"),
    (b"\x1f\x8b", "gzip-compressed", "unpack it first"),
)


def other_kind(head: bytes) -> tuple[str, str] | None:
    """What often lies in place of a file, when its first bytes tell: what it is, and what to do."""
    for magic, kind, hint in _OTHER_KINDS:
        if head.lstrip(b" \r\n\t").startswith(magic):
            return kind, hint
    return None


def is_plain(name: str) -> bool:
    """Whether a name that a file gives can be shown in a line: neither control characters nor endless."""
    return name.isprintable() and 0 < len(name) <= _LONGEST_NAME


def quoted(name: str) -> str:
    """A name that a file gives, for messages: cut short, and with escapes for what is not printable."""
    return f"{name[:60]!r}{'...' * (len(name) > 60)}"
