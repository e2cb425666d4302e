"""PyTorch files since version 1.6: a zip archive of a pickle and one entry for each storage."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.file_kinds import DOWNLOAD_AGAIN
from llama_convert.formats.files import Reader, read_at
from llama_convert.formats.pickle_objects import StorageRecord
from llama_convert.formats.pickle_reader import MAX_PICKLE, Unpickled, read_pickle
from llama_convert.formats.tensors import Storage
from llama_convert.formats.zip_directory import ZipDirectory, ZipEntry, read_directory

_SHORT_PICKLE = 512
"""Bytes; the pickle of one tensor has 160."""


def read_torch_zip(reader: Reader) -> tuple[Any, dict[str, Storage]]:
    """The object in an archive, as `read_pickle` builds it, and each storage by its key; reads no weights.

    Raises:
        InputError: not a complete archive of `torch.save`.
        PickleRefusedError: the pickle is damaged, or contains something outside the allow-list.
    """
    file = reader.file
    directory = read_directory(reader)
    data = _read_data_pkl(reader, directory)
    pickled = _read_short_pickle(data) if len(data) <= _SHORT_PICKLE else read_pickle(data)
    byteorder = directory.entries.get("byteorder")
    if byteorder and read_at(reader, min(byteorder.size, 6), byteorder.offset) != b"little":
        message = "Byte order is big-endian."
        hint = "Load and save it with torch on a little-endian machine."
        raise InputError("TENSOR_UNSUPPORTED", message, file=file, hint=hint)
    return pickled.value, {
        record.key: _storage(file, record, directory) for record in pickled.storages.values()
    }


def zip_header(reader: Reader) -> bytes:
    """Name, offset, size and CRC-32 of each entry, as text.

    Raises:
        InputError: not a complete archive of `torch.save`.
    """
    entries = sorted(read_directory(reader).entries.items())
    return repr([(name, entry.offset, entry.size, entry.crc32) for name, entry in entries]).encode()


@lru_cache(maxsize=256)
def _read_short_pickle(data: bytes) -> Unpickled:
    """As `read_pickle`.  The pickles of chunks of one shape and dtype are equal."""
    return read_pickle(data)


def _read_data_pkl(reader: Reader, directory: ZipDirectory) -> bytes:
    entry = directory.entries.get("data.pkl")
    if entry is None:
        message = "Not a PyTorch file but another zip archive (no data.pkl)."
        raise InputError("INPUT_NOT_TORCH", message, file=reader.file)
    if entry.size > MAX_PICKLE:
        message = f"data.pkl has {entry.size:,} bytes, more than the limit of {MAX_PICKLE:,}."
        raise InputError("INPUT_PICKLE", message, file=reader.file)
    data = read_at(reader, entry.size, entry.offset)
    _check_crc(reader.file, data, entry, directory)
    return data


def _check_crc(file: Path, data: bytes, entry: ZipEntry, directory: ZipDirectory) -> None:
    """Check the CRC-32 of data.pkl.

    torch writes no CRC-32s, only that of data.pkl, or all of them: it is missing only if all are.
    """
    found = zlib.crc32(data)
    if found != entry.crc32 and any(other.crc32 for other in directory.entries.values()):
        raise InputError(
            "INPUT_CRC",
            "data.pkl is damaged: its CRC-32 does not match.",
            file=file,
            hint=DOWNLOAD_AGAIN,
            expected=f"{entry.crc32:08x}",
            found=f"{found:08x}",
        )


def _storage(file: Path, record: StorageRecord, directory: ZipDirectory) -> Storage:
    """The entry of a storage, which must have exactly its bytes."""
    name = f"data/{record.key}"
    entry = directory.entries.get(name)
    if entry is None:
        raise InputError("INPUT_ZIP", f"The storage {name} is not in the file.", file=file)
    if entry.size != record.nbytes:
        raise InputError(
            "TENSOR_INVALID",
            f"Wrong size of the storage {name}.",
            file=file,
            expected=f"{record.nbytes:,} bytes",
            found=f"{entry.size:,}",
        )
    return Storage(file, entry.offset, entry.size, entry.crc32 or None)
