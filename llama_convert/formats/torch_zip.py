"""Torch's ``.pth``: a zip archive of one pickle and one entry a storage, read without torch."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.files import Reader, is_plain, quoted, read_at, reading
from llama_convert.formats.tensors import Storage, StoredTensor
from llama_convert.formats.torch_pickle import Pairs, PickleRefusedError, TensorRecord, read_pickle
from llama_convert.formats.zip_directory import ZipDirectory, ZipEntry, read_directory

_MAX_PICKLE = 2 << 20  # 405B has 0.4 MB a file; a byte can ask for a hundred bytes of memory
_MAX_AXES = 8
_MAX_EXPANDED = 1 << 20
"""Elements of a vector that repeats those of its storage, as `Tensor.expand` makes; no model is wider."""
_MAX_REUSE = 16
"""Times that the tensors of a file may use each byte of its storages, on average (tied: twice)."""
_MAX_EXPANDED_BYTES = 256 << 20
"""Bytes of all expanded vectors of a file; the norms of 405B have 17 MB in float32."""


def read_torch_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict by name, in the file's order; no weight is read.

    Raises:
        InputError: not a whole torch archive, or one that holds anything besides a dict of dense tensors.
    """
    with reading(file) as reader:
        directory = read_directory(reader)
        state_dict = _read_state_dict(reader, directory)
    tensors: dict[str, StoredTensor] = {}
    for name, value in state_dict:
        if type(name) is not str:
            kind = type(name).__name__
            raise InputError("INPUT_PICKLE", f"a key of the state dict is a {kind}, not a name", file=file)
        if not is_plain(name):
            raise InputError("INPUT_PICKLE", f"a tensor's name is {quoted(name)}", file=file)
        if name in tensors:
            raise InputError(
                "INPUT_PICKLE", "the name stands in the state dict twice", file=file, tensor=name
            )
        if not isinstance(value, TensorRecord):
            kind = "dict" if isinstance(value, Pairs) else type(value).__name__
            hint = "If the model is in that dict, save it alone with torch.save." if kind == "dict" else None
            message = f"is a {kind}, expected a tensor"
            raise InputError("INPUT_PICKLE", message, file=file, tensor=name, hint=hint)
        tensors[name] = _locate(file, name, value, directory)
    if not tensors:
        raise InputError("INPUT_PICKLE", "the state dict is empty", file=file)
    _check_reuse(file, tensors.values())
    return tensors


def _check_reuse(file: Path, tensors: Iterable[StoredTensor]) -> None:
    """Refuse a small file that describes more bytes than anyone can read."""
    described = sum(tensor.nbytes for tensor in tensors)
    stored = sum(storage.size for storage in {tensor.storage for tensor in tensors})
    if described > _MAX_REUSE * stored + _MAX_EXPANDED_BYTES:
        message = f"its tensors describe {described:,} bytes, but share {stored:,} bytes"
        raise InputError("INPUT_VIEW", message, file=file)


def _read_state_dict(reader: Reader, directory: ZipDirectory) -> Pairs:
    file = reader.file
    entry = directory.entries.get("data.pkl")
    if entry is None:
        raise InputError("INPUT_NOT_TORCH", "a zip archive, but not torch's: it has no data.pkl", file=file)
    if entry.size > _MAX_PICKLE:
        raise InputError("INPUT_PICKLE", f"data.pkl has {entry.size:,} bytes; no Llama needs that", file=file)
    data = read_at(reader, entry.size, entry.offset)
    _check_crc(file, data, entry, directory)
    byteorder = directory.entries.get("byteorder")
    if byteorder and read_at(reader, min(byteorder.size, 6), byteorder.offset) != b"little":
        raise InputError(
            "TENSOR_LAYOUT", "saved on a big-endian machine; save it anew on a little-endian one", file=file
        )
    try:
        content: Any = read_pickle(data)
    except PickleRefusedError as error:
        raise InputError(error.code, str(error), file=file) from None
    if not isinstance(content, Pairs):
        kind = "tensor" if isinstance(content, TensorRecord) else type(content).__name__
        raise InputError("INPUT_PICKLE", f"top level is a {kind}, expected a dict of tensors", file=file)
    return content


def _check_crc(file: Path, data: bytes, entry: ZipEntry, directory: ZipDirectory) -> None:
    """Compare data.pkl's CRC-32 unless no entry has one: torch computes it with any storage's, or alone."""
    found = zlib.crc32(data)
    if found != entry.crc32 and any(other.crc32 for other in directory.entries.values()):
        message = f"data.pkl is damaged: its CRC-32 is {found:08x}, recorded is {entry.crc32:08x}"
        raise InputError("INPUT_CRC", message, file=file, hint="Download it again.")


def _locate(file: Path, name: str, record: TensorRecord, directory: ZipDirectory) -> StoredTensor:
    """Tie a tensor to its bytes, having checked that all of them lie inside its storage's entry."""
    entry = directory.entries.get(f"data/{record.storage.key}")
    if entry is None:
        raise InputError(
            "INPUT_ZIP",
            f"needs data/{record.storage.key[:60]}, which is not in the file",
            file=file,
            tensor=name,
        )
    itemsize = record.dtype.itemsize
    declared = record.storage.numel * (record.storage.dtype.itemsize if record.storage.dtype else 1)
    if entry.size != declared:
        raise InputError(
            "INPUT_VIEW",
            f"needs {declared:,} bytes of data/{record.storage.key[:60]}, which has {entry.size:,}",
            file=file,
            tensor=name,
        )
    if len(record.shape) > _MAX_AXES:
        raise InputError("INPUT_VIEW", f"has {len(record.shape)} axes", file=file, tensor=name)
    numel = math.prod(record.shape)
    expanded = len(record.shape) == 1 and numel <= _MAX_EXPANDED
    if numel * itemsize > entry.size and not expanded:
        message = f"is {list(record.shape)}, but its elements share {entry.size:,} bytes"
        raise InputError("INPUT_VIEW", message, file=file, tensor=name)
    if 0 not in record.shape:
        last = record.offset + sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True))
        if (last + 1) * itemsize > entry.size:
            raise InputError(
                "INPUT_VIEW",
                f"element {last:,} lies outside its storage of {entry.size // itemsize:,}",
                file=file,
                tensor=name,
            )
    storage = Storage(file, entry.offset, entry.size, entry.crc32 or None)
    offset = entry.offset + record.offset * itemsize
    return StoredTensor(name, record.dtype, record.shape, record.strides, offset, storage)
