"""Reader of PyTorch files (``.pth``, ``.pt``, ``.bin``) without torch, in both formats of `torch.save`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.file_kinds import (
    DOWNLOAD_AGAIN,
    HEAD_SIZE,
    LEGACY_TORCH,
    TAR_TORCH,
    TORCH,
    ZIP,
    kind_of,
)
from llama_convert.formats.files import Reader, read_at, reading
from llama_convert.formats.pickle_objects import Pairs, PickleRefusedError, TensorRecord
from llama_convert.formats.state_dict import find_state_dict
from llama_convert.formats.tensors import Storage, StoredTensor
from llama_convert.formats.torch_legacy import legacy_header, read_legacy_torch
from llama_convert.formats.torch_zip import read_torch_zip, zip_header
from llama_convert.text import is_printable_name, quoted


@dataclass(frozen=True)
class _Container:
    """How a kind of file is read."""

    content: Callable[[Reader], tuple[Any, dict[str, Storage]]]
    """Returns the object in the file, and the storages that it uses by key."""
    header: Callable[[Reader], bytes]
    """See `read_torch_header`."""


_ZIP = _Container(read_torch_zip, zip_header)
_CONTAINERS = {TORCH: _ZIP, ZIP: _ZIP, LEGACY_TORCH: _Container(read_legacy_torch, legacy_header)}
_MAX_DIMS = 8
_MAX_EXPANDED = 1 << 20
"""Elements of a vector made by `Tensor.expand`, which repeats elements of its storage; no model is wider."""
_MAX_REUSE = 16
"""Average number of tensors that use a byte of the storages (two if the LM head is tied)."""
_MAX_EXPANDED_BYTES = 256 << 20
"""Bytes of all expanded vectors of a file; the norms of 405B have 17 MB in float32."""


@dataclass(frozen=True)
class TorchCheckpoint:
    """The state dict of a PyTorch file."""

    tensors: dict[str, StoredTensor]
    """By name, in the order of the file."""
    wrapper_keys: tuple[str, ...]
    """Keys that lead to the state dict, outermost first, for example ``("model",)`` in a training checkpoint;
    empty if the file contains only the state dict."""


def read_torch_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of `read_torch_checkpoint`."""
    return read_torch_checkpoint(file).tensors


def read_torch_checkpoint(file: Path) -> TorchCheckpoint:
    """The state dict of a PyTorch file, which may be a training checkpoint; reads no weights.

    Raises:
        InputError: not a complete PyTorch file, it contains several state dicts, or the state dict contains
            something else than dense tensors.
    """
    with reading(file) as reader:
        content, storages = _read_content(reader)
    if not isinstance(content, Pairs):
        kind = "tensor" if isinstance(content, TensorRecord) else type(content).__name__
        message = f"The file does not contain a dict of tensors but a {kind}."
        raise InputError("INPUT_PICKLE", message, file=file)
    state_dict = find_state_dict(content, file)
    tensors = _stored_tensors(file, state_dict.items, storages)
    _check_reuse(file, tensors.values())
    return TorchCheckpoint(tensors, state_dict.keys)


def _stored_tensors(file: Path, items: Pairs, storages: dict[str, Storage]) -> dict[str, StoredTensor]:
    """The tensors of a state dict by name, after checking names and values."""
    tensors: dict[str, StoredTensor] = {}
    for name, value in items:
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
        tensors[name] = _stored_tensor(file, name, value, storages[value.storage.key])
    if not tensors:
        raise InputError("INPUT_PICKLE", "The state dict is empty.", file=file)
    return tensors


def read_torch_tensor(reader: Reader, name: str) -> StoredTensor:
    """The tensor of a PyTorch file that contains nothing else; reads no values.

    Args:
        reader: the file; offsets of the result count from its start.
        name: name of the tensor, which the file does not contain.

    Raises:
        InputError: not a complete PyTorch file, or it contains something else than a dense tensor.
    """
    content, storages = _read_content(reader)
    if not isinstance(content, TensorRecord):
        kind = "dict" if isinstance(content, Pairs) else type(content).__name__
        raise InputError("INPUT_PICKLE", f"Not a tensor but a {kind}.", file=reader.file, tensor=name)
    return _stored_tensor(reader.file, name, content, storages[content.storage.key])


def read_torch_header(file: Path) -> bytes:
    """What identifies a file without reading its weights, for a checksum.

    Of an archive, the name, offset, size and CRC-32 of each entry, as text; of a file in the format from
    before version 1.6, its first bytes: all pickles, and some weights.

    Raises:
        InputError: not a PyTorch file, or the directory of the archive is damaged.
    """
    with reading(file) as reader:
        return _container(reader).header(reader)


def _read_content(reader: Reader) -> tuple[Any, dict[str, Storage]]:
    container = _container(reader)
    try:
        return container.content(reader)
    except PickleRefusedError as error:
        raise InputError(error.code, str(error), file=reader.file, hint=error.hint) from None


def _container(reader: Reader) -> _Container:
    """The container by the first bytes of a file; other kinds of files are refused by name."""
    file = reader.file
    if reader.size == 0:
        raise InputError("INPUT_EMPTY", "The file is empty.", file=file, hint=DOWNLOAD_AGAIN)
    kind = kind_of(read_at(reader, HEAD_SIZE, 0))
    if kind is None:
        raise InputError("INPUT_NOT_TORCH", "Not a PyTorch file.", file=file)
    if kind == TAR_TORCH:
        raise InputError("INPUT_LEGACY", f"Not supported: {kind.name}.", file=file, hint=kind.hint)
    if kind not in _CONTAINERS:
        message = f"Not a PyTorch file but {kind.name}."
        raise InputError("INPUT_NOT_TORCH", message, file=file, hint=kind.hint)
    return _CONTAINERS[kind]


def _check_reuse(file: Path, tensors: Iterable[StoredTensor]) -> None:
    """Refuse a small file whose tensors would expand to too many bytes."""
    expanded = sum(tensor.nbytes for tensor in tensors)
    stored = sum(storage.size for storage in {tensor.storage for tensor in tensors})
    if expanded > _MAX_REUSE * stored + _MAX_EXPANDED_BYTES:
        message = f"The tensors have {expanded:,} bytes, but their storages only {stored:,} bytes."
        raise InputError("TENSOR_INVALID", message, file=file)


def _stored_tensor(file: Path, name: str, record: TensorRecord, storage: Storage) -> StoredTensor:
    """The tensor of a record, after checking that all its bytes are in its storage, and in its view of it."""

    def refuse(message: str) -> InputError:
        return InputError("TENSOR_INVALID", message, file=file, tensor=name)

    itemsize = record.dtype.itemsize
    start, length = record.storage.view or (0, storage.size // itemsize)
    if len(record.shape) > _MAX_DIMS:
        raise refuse(f"Has {len(record.shape)} dimensions, more than the limit of {_MAX_DIMS}.")
    numel = math.prod(record.shape)
    expanded = len(record.shape) == 1 and numel <= _MAX_EXPANDED
    if numel > length and not expanded:
        message = f"Shape {list(record.shape)} needs more than the {storage.size:,} bytes of its storage."
        raise refuse(message)
    if 0 not in record.shape:
        last = record.offset + sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True))
        if last >= length:
            raise refuse(f"Element {last:,} is outside its storage of {length:,} elements.")
    offset = storage.offset + (start + record.offset) * itemsize
    return StoredTensor(name, record.dtype, record.shape, record.strides, offset, storage)
