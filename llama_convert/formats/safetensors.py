"""Safetensors files: strict reader of the header, and layout of files to write.

`safetensors.torch.save_file` needs all tensors in memory; files with this layout have the same bytes as its
files.  Format: README of safetensors; order of tensors and padding: ``safetensors/src/tensor.rs: prepare``.
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
from llama_convert.formats.file_kinds import DOWNLOAD_AGAIN, HEAD_SIZE, SAFETENSORS, kind_of
from llama_convert.formats.files import read_at, reading
from llama_convert.formats.tensors import Storage, StoredTensor, contiguous_strides
from llama_convert.text import is_printable_name, quoted

_MAX_HEADER = 2 << 20
"""Bytes.  The 1,138 weights of 405B need 0.15 MB; the limit of safetensors, 100 MB, could need gigabytes of
memory."""
_MAX_BRACKETS = 100_000
"""Three for each tensor; parsing one needs much more memory than its byte."""
_MAX_DIMS = 8
_MAX_NUMBER = 1 << 62


@dataclass(frozen=True)
class SafetensorsLayout:
    """Layout of a safetensors file; see `FileLayout`."""

    header: bytes
    """Length and JSON: everything before the data."""
    offsets: dict[str, int]
    """Bytes from the start of the file, in ascending order."""
    size: int
    """Bytes of the file."""
    has_checksums: ClassVar[bool] = False

    def parts(self, crc32: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        """The header.  ``crc32`` is not used: the format has no checksums."""
        yield 0, self.header


def lay_out(tensors: Iterable[tuple[str, Dtype, tuple[int, ...]]]) -> SafetensorsLayout:
    """Layout of `safetensors.torch.save_file` with ``metadata={"format": "pt"}``.

    Tensors are sorted by descending element size, then by name.  The header is padded with spaces so that the
    data begins at a multiple of 8 bytes.

    Args:
        tensors: names, dtypes and shapes.
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
    """The tensors of a file by name, in the order of their offsets; reads only the header.

    Refuses what the safetensors library refuses: gaps, overlaps, lengths that do not match shapes, offsets
    beyond the file.  Also refuses duplicate names.

    Raises:
        InputError: not a valid and complete safetensors file.
    """

    def refuse(message: str, tensor: str | None = None) -> InputError:
        return InputError("INPUT_SAFETENSORS", message, file=file, tensor=tensor)

    header, data_start, size = read_header(file)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            ((duplicate, _),) = Counter(name for name, _ in items).most_common(1)
            raise refuse(f"Duplicate name {quoted(duplicate)} in the header.")
        return result

    if header.count(b"[") + header.count(b"{") > _MAX_BRACKETS:
        raise refuse(f"Malformed header: more than {_MAX_BRACKETS:,} lists and objects.")
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=pairs)
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise refuse("The header is not valid JSON.") from None
    if not isinstance(entries, dict):
        raise refuse("The header is not a JSON object.")
    metadata = entries.pop("__metadata__", None)
    if metadata is None:  # the library accepts null
        metadata = {}
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
        raise refuse('"__metadata__" in the header is not an object of strings.')
    tensors = []
    for name, entry in entries.items():
        if not is_printable_name(name):
            raise refuse(f"Invalid name of a tensor: {quoted(name)}.")
        try:
            code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            numbers = [*shape, start, end]
        except (TypeError, KeyError, ValueError):
            raise refuse("Malformed entry in the header.", name) from None
        if len(shape) > _MAX_DIMS or any(type(n) is not int or not 0 <= n < _MAX_NUMBER for n in numbers):
            raise refuse("Malformed entry in the header.", name)
        dtype = BY_SAFETENSORS.get(code) if isinstance(code, str) else None
        if dtype is None:
            message = f"Unknown dtype {quoted(str(code)[:20])}."
            raise InputError("TENSOR_DTYPE", message, file=file, tensor=name)
        nbytes = math.prod(shape) * dtype.itemsize
        if end - start != nbytes:
            message = f"Number of bytes does not match shape {list(shape)} and dtype {dtype}."
            raise InputError(
                "INPUT_SAFETENSORS",
                message,
                file=file,
                tensor=name,
                expected=f"{nbytes:,} bytes",
                found=f"{end - start:,}",
            )
        offset = data_start + start
        storage = Storage(file, offset, end - start)
        tensors.append(StoredTensor(name, dtype, shape, contiguous_strides(shape), offset, storage))
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.storage.size))
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            overlaps = tensor.offset < position
            message = "Overlaps the previous tensor." if overlaps else "There is a gap before this tensor."
            raise refuse(message, tensor.name)
        position += tensor.storage.size
    if position != size:
        raise InputError(
            "INPUT_SAFETENSORS",
            f"The file is {'truncated' if size < position else 'longer than its header describes'}.",
            file=file,
            hint=DOWNLOAD_AGAIN,
            expected=f"{position:,} bytes",
            found=f"{size:,}",
        )
    return {tensor.name: tensor for tensor in tensors}


def _is_text(value: Any) -> bool:
    """Whether it is a string without surrogates, which escapes in JSON can produce."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def read_header(file: Path) -> tuple[bytes, int, int]:
    """The JSON of the header, the offset of the data in bytes, and the size of the file in bytes.

    Raises:
        InputError: not a safetensors file.
        OutputError: a read error.
    """

    def refuse(message: str) -> InputError:
        return InputError("INPUT_SAFETENSORS", message, file=file)

    with reading(file) as reader:
        size = reader.size
        prefix = read_at(reader, 8, 0)
        if len(prefix) < 8:
            message = f"Not a safetensors file: it has only {size} bytes." if size else "The file is empty."
            raise refuse(message)
        length: int = struct.unpack("<Q", prefix)[0]
        if length <= min(_MAX_HEADER, size - 8):
            header = read_at(reader, length, 8)
            if header.startswith(b"{"):
                return header, 8 + length, size
        kind = kind_of(read_at(reader, HEAD_SIZE, 0))
    if kind not in (None, SAFETENSORS):
        message = f"Not a safetensors file but {kind.name}."
        raise InputError("INPUT_SAFETENSORS", message, file=file, hint=kind.hint)
    if length > min(_MAX_HEADER, size - 8):
        raise refuse(f"Damaged or not a safetensors file: the length of its header is {length:,} bytes.")
    raise refuse("The header is not a JSON object.")
