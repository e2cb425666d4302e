"""The safetensors container: its header read strictly, and laid out before a tensor is written.

The library's own writer needs all tensors in memory at once; its files are matched byte for byte instead.
Format: safetensors' README; order of tensors and padding: ``safetensors/src/tensor.rs: prepare``.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llama_convert.dtypes import BY_SAFETENSORS, Dtype
from llama_convert.errors import InputError
from llama_convert.formats.files import HEAD_SIZE, SAFETENSORS, is_plain, kind_of, quoted, read_at, reading
from llama_convert.formats.tensors import Storage, StoredTensor, contiguous_strides

_MAX_HEADER = 2 << 20
"""405B's 1,138 weights take 0.15 MB; the library's own limit, 100 MB, could ask for gigabytes of memory."""
_MOST_BRACKETS = 100_000
"""Three a tensor; each costs far more to parse than its byte."""
_MAX_AXES = 8
_MAX_NUMBER = 1 << 62


@dataclass(frozen=True)
class SafetensorsLayout:
    """Where everything goes in one file: its first bytes, each tensor's offset, and its whole size."""

    header: bytes
    offsets: dict[str, int]
    """In the order of the bytes."""
    size: int
    has_checksums: ClassVar[bool] = False

    def parts(self, crc32: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        """The header; the format has no checksums."""
        yield 0, self.header


def lay_out(tensors: Iterable[tuple[str, Dtype, tuple[int, ...]]]) -> SafetensorsLayout:
    """The layout `safetensors.torch.save_file` gives these tensors with ``metadata={"format": "pt"}``.

    Tensors stand in order of element size, the largest first, and then of name; the header is padded with
    spaces so that the data begins at a multiple of 8 bytes.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: (-tensor[1].itemsize, tensor[0])):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": dtype.safetensors, "shape": list(shape), "data_offsets": [start, end]}
        starts[name] = start
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return SafetensorsLayout(
        header, {name: len(header) + start for name, start in starts.items()}, len(header) + end
    )


def read_safetensors_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, in the order of their bytes; no weight is read.

    What the library's own reader refuses is refused: bytes that belong to no tensor or to two, lengths that
    shapes do not give, offsets beyond the file.  A name that stands there twice is refused as well.

    Raises:
        InputError: not a whole safetensors file.
    """

    def refuse(message: str, tensor: str | None = None) -> InputError:
        return InputError("INPUT_SAFETENSORS", message, file=file, tensor=tensor)

    header, data_start, size = read_header(file)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            ((twice, _),) = Counter(name for name, _ in items).most_common(1)
            raise refuse(f"the name {quoted(twice)} stands in the header twice")
        return result

    if header.count(b"[") + header.count(b"{") > _MOST_BRACKETS:
        raise refuse("its header is malformed: JSON of more lists than any Llama has tensors for")
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=pairs)
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise refuse("its header is no JSON") from None
    if not isinstance(entries, dict):
        raise refuse("its header is no JSON object")
    metadata = entries.pop("__metadata__", None)
    if metadata is None:  # null, too, is what the library takes for none
        metadata = {}
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
        raise refuse('"__metadata__" in its header must be an object of strings')
    tensors = []
    for name, entry in entries.items():
        if not is_plain(name):
            raise refuse(f"a tensor's name is {quoted(name)}")
        try:
            code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            numbers = [*shape, start, end]
        except (TypeError, KeyError, ValueError):
            raise refuse("its entry in the header is malformed", name) from None
        if len(shape) > _MAX_AXES or any(type(n) is not int or not 0 <= n < _MAX_NUMBER for n in numbers):
            raise refuse("its entry in the header is malformed", name)
        dtype = BY_SAFETENSORS.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise InputError("TENSOR_DTYPE", f"is {quoted(str(code)[:20])}: unknown", file=file, tensor=name)
        if end - start != math.prod(shape) * dtype.itemsize:
            message = f"{list(shape)} of {dtype} takes {math.prod(shape) * dtype.itemsize:,} bytes"
            raise refuse(f"{message}, the header gives it {end - start:,}", name)
        offset = data_start + start
        storage = Storage(file, offset, end - start)
        tensors.append(StoredTensor(name, dtype, shape, contiguous_strides(shape), offset, storage))
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.storage.size))
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            kind = "overlaps the tensor before it" if tensor.offset < position else "is preceded by a hole"
            raise refuse(kind, tensor.name)
        position += tensor.storage.size
    if position != size:
        raise refuse(f"has {size:,} bytes, its header describes {position:,}: cut short or added to")
    return {tensor.name: tensor for tensor in tensors}


def _is_text(value: Any) -> bool:
    """A string of whole characters: JSON's escapes can name halves of them."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def read_header(file: Path) -> tuple[bytes, int, int]:
    """The header's JSON, where the data begins, and the size of the file.

    Raises:
        InputError: not a safetensors file.
        OutputError: the machine cannot read it.
    """

    def refuse(message: str) -> InputError:
        return InputError("INPUT_SAFETENSORS", message, file=file)

    with reading(file) as reader:
        size = reader.size
        prefix = read_at(reader, 8, 0)
        if len(prefix) < 8:
            raise refuse(f"has {size} bytes: {'no safetensors file' if size else 'it is empty'}")
        length: int = struct.unpack("<Q", prefix)[0]
        if length <= min(_MAX_HEADER, size - 8):
            header = read_at(reader, length, 8)
            if header.startswith(b"{"):
                return header, 8 + length, size
        kind = kind_of(read_at(reader, HEAD_SIZE, 0))
    if kind not in (None, SAFETENSORS):
        message = f"{kind.name}; not a safetensors file"
        raise InputError("INPUT_SAFETENSORS", message, file=file, hint=kind.hint)
    if length > min(_MAX_HEADER, size - 8):
        raise refuse(f"damaged, or not a safetensors file: the header would have {length:,} bytes")
    raise refuse("its header is no JSON object")
