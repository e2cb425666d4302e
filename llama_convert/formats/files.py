"""Opening a file that somebody named, and telling what lies there in place of what was expected."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_convert.errors import InputError, OutputError

MAX_TOKENIZER = 8 << 20
"""Bytes of a ``tokenizer.model``; Llama 4's, the largest, has 3.6 MB."""
_LONGEST_NAME = 500
_NO_SUCH_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)


class Reader(Protocol):
    """A file that is open for reading at any place, by several threads."""

    file: Path
    size: int
    is_far: bool
    """Whether each read is a request that takes a while."""

    def read_some(self, target: memoryview, offset: int) -> int:
        """Fill ``target`` from ``offset`` on; how many bytes it is, fewer where the file ends, or sooner.

        Raises:
            OutputError: the machine cannot read them.
        """

    def close(self) -> None:
        """Let go of the file."""


def read_into(reader: Reader, target: memoryview, offset: int) -> int:
    """Fill ``target`` from ``offset`` on; how many bytes it is, fewer only where the file ends.

    Raises:
        OutputError: the machine cannot read them.
    """
    done = 0
    while done < len(target) and (count := reader.read_some(target[done:], offset + done)):
        done += count
    return done


def read_at(reader: Reader, size: int, offset: int) -> bytes:
    """``size`` bytes from ``offset`` on; fewer only where the file ends.

    Raises:
        OutputError: the machine cannot read them.
    """
    block = bytearray(max(0, min(size, reader.size - offset)))
    del block[read_into(reader, memoryview(block), offset) :]
    return bytes(block)


class _LocalReader:
    is_far = False

    def __init__(self, file: Path, descriptor: int) -> None:
        self.file = file
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor

    def read_some(self, target: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._descriptor, [target], offset)
        except OSError as error:
            message = f"cannot be read at byte {offset:,}: {error.strerror}"
            raise OutputError("INPUT_IO", message, file=self.file) from error

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class Elsewhere:
    """A file of which only a placeholder of its size is here."""

    open: Callable[[], Reader]
    """Opens it where it is."""
    version: Callable[[], str]
    """Asks what tells it from what may stand there another time."""


elsewhere: dict[Path, Elsewhere] = {}
"""By its placeholder."""


@contextmanager
def reading(file: Path) -> Iterator[Reader]:
    """The file, open as long as the context lasts; raises as `open_regular`."""
    reader = open_regular(file)
    try:
        yield reader
    finally:
        reader.close()


def open_regular(path: Path) -> Reader:
    """A file opened for reading, which must be a regular one, and downloaded to its end.

    Raises:
        InputError: it is missing, unfinished, forbidden, or a pipe, folder or device, which may never end.
        OutputError: the machine cannot open it.
    """
    if path in elsewhere:
        return elsewhere[path].open()
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError("INPUT_NOT_REGULAR", "not a regular file", file=path)
        if os.path.lexists(f"{path}.aria2"):
            message = "download not finished: an .aria2 file lies beside it"
            raise InputError("INPUT_TRUNCATED", message, file=path)
        return _LocalReader(path, os.open(path, os.O_RDONLY))
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


def read_small(path: Path, most: int) -> bytes:
    """All of a regular file that has ``most`` bytes at most.

    Raises:
        InputError: as `open_regular`; or it has more bytes.
        OutputError: the machine cannot read it.
    """
    with reading(path) as reader:
        if reader.size > most:
            raise InputError("INPUT_TOO_LARGE", f"{reader.size:,} bytes; that is no {path.name}", file=path)
        return read_at(reader, reader.size, 0)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file or folder; not where one of them leads nowhere."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


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
