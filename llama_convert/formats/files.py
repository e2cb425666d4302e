"""Opening and reading files: only regular ones, downloaded completely, local or remote."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_convert.errors import InputError, OutputError
from llama_convert.text import is_printable_name

MAX_TOKENIZER = 8 << 20
"""Limit for ``tokenizer.model`` in bytes; that of Llama 4, the longest, has 3.6 MB."""
MAX_TOKENIZER_JSON = 64 << 20
"""Limit for ``tokenizer.json`` in bytes; that of Llama 4, the longest, has 28 MB."""
_NAME_MAX = 255
"""Limit for a file name in bytes on common file systems."""
_INVALID_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)
_NOT_REGULAR = (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)
"""Errors for sockets and for devices without a driver."""
_BLOCK = 1 << 20
_END_SIZE = 2048
"""Bytes at either end of a range; torch needs 700 and 1,200 for an archive of one tensor."""


class Reader(Protocol):
    """An open file that several threads may read at any offset."""

    file: Path
    size: int
    """Bytes."""
    is_remote: bool
    """Whether each read is a network request."""

    def read_some(self, target: memoryview, offset: int) -> int:
        """Read into ``target`` from ``offset``; returns the number of bytes, possibly fewer than requested.

        Raises:
            OutputError: a read error.
        """

    def close(self) -> None:
        """Close the file."""


def read_into(reader: Reader, target: memoryview, offset: int) -> int:
    """Read into ``target`` from ``offset``; returns the number of bytes, fewer only at the end of the file.

    Raises:
        OutputError: a read error.
    """
    done = 0
    while done < len(target) and (count := reader.read_some(target[done:], offset + done)):
        done += count
    return done


def read_at(reader: Reader, size: int, offset: int) -> bytes:
    """``size`` bytes from ``offset``; fewer only at the end of the file.

    Raises:
        OutputError: a read error.
    """
    block = bytearray(max(0, min(size, reader.size - offset)))
    del block[read_into(reader, memoryview(block), offset) :]
    return bytes(block)


class _LocalReader:
    is_remote = False

    def __init__(self, file: Path, descriptor: int) -> None:
        self.file = file
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor

    def read_some(self, target: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._descriptor, [target], offset)
        except OSError as error:
            message = f"Cannot read at byte {offset:,} ({error.strerror})."
            raise OutputError("INPUT_IO", message, file=self.file) from error

    def close(self) -> None:
        os.close(self._descriptor)


class FileRange:
    """A range of an open file as a file: offsets count from its start.

    Its first and last bytes, which contain the headers of an archive, are read at once.
    """

    def __init__(self, reader: Reader, start: int, size: int) -> None:
        self.file = reader.file
        self.size = size
        self.is_remote = reader.is_remote
        self._reader = reader
        self._start = start
        self._ends = {
            offset: read_at(reader, min(_END_SIZE, size), start + offset)
            for offset in (0, max(0, size - _END_SIZE))
        }

    def read_some(self, target: memoryview, offset: int) -> int:
        """As `Reader.read_some`."""
        size = max(0, min(len(target), self.size - offset))
        for start, content in self._ends.items():
            if start <= offset and offset + size <= start + len(content):
                target[:size] = content[offset - start : offset - start + size]
                return size
        return self._reader.read_some(target[:size], self._start + offset)

    def close(self) -> None:
        """Do nothing: the file stays open."""


@dataclass(frozen=True)
class RemoteFile:
    """A remote file, which a placeholder of the same size represents locally."""

    open: Callable[[], Reader]
    """Opens the remote file."""
    version: Callable[[], str]
    """Requests an identifier that changes when the content changes, for example an ETag."""


remote_files: dict[Path, RemoteFile] = {}
"""Remote files by their placeholder."""


@contextmanager
def reading(file: Path) -> Iterator[Reader]:
    """Open a file for the duration of the context; raises like `open_regular`."""
    reader = open_regular(file)
    try:
        yield reader
    finally:
        reader.close()


def open_regular(path: Path) -> Reader:
    """Open a regular file for reading.

    The open descriptor is checked, so the file cannot be replaced in between, and opening a pipe does not
    block.

    Raises:
        InputError: the file is missing, not completely downloaded, not permitted, or not a regular file.
        OutputError: another error of the operating system.
    """
    if path in remote_files:
        return remote_files[path].open()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        is_link = path.is_symlink()
        message = f"Link to {os.readlink(path)}, which does not exist." if is_link else "Not found."
        raise InputError("INPUT_NOT_FOUND", message, file=path) from None
    except PermissionError:
        raise InputError("INPUT_PERMISSION", "Permission denied.", file=path) from None
    except OSError as error:
        if error.errno in _INVALID_PATH:
            raise InputError("INPUT_NOT_FOUND", f"{os.strerror(error.errno or 0)}.", file=path) from None
        if error.errno in _NOT_REGULAR:
            raise InputError("INPUT_NOT_REGULAR", "Not a regular file.", file=path) from None
        raise OutputError("INPUT_IO", f"Cannot open ({error.strerror}).", file=path) from error
    try:
        check_regular(descriptor, path)
        if os.path.lexists(f"{path}.aria2"):
            message = "Incomplete download (an .aria2 file is next to it)."
            hint = "Finish the download."
            raise InputError("INPUT_TRUNCATED", message, file=path, hint=hint)
    except InputError:
        os.close(descriptor)
        raise
    return _LocalReader(path, descriptor)


def check_regular(descriptor: int, path: Path) -> None:
    """Check that an open file is a regular one: others may have no end or block the reader.

    Raises:
        InputError: it is a pipe, socket, folder or device.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise InputError("INPUT_NOT_REGULAR", "Not a regular file.", file=path)


def allow_open_files(count: int = 4096) -> None:
    """Let this process have so many open files if the system allows it: often, only 1,024 are the default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_small(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most ``max_bytes`` bytes.

    Limits the bytes that are read, not only the size that the file system reports: a file may grow.

    Raises:
        InputError: as `open_regular`, or the file has more bytes.
        OutputError: a read error.
    """
    with reading(path) as reader:
        return _read_whole(reader, max_bytes)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are the same existing file or folder."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def read_descriptor(descriptor: int, path: Path, max_bytes: int) -> bytes:
    """As `read_small`, for an open file, for example a locked one; does not close it."""
    check_regular(descriptor, path)
    return _read_whole(_LocalReader(path, descriptor), max_bytes)


def _read_whole(reader: Reader, max_bytes: int) -> bytes:
    content = bytearray()
    while reader.size <= max_bytes and len(content) <= max_bytes:
        block = memoryview(bytearray(min(_BLOCK, max_bytes + 1 - len(content))))
        count = reader.read_some(block, len(content))
        if not count:
            return bytes(content)
        content += block[:count]
    message = f"Larger than {max_bytes:,} bytes, the limit for {reader.file.name}."
    raise InputError("INPUT_TOO_LARGE", message, file=reader.file)


def is_file_name(name: str) -> bool:
    """Whether a name may be used for a file that is copied, listed or looked up.

    It must be printable UTF-8 of at most 255 bytes and no path.  This excludes control characters, line
    breaks, invisible and right-to-left formatting, and undecodable bytes.
    """
    return (
        is_printable_name(name)
        and "/" not in name
        and name not in (".", "..")
        and len(name.encode()) <= _NAME_MAX
    )
