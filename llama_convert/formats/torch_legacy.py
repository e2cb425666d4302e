"""PyTorch files from before version 1.6: five pickles, then the storages.

The pickles are a magic number, the protocol version, properties of the machine, the object, and the keys of
the storages.  Each storage follows as the number of its elements (int64) and its bytes.  There is no
directory, no alignment and no checksum.  Source: ``torch/serialization.py: _legacy_save``.
"""

from __future__ import annotations

import struct
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.file_kinds import DOWNLOAD_AGAIN
from llama_convert.formats.files import Reader, read_at
from llama_convert.formats.pickle_objects import Pairs, StorageRecord
from llama_convert.formats.pickle_reader import MAX_PICKLE, PickleTruncatedError, Unpickled, read_pickle
from llama_convert.formats.tensors import Storage
from llama_convert.text import quoted

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_NUMEL = struct.Struct("<q")


def read_legacy_torch(reader: Reader) -> tuple[Any, dict[str, Storage]]:
    """The object in a file, as `read_pickle` builds it, and each storage by its key; reads no weights.

    All pickles must be in the first `MAX_PICKLE` bytes.

    Raises:
        InputError: the file is truncated, has bytes after the last storage, or contradicts itself.
        PickleRefusedError: a pickle is damaged, or contains something outside the allow-list.
    """
    data = legacy_header(reader)
    magic = _read_pickle(reader, data, 0)
    version = _read_pickle(reader, data, magic.end)
    machine = _read_pickle(reader, data, version.end)
    content = _read_pickle(reader, data, machine.end)
    keys = _read_pickle(reader, data, content.end)
    _check_header(reader, magic.value, version.value, machine.value)
    records = _in_file_order(reader, keys.value, content.storages)
    return content.value, _locate(reader, records, keys.end)


def legacy_header(reader: Reader) -> bytes:
    """The first `MAX_PICKLE` bytes, which contain all pickles."""
    return read_at(reader, MAX_PICKLE, 0)


def _read_pickle(reader: Reader, data: bytes, start: int) -> Unpickled:
    try:
        return read_pickle(data, start)
    except PickleTruncatedError as error:
        if len(data) == reader.size:
            raise _truncated(reader, str(error)) from None
        message = f"The pickles have more than {MAX_PICKLE:,} bytes, the limit."
        raise InputError("INPUT_PICKLE", message, file=reader.file) from None


def _truncated(reader: Reader, message: str, **sizes: str) -> InputError:
    return InputError("INPUT_TRUNCATED", message, file=reader.file, hint=DOWNLOAD_AGAIN, **sizes)


def _check_header(reader: Reader, magic: Any, version: Any, machine: Any) -> None:
    """Refuse other versions of the format and other machines."""
    properties = machine if isinstance(machine, Pairs) else []
    little_endian = [value for key, value in properties if key == "little_endian"]
    if little_endian == [False]:
        message = "Byte order is big-endian."
        hint = "Load and save it with torch on a little-endian machine."
        raise InputError("TENSOR_UNSUPPORTED", message, file=reader.file, hint=hint)
    if (magic, version, little_endian) != (_MAGIC, _PROTOCOL, [True]):
        message = "The header of the PyTorch file is damaged."
        raise InputError("INPUT_PICKLE", message, file=reader.file, hint=DOWNLOAD_AGAIN)


def _in_file_order(reader: Reader, keys: Any, storages: dict[str, StorageRecord]) -> list[StorageRecord]:
    """The storages that the object references, in the order of the list, which has each once."""
    if (
        not isinstance(keys, list)
        or any(type(key) is not str for key in keys)
        or len(keys) != len(storages)
        or set(keys) != storages.keys()
    ):
        message = "The list of storages does not match those that the tensors use."
        raise InputError("INPUT_PICKLE", message, file=reader.file)
    return [storages[key] for key in keys]


def _locate(reader: Reader, records: list[StorageRecord], position: int) -> dict[str, Storage]:
    """Each storage by its key; the first begins at ``position``, the last ends at the end of the file."""
    end = position + sum(_NUMEL.size + record.nbytes for record in records)
    if end != reader.size:
        sizes = {"expected": f"{end:,} bytes", "found": f"{reader.size:,}"}
        if end > reader.size:
            raise _truncated(reader, "The file ends before its last storage.", **sizes)
        message = "The file has bytes after its last storage."
        raise InputError("INPUT_PICKLE", message, file=reader.file, **sizes)
    storages: dict[str, Storage] = {}
    for record in records:
        (numel,) = _NUMEL.unpack(read_at(reader, _NUMEL.size, position))
        if numel != record.numel:
            raise InputError(
                "TENSOR_INVALID",
                f"Wrong number of elements of the storage {quoted(record.key)}.",
                file=reader.file,
                expected=f"{record.numel:,}",
                found=f"{numel:,}",
            )
        storages[record.key] = Storage(reader.file, position + _NUMEL.size, record.nbytes)
        position += _NUMEL.size + record.nbytes
    return storages
