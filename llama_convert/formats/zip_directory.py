"""The directory of a stored (uncompressed) zip archive: where each entry's bytes lie, and their CRC-32.

`torch.save` writes such archives; `torch.load` checks neither the CRCs nor, when it maps the file, the sizes
(so a damaged file loads in silence).  Here every extent is checked against the file before it is believed.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass

from llama_convert.errors import InputError
from llama_convert.formats.files import (
    HEAD_SIZE,
    LEGACY_TORCH,
    TORCH,
    ZIP,
    Reader,
    is_plain,
    kind_of,
    quoted,
    read_at,
)
from llama_convert.formats.torch_writer import Entry

_LOCAL_HEADER = struct.Struct("<4s5HIIIHH")  # PKWARE APPNOTE 4.3.7
_END_RECORD = struct.Struct("<4s4H2IH")  # 4.3.16
_ALLOWED_FLAGS = 0x0808  # names in UTF-8, sizes in a data descriptor: what torch.save sets
_MAX_DIRECTORY = 4 << 20  # of 1,137 weights, as many as 405B has, it takes 0.1 MB


@dataclass(frozen=True)
class ZipEntry:
    """The bytes of one entry: ``file[offset : offset + size]``."""

    offset: int
    size: int
    crc32: int
    """0 also where it was not computed."""


@dataclass(frozen=True)
class ZipDirectory:
    """An archive's entries by name, below its single root folder."""

    root: str
    entries: dict[str, ZipEntry]


def read_directory(reader: Reader) -> ZipDirectory:
    """The directory of an open archive; no entry's contents are read.

    Raises:
        InputError: not a zip archive, truncated, or with entries that `torch.save` never writes: compressed,
            encrypted, doubled, overlapping, out of the file, or under more than one root.
        OutputError: the machine cannot read it.
    """
    file, size = reader.file, reader.size
    _refuse_other_kinds(reader)
    try:
        _check_end(reader)
        with zipfile.ZipFile(_Stream(reader)) as archive:
            infos, directory_start = archive.infolist(), archive.start_dir
    except (
        zipfile.BadZipFile,
        NotImplementedError,  # zipfile raises it for unsupported features
        OverflowError,
        ValueError,
        struct.error,
    ) as error:
        raise InputError(
            "INPUT_TRUNCATED",
            f"not a whole torch archive ({error}; size {size:,} bytes)",
            file=file,
            hint="download it again, and compare it with checklist.chk",
        ) from None

    def refuse(code: str, message: str) -> InputError:
        return InputError(code, message, file=file)

    entries: dict[str, ZipEntry] = {}
    roots: set[str] = set()
    end = 0
    if infos and min(info.header_offset for info in infos) != 0:
        raise refuse("INPUT_ZIP", "the file does not begin with the archive's first entry")
    ordered = sorted(infos, key=lambda info: info.header_offset)
    next_starts = [*(info.header_offset for info in ordered[1:]), directory_start]
    for info, next_start in zip(ordered, next_starts, strict=False):
        root, _, name = info.orig_filename.partition("/")
        roots.add(root)
        if not is_plain(info.orig_filename):
            raise refuse("INPUT_ZIP", f"an entry is called {quoted(info.orig_filename)}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise refuse("INPUT_COMPRESSED", f"{name} is compressed; torch.save never does that")
        if info.flag_bits & ~_ALLOWED_FLAGS:
            raise refuse("INPUT_ZIP", f"{name} has unexpected zip flags {info.flag_bits:#06x} (encrypted?)")
        if name in entries:
            raise refuse("INPUT_ZIP", f"two entries are called {name}")
        offset = _torchs_offset(info, next_start) if reader.is_remote else None
        offset = offset or _data_offset(reader, info)
        if offset is None:
            raise refuse("INPUT_ZIP", f"{name}: the entry's own header disagrees with the directory")
        if info.header_offset < end:
            raise refuse("INPUT_ZIP", f"{name} overlaps the entry before it")
        end = offset + info.file_size
        if end > directory_start:
            message = f"{name} reaches past the end of the entries ({end:,} > {directory_start:,})"
            raise refuse("INPUT_ZIP", message)
        entries[name] = ZipEntry(offset, info.file_size, info.CRC)
    if len(roots) > 1:
        raise refuse("INPUT_ZIP", f"entries lie under several roots: {', '.join(sorted(roots)[:3])}")
    return ZipDirectory(next(iter(roots), ""), entries)


class _Stream(io.RawIOBase):
    """A file for zipfile, which reads the whole directory at once, however large the file says that is."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size}[whence]
        if start + offset < 0:
            raise ValueError("before the start of the file")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._reader.size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory is said to have {size:,} bytes")
        content = read_at(self._reader, size, self._position)
        self._position += len(content)
        return content


def _check_end(reader: Reader) -> None:
    """Refuse anything behind the archive: a file can then be two archives at once."""
    record = read_at(reader, _END_RECORD.size, max(0, reader.size - _END_RECORD.size))
    if not record.startswith(b"PK\5\6") or not record.endswith(b"\0\0"):
        raise zipfile.BadZipFile("it does not end with a zip directory")


def _torchs_offset(info: zipfile.ZipInfo, next_start: int) -> int | None:
    """Where the entry's bytes begin if torch wrote it, without asking for its own header; None if not.

    Its place follows from its name and size; then what is left before the next entry is a descriptor.
    """
    entry = Entry(info.orig_filename, info.header_offset, b"", info.file_size, None)
    between = next_start - entry.offset - info.file_size
    return entry.offset if between in (0, *map(len, (entry.descriptor(0), b"." * 16, b"." * 24))) else None


def _data_offset(reader: Reader, info: zipfile.ZipInfo) -> int | None:
    """Where the entry's bytes begin, which only its local header tells; None if that header is another's."""
    if not 0 <= info.header_offset < 1 << 62:
        return None
    header = read_at(reader, _LOCAL_HEADER.size, info.header_offset)
    if len(header) < _LOCAL_HEADER.size:
        return None
    signature, _version, _flags, method, _time, _date, _crc, _packed, _size, name_length, extra_length = (
        _LOCAL_HEADER.unpack(header)
    )
    start = info.header_offset + _LOCAL_HEADER.size
    name = info.orig_filename.encode("utf-8", "surrogateescape")
    if signature != b"PK\3\4" or method != zipfile.ZIP_STORED or name_length != len(name):
        return None
    if read_at(reader, name_length, start) != name:
        return None
    return int(start + name_length + extra_length)


def _refuse_other_kinds(reader: Reader) -> None:
    """Name what lies here instead of an archive, when the first bytes tell."""
    file = reader.file
    if reader.size == 0:
        raise InputError("INPUT_EMPTY", "the file is empty", file=file, hint="download it again")
    kind = kind_of(read_at(reader, HEAD_SIZE, 0))
    if kind in (TORCH, ZIP):
        return
    if kind is None:
        raise InputError("INPUT_NOT_TORCH", "not a torch checkpoint (no zip archive)", file=file)
    if kind == LEGACY_TORCH:
        raise InputError("INPUT_LEGACY", kind.name, file=file, hint=kind.hint)
    raise InputError("INPUT_NOT_TORCH", f"{kind.name}; not a torch checkpoint", file=file, hint=kind.hint)
