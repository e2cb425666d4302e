"""Reader of PyTorch ``.pth`` files without torch: zip archives of a pickle and one entry per storage."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.file_kinds import DOWNLOAD_AGAIN
from llama_convert.formats.files import Reader, read_at, reading
from llama_convert.formats.pickle_reader import Pairs, PickleRefusedError, TensorRecord, read_pickle
from llama_convert.formats.tensors import Storage, StoredTensor
from llama_convert.formats.zip_directory import ZipDirectory, ZipEntry, read_directory
from llama_convert.text import is_printable_name, quoted

_MAX_PICKLE = 2 << 20
"""Bytes; 405B has 0.4 MB in each file.  A byte of a pickle can need 100 bytes of memory."""
_SHORT_PICKLE = 512
"""Bytes; the pickle of one tensor has 160."""
_MAX_DIMS = 8
_MAX_EXPANDED = 1 << 20
"""Elements of a vector made by `Tensor.expand`, which repeats elements of its storage; no model is wider."""
_MAX_REUSE = 16
"""Average number of tensors that use a byte of the storages (two if the LM head is tied)."""
_MAX_EXPANDED_BYTES = 256 << 20
"""Bytes of all expanded vectors of a file; the norms of 405B have 17 MB in float32."""


def read_torch_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict by name, in the order of the file; reads no weights.

    Raises:
        InputError: not a complete PyTorch file, or it contains something else than a dict of dense tensors.
    """
    with reading(file) as reader:
        directory = read_directory(reader)
        state_dict = _read_state_dict(reader, directory)
    tensors: dict[str, StoredTensor] = {}
    for name, value in state_dict:
        if type(name) is not str:
            kind = type(name).__name__
            message = f"A key of the state dict is not a name but a {kind}."
            raise InputError("INPUT_PICKLE", message, file=file)
        if not is_printable_name(name):
            raise InputError("INPUT_PICKLE", f"Invalid name of a tensor: {quoted(name)}.", file=file)
        if name in tensors:
            raise InputError("INPUT_PICKLE", "Duplicate name in the state dict.", file=file, tensor=name)
        if not isinstance(value, TensorRecord):
            kind = "dict" if isinstance(value, Pairs) else type(value).__name__
            hint = "If this dict is the state dict, save it alone with torch.save."
            raise InputError(
                "INPUT_PICKLE",
                f"Not a tensor but a {kind}.",
                file=file,
                tensor=name,
                hint=hint if kind == "dict" else None,
            )
        tensors[name] = _stored_tensor(file, name, value, directory)
    if not tensors:
        raise InputError("INPUT_PICKLE", "The state dict is empty.", file=file)
    _check_reuse(file, tensors.values())
    return tensors


def read_torch_tensor(reader: Reader, name: str) -> StoredTensor:
    """The tensor of an archive that contains nothing else; reads no values.

    Args:
        reader: the archive; offsets of the result count from its start.
        name: name of the tensor, which the archive does not contain.

    Raises:
        InputError: not a complete PyTorch file, or it contains something else than a dense tensor.
    """
    directory = read_directory(reader)
    content = _read_content(reader, directory)
    if not isinstance(content, TensorRecord):
        kind = "dict" if isinstance(content, Pairs) else type(content).__name__
        raise InputError("INPUT_PICKLE", f"Not a tensor but a {kind}.", file=reader.file, tensor=name)
    return _stored_tensor(reader.file, name, content, directory)


def _check_reuse(file: Path, tensors: Iterable[StoredTensor]) -> None:
    """Refuse a small file whose tensors would expand to too many bytes."""
    expanded = sum(tensor.nbytes for tensor in tensors)
    stored = sum(storage.size for storage in {tensor.storage for tensor in tensors})
    if expanded > _MAX_REUSE * stored + _MAX_EXPANDED_BYTES:
        message = f"The tensors have {expanded:,} bytes, but their storages only {stored:,} bytes."
        raise InputError("TENSOR_INVALID", message, file=file)


def _read_state_dict(reader: Reader, directory: ZipDirectory) -> Pairs:
    content = _read_content(reader, directory)
    if not isinstance(content, Pairs):
        kind = "tensor" if isinstance(content, TensorRecord) else type(content).__name__
        message = f"The file does not contain a dict of tensors but a {kind}."
        raise InputError("INPUT_PICKLE", message, file=reader.file)
    return content


def _read_content(reader: Reader, directory: ZipDirectory) -> Any:
    """The value that was saved."""
    file = reader.file
    entry = directory.entries.get("data.pkl")
    if entry is None:
        message = "Not a PyTorch file but another zip archive (no data.pkl)."
        raise InputError("INPUT_NOT_TORCH", message, file=file)
    if entry.size > _MAX_PICKLE:
        message = f"data.pkl has {entry.size:,} bytes, more than the limit of {_MAX_PICKLE:,}."
        raise InputError("INPUT_PICKLE", message, file=file)
    data = read_at(reader, entry.size, entry.offset)
    _check_crc(file, data, entry, directory)
    byteorder = directory.entries.get("byteorder")
    if byteorder and read_at(reader, min(byteorder.size, 6), byteorder.offset) != b"little":
        message = "Byte order is big-endian."
        hint = "Load and save it with torch on a little-endian machine."
        raise InputError("TENSOR_UNSUPPORTED", message, file=file, hint=hint)
    try:
        return _read_short_pickle(data) if len(data) <= _SHORT_PICKLE else read_pickle(data)
    except PickleRefusedError as error:
        raise InputError(error.code, str(error), file=file) from None


@lru_cache(maxsize=256)
def _read_short_pickle(data: bytes) -> Any:
    """As `read_pickle`: archives of one tensor differ in their pickles only if their shapes or dtypes do."""
    return read_pickle(data)


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


def _stored_tensor(file: Path, name: str, record: TensorRecord, directory: ZipDirectory) -> StoredTensor:
    """The tensor of a record, after checking that all its bytes are in the entry of its storage."""

    def refuse(code: str, message: str, **values: str) -> InputError:
        return InputError(code, message, file=file, tensor=name, **values)

    storage_name = f"data/{record.storage.key[:60]}"
    entry = directory.entries.get(f"data/{record.storage.key}")
    if entry is None:
        raise refuse("INPUT_ZIP", f"Its storage {storage_name} is not in the file.")
    itemsize = record.dtype.itemsize
    declared = record.storage.numel * (record.storage.dtype.itemsize if record.storage.dtype else 1)
    if entry.size != declared:
        message = f"Wrong size of its storage {storage_name}."
        raise refuse("TENSOR_INVALID", message, expected=f"{declared:,} bytes", found=f"{entry.size:,}")
    if len(record.shape) > _MAX_DIMS:
        raise refuse(
            "TENSOR_INVALID", f"Has {len(record.shape)} dimensions, more than the limit of {_MAX_DIMS}."
        )
    numel = math.prod(record.shape)
    expanded = len(record.shape) == 1 and numel <= _MAX_EXPANDED
    if numel * itemsize > entry.size and not expanded:
        message = f"Shape {list(record.shape)} needs more than the {entry.size:,} bytes of its storage."
        raise refuse("TENSOR_INVALID", message)
    if 0 not in record.shape:
        last = record.offset + sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True))
        if (last + 1) * itemsize > entry.size:
            message = f"Element {last:,} is outside its storage of {entry.size // itemsize:,} elements."
            raise refuse("TENSOR_INVALID", message)
    storage = Storage(file, entry.offset, entry.size, entry.crc32 or None)
    offset = entry.offset + record.offset * itemsize
    return StoredTensor(name, record.dtype, record.shape, record.strides, offset, storage)
