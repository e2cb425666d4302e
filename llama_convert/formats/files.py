"""Opening a file that somebody named, and telling what lies there in place of what was expected."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_convert.errors import InputError, OutputError

MAX_TOKENIZER = 8 << 20
"""Bytes of a ``tokenizer.model``; Llama 4's, the largest, has 3.6 MB."""
MAX_TOKENIZER_JSON = 64 << 20
"""Bytes of a ``tokenizer.json``; Llama 4's, the largest, has 28 MB."""
_LONGEST_NAME = 500
_NAME_MAX = 255
"""Bytes of a file name, on all file systems in use."""
_NO_SUCH_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)
_NO_FILE = (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)
"""Sockets, and devices without a driver."""
_BLOCK = 1 << 20


class Reader(Protocol):
    """A file that is open for reading at any place, by several threads."""

    file: Path
    size: int
    is_remote: bool
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
    is_remote = False

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
class RemoteFile:
    """A file of which only a placeholder of its size is here."""

    open: Callable[[], Reader]
    """Opens it where it is."""
    version: Callable[[], str]
    """Asks what tells it from what may stand there another time."""


remote_files: dict[Path, RemoteFile] = {}
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

    The file is checked after it is opened, so nothing can take its place in between; opening does not wait
    for the other end of a pipe.

    Raises:
        InputError: it is missing, unfinished, forbidden, or a pipe, folder or device, which may never end.
        OutputError: the machine cannot open it.
    """
    if path in remote_files:
        return remote_files[path].open()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
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
        if error.errno in _NO_FILE:
            raise InputError("INPUT_NOT_REGULAR", "not a regular file", file=path) from None
        raise OutputError("INPUT_IO", f"cannot be opened: {error.strerror}", file=path) from error
    try:
        check_regular(descriptor, path)
        if os.path.lexists(f"{path}.aria2"):
            message = "download not finished: an .aria2 file lies beside it"
            raise InputError("INPUT_TRUNCATED", message, file=path)
    except InputError:
        os.close(descriptor)
        raise
    return _LocalReader(path, descriptor)


def check_regular(descriptor: int, path: Path) -> None:
    """Refuse an open file that may never end, or that reading may wait for.

    Raises:
        InputError: it is a pipe, socket, folder or device.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise InputError("INPUT_NOT_REGULAR", "not a regular file", file=path)


def read_small(path: Path, most: int) -> bytes:
    """The whole of a regular file that has ``most`` bytes at most: how every small file is read.

    What is read counts, not only the size that the file system reports: a file may grow.

    Raises:
        InputError: as `open_regular`; or it has more bytes.
        OutputError: the machine cannot read it.
    """
    with reading(path) as reader:
        return _read_whole(reader, most)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file or folder; not where one of them leads nowhere."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def read_descriptor(descriptor: int, path: Path, most: int) -> bytes:
    """As `read_small`, of a file that is open, for example because it is locked; it stays open."""
    check_regular(descriptor, path)
    return _read_whole(_LocalReader(path, descriptor), most)


def _read_whole(reader: Reader, most: int) -> bytes:
    content = bytearray()
    while reader.size <= most and len(content) <= most:
        block = memoryview(bytearray(min(_BLOCK, most + 1 - len(content))))
        count = reader.read_some(block, len(content))
        if not count:
            return bytes(content)
        content += block[:count]
    message = f"larger than {most:,} bytes, the limit for {reader.file.name}"
    raise InputError("INPUT_TOO_LARGE", message, file=reader.file)


@dataclass(frozen=True)
class Kind:
    """What a file is by its first bytes, and what to do with it where another kind is expected."""

    name: str
    hint: str


HEAD_SIZE = 512
"""Bytes that `kind_of` needs."""
_SAVE = "Save its tensors with torch.save or as safetensors."
_AGAIN = "Download it again."
_UNPACK = "Unpack it first."
TORCH = Kind("a PyTorch file", "Rename it to end in .pth or .bin, or save its tensors as safetensors.")
LEGACY_TORCH = Kind(
    "torch's format from before version 1.6", "Load it with torch.load and save it with torch.save."
)
SAFETENSORS = Kind(
    "a safetensors file", "Rename it to end in .safetensors, or save its tensors with torch.save."
)
ZIP = Kind("a zip archive", _UNPACK)
ZEROS = Kind("zeros at its beginning (download not finished?)", _AGAIN)
JSON = Kind("a JSON file", _AGAIN)
_KINDS: tuple[tuple[bytes, Kind], ...] = (
    (rb".{5}\0{3}\s*\{\s*[\"}]", SAFETENSORS),  # before those that the length of a header may look like
    (rb"(?:\xef\xbb\xbf)?\s*<", Kind("an HTML page (expired link?)", _AGAIN)),
    (rb"\s*version https://git-lfs", Kind("a git-lfs pointer, not the file itself", "Run: git lfs pull")),
    (rb"PK\x03\x04.{26}[^/]+/(?:data\.pkl|\.format_version|version|byteorder|\.data/)", TORCH),
    (rb"PK\x03\x04.{26}[^/]+\.npy", Kind("a NumPy archive (.npz)", _SAVE)),
    (rb"PK\x03\x04", ZIP),
    (rb"\x80.(?:\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", LEGACY_TORCH),
    (rb"L119547037146038801333356L\n", LEGACY_TORCH),
    (
        rb"GGUF",
        Kind("GGUF, llama.cpp's format, which is not read", "Convert the checkpoint it was made from."),
    ),
    (
        rb"lmgg|fmgg|tjgg",
        Kind("GGML, llama.cpp's old format, which is not read", "Convert the checkpoint it was made from."),
    ),
    (rb"\x93NUMPY", Kind("a NumPy array (.npy)", _SAVE)),
    (rb"\x89HDF\r\n", Kind("an HDF5 file", _SAVE)),
    (rb"\x08[\x01-\x14]\x12", Kind("an ONNX model", "Convert the checkpoint it was made from.")),
    (rb"\x80[\x02-\x05]|[\]}]q\0|\(?[dl]p\d+\n|c[a-zA-Z_][\w.]*\n\w+\n", Kind("a Python pickle", _SAVE)),
    (rb"\x1f\x8b", Kind("gzip-compressed", _UNPACK)),
    (rb"BZh[1-9]1AY&SY", Kind("bzip2-compressed", _UNPACK)),
    (rb"\xfd7zXZ\0", Kind("xz-compressed", _UNPACK)),
    (rb"\x28\xb5\x2f\xfd", Kind("zstd-compressed", _UNPACK)),
    (rb"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK)),
    (rb"Rar!\x1a\x07", Kind("a RAR archive", _UNPACK)),
    (rb".{257}ustar", Kind("a tar archive", _UNPACK)),
    (rb"\0{16}", ZEROS),
    (rb"\s*\{", JSON),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), kind) for pattern, kind in _KINDS)


def kind_of(head: bytes) -> Kind | None:
    """What the first `HEAD_SIZE` bytes of a file say it is; None if they do not tell."""
    return next((kind for pattern, kind in _PATTERNS if pattern.match(head)), None)


def other_kind(head: bytes) -> tuple[str, str] | None:
    """What often takes the place of a text file, when its first bytes tell: what it is, and what to do."""
    kind = kind_of(head)
    return None if kind in (None, JSON) else (kind.name, kind.hint)


def is_plain(name: str) -> bool:
    """Whether a name that a file gives can be shown in a line: neither control characters nor endless."""
    return name.isprintable() and 0 < len(name) <= _LONGEST_NAME


def is_file_name(name: str) -> bool:
    """Whether a name is one we write, list and look up: printable UTF-8, no path, not too long for a disk.

    The one rule for files that are copied, for `llama-convert.json` and for the index of safetensors. It
    leaves out control characters, line breaks, invisible and right-to-left formatting, and bytes that are
    not UTF-8.
    """
    return is_plain(name) and "/" not in name and name not in (".", "..") and len(name.encode()) <= _NAME_MAX


def quoted(name: str) -> str:
    """A name that a file gives, for messages: cut short, and with escapes for what is not printable."""
    return f"{name[:60]!r}{'...' * (len(name) > 60)}"
