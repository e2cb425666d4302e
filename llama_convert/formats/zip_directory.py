"""Directory of an uncompressed zip archive, as `torch.save` writes it: offset, size and CRC-32 of each entry.

`torch.load` checks neither CRC-32s nor, with ``mmap``, sizes, and loads damaged files without an error.  This
reader checks every range against the file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass

from llama_convert.errors import InputError
from llama_convert.formats.files import Reader, read_at
from llama_convert.formats.torch_writer import Entry
from llama_convert.text import is_printable_name, listed, quoted

_LOCAL_HEADER = struct.Struct("<4s5HIIIHH")  # PKWARE APPNOTE 4.3.7
_END_RECORD = struct.Struct("<4s4H2IH")  # 4.3.16
_ALLOWED_FLAGS = 0x0808  # names in UTF-8, sizes in a data descriptor: those that torch.save sets
_MAX_DIRECTORY = 4 << 20
"""Bytes; the directory of the 1,137 weights of 405B has 0.1 MB."""


@dataclass(frozen=True)
class ZipEntry:
    """Data of one entry: ``file[offset : offset + size]``."""

    offset: int
    size: int
    crc32: int
    """0 if it was not computed."""


@dataclass(frozen=True)
class ZipDirectory:
    """Entries of an archive by name, without the root folder."""

    root: str
    entries: dict[str, ZipEntry]


def read_directory(reader: Reader) -> ZipDirectory:
    """The directory of an open archive; reads no entries.

    Raises:
        InputError: not a zip archive, truncated, or with entries that `torch.save` never writes: compressed,
            encrypted, duplicate, overlapping, outside the file, or in several root folders.
        OutputError: a read error.
    """
    file, size = reader.file, reader.size
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
            f"Truncated or damaged PyTorch file of {size:,} bytes ({error}).",
            file=file,
            hint="Download it again, and compare its MD5 with checklist.chk.",
        ) from None

    def refuse(code: str, message: str) -> InputError:
        return InputError(code, message, file=file)

    entries: dict[str, ZipEntry] = {}
    roots: set[str] = set()
    end = 0
    if infos and min(info.header_offset for info in infos) != 0:
        raise refuse("INPUT_ZIP", "The file does not begin with the first entry of the archive.")
    ordered = sorted(infos, key=lambda info: info.header_offset)
    next_starts = [*(info.header_offset for info in ordered[1:]), directory_start]
    for info, next_start in zip(ordered, next_starts, strict=False):
        root, _, name = info.orig_filename.partition("/")
        roots.add(root)
        if not is_printable_name(info.orig_filename):
            raise refuse("INPUT_ZIP", f"Invalid name of an entry: {quoted(info.orig_filename)}.")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            message = f"Entry {name} is compressed, which torch.save never does."
            raise refuse("INPUT_COMPRESSED", message)
        if info.flag_bits & ~_ALLOWED_FLAGS:
            message = f"Entry {name} has unexpected zip flags {info.flag_bits:#06x} (encrypted?)."
            raise refuse("INPUT_ZIP", message)
        if name in entries:
            raise refuse("INPUT_ZIP", f"Duplicate entry {name}.")
        offset = _offset_by_torch(info, next_start) if reader.is_remote else None
        offset = offset or _data_offset(reader, info)
        if offset is None:
            raise refuse("INPUT_ZIP", f"The local header of entry {name} does not match the directory.")
        if info.header_offset < end:
            raise refuse("INPUT_ZIP", f"Entry {name} overlaps the previous entry.")
        end = offset + info.file_size
        if end > directory_start:
            raise refuse("INPUT_ZIP", f"Entry {name} overlaps the directory of the archive.")
        entries[name] = ZipEntry(offset, info.file_size, info.CRC)
    if len(roots) > 1:
        raise refuse("INPUT_ZIP", f"Entries are in several root folders: {listed(roots)}.")
    return ZipDirectory(next(iter(roots), ""), entries)


class _Stream(io.RawIOBase):
    """File object for zipfile that limits the size of the directory, which zipfile reads at once."""

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
            raise zipfile.BadZipFile(f"directory of {size:,} bytes")
        content = read_at(self._reader, size, self._position)
        self._position += len(content)
        return content


def _check_end(reader: Reader) -> None:
    """Refuse data after the archive: such a file can be two archives at once."""
    record = read_at(reader, _END_RECORD.size, max(0, reader.size - _END_RECORD.size))
    if not record.startswith(b"PK\5\6") or not record.endswith(b"\0\0"):
        raise zipfile.BadZipFile("no zip directory at its end")


def _offset_by_torch(info: zipfile.ZipInfo, next_start: int) -> int | None:
    """Offset of the data of an entry that torch wrote, computed without reading its local header.

    None if the space before the next entry does not have the size of a descriptor.
    """
    entry = Entry(info.orig_filename, info.header_offset, b"", info.file_size, None)
    between = next_start - entry.offset - info.file_size
    return entry.offset if between in (0, len(entry.descriptor(0)), 16, 24) else None


def _data_offset(reader: Reader, info: zipfile.ZipInfo) -> int | None:
    """Offset of the data of an entry, from its local header; None if the header is of another entry."""
    if not 0 <= info.header_offset < 1 << 62:
        return None
    name = info.orig_filename.encode("utf-8", "surrogateescape")
    header = read_at(reader, _LOCAL_HEADER.size + len(name), info.header_offset)
    if len(header) < _LOCAL_HEADER.size + len(name):
        return None
    signature, _version, _flags, method, _time, _date, _crc, _packed, _size, name_length, extra_length = (
        _LOCAL_HEADER.unpack_from(header)
    )
    if signature != b"PK\3\4" or method != zipfile.ZIP_STORED or name_length != len(name):
        return None
    if header[_LOCAL_HEADER.size :] != name:
        return None
    return int(info.header_offset + len(header) + extra_length)
