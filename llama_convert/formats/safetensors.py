"""The safetensors container, written as a stream: header first, every tensor at a place known beforehand.

The library's own writer needs all tensors in memory at once; its files are matched byte for byte instead.
Format: safetensors' README; order of tensors and padding: ``safetensors/src/tensor.rs: prepare``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from llama_convert.dtypes import Dtype


@dataclass(frozen=True)
class Layout:
    """Where everything goes in one file: its first bytes, each tensor's offset, and its whole size."""

    header: bytes
    offsets: dict[str, int]
    size: int


def lay_out(tensors: Iterable[tuple[str, Dtype, tuple[int, ...]]]) -> Layout:
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
    return Layout(header, {name: len(header) + start for name, start in starts.items()}, len(header) + end)
