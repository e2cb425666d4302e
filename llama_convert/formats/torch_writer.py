"""Layout of PyTorch ``.pth`` files to write, without torch.

`torch.save` needs all tensors in memory; files with this layout have the same bytes as its files, except for
the digits of ``.data/serialization_id``, which no reader uses.

Format: PKWARE APPNOTE 4.3 to 4.5.  Entries and their order: ``torch/serialization.py: _save``.  Padding and
zip64: ``caffe2/serialize/inline_container.cc`` and ``third_party/miniz: miniz.c`` of PyTorch.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from llama_convert.dtypes import Dtype
from llama_convert.formats.pickle_writer import Call, Global, Persistent, write_pickle
from llama_convert.formats.tensors import contiguous_strides

_ALIGNMENT = 64
_LIMIT32 = 0xFFFFFFFF
"""Numbers from here are stored in zip64 fields, and this value instead of them."""
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
_DIRECTORY_HEADER = struct.Struct("<4s6H3I5H2I")  # 4.3.12
_END64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
_END64_LOCATOR = struct.Struct("<4sIQI")  # 4.3.15
_END = struct.Struct("<4s4H2IH")  # 4.3.16
_END_SIZE = _END64.size + _END64_LOCATOR.size + _END.size
_UTF8_NAME, _DESCRIPTOR_FOLLOWS = 0x0800, 0x0008  # flags, 4.4.4
_ORDERED_DICT = Global("collections", "OrderedDict")
_REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


@dataclass(frozen=True)
class Entry:
    """One entry of the archive; its data is `content` or the bytes of `tensor`."""

    name: str
    start: int
    """Offset of its local header in bytes."""
    content: bytes
    size: int
    """Bytes of its data."""
    tensor: str | None

    @property
    def flags(self) -> int:
        """Flags of the entry: its descriptor follows its data; torch omits it if there is no data."""
        return _UTF8_NAME | (_DESCRIPTOR_FOLLOWS if self.size else 0)

    def zip64(self, packed_size: int) -> bytes:
        """Extra field for numbers that do not fit into 32 bits (APPNOTE 4.5.3)."""
        sizes = [self.size, packed_size] if self.size >= _LIMIT32 else []
        large = [*sizes, self.start] if self.start >= _LIMIT32 else sizes
        return struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""

    @property
    def header(self) -> bytes:
        """Local header, padded by an extra field so that it ends at a multiple of 64 bytes.

        As in torch, its CRC-32 and packed size are zero; the descriptor has them.
        """
        name, zip64 = self.name.encode(), self.zip64(0)
        padding = -(self.start + _LOCAL_HEADER.size + len(name) + len(zip64) + 4) % _ALIGNMENT
        extra = zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        numbers = (0, self.flags, 0, 0, 0, 0, 0, 0, len(name), len(extra))
        return _LOCAL_HEADER.pack(b"PK\3\4", *numbers) + name + extra

    @property
    def offset(self) -> int:
        """Offset of its data in bytes."""
        return self.start + len(self.header)

    @property
    def end(self) -> int:
        """Offset of the next entry in bytes."""
        return self.offset + self.size + len(self.descriptor(0))

    def descriptor(self, crc32: int) -> bytes:
        """Data descriptor after the data (APPNOTE 4.3.9)."""
        layout = "<4sI2Q" if self.zip64(0) else "<4sI2I"
        return struct.pack(layout, b"PK\7\x08", crc32, self.size, self.size) if self.size else b""

    def directory_header(self, crc32: int) -> bytes:
        """Header in the central directory."""
        name, zip64 = self.name.encode(), self.zip64(self.size)
        size, start = min(self.size, _LIMIT32), min(self.start, _LIMIT32)
        numbers = (0, 0, self.flags, 0, 0, 0, crc32, size, size, len(name), len(zip64), 0, 0, 0, 0, start)
        return _DIRECTORY_HEADER.pack(b"PK\1\2", *numbers) + name + zip64


@dataclass(frozen=True)
class TorchLayout:
    """Layout of a ``.pth`` file; see `FileLayout`."""

    offsets: dict[str, int]
    """Bytes from the start of the file; tied tensors have the same offset."""
    size: int
    """Bytes of the file."""
    entries: tuple[Entry, ...]
    has_checksums: ClassVar[bool] = True

    def parts(self, crc32: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        """Everything between the storages, as offsets in bytes from the start of the file and content.

        Args:
            crc32: CRC-32 of the bytes of each tensor, by name; of tied tensors, only the first is needed.  A
                value is looked up when the part after its tensor is generated.

        Raises:
            KeyError: the CRC-32 of a tensor is missing.
        """
        position, part, directory = 0, b"", b""
        sums: list[int] = []
        for planned in self.entries:
            entry = planned
            if planned is self.entries[-1]:
                entry = replace(planned, content=_serialization_id(sums))
            part += entry.header + entry.content
            if entry.tensor is None:
                crc = zlib.crc32(entry.content)
            else:
                yield position, part
                position, part = entry.offset + entry.size, b""
                crc = crc32[entry.tensor]
            sums.append(crc)
            part += entry.descriptor(crc)
            directory += entry.directory_header(crc)
        yield (
            position,
            part + directory + _end_records(len(self.entries), len(directory), self.entries[-1].end),
        )


def lay_out_torch(
    tensors: Iterable[tuple[str, Dtype, tuple[int, ...]]],
    shared: Mapping[str, str] | None = None,
    name: str = "consolidated.00",
) -> TorchLayout:
    """Layout of `torch.save` for an OrderedDict of contiguous tensors.

    Args:
        tensors: names, dtypes (of `WEIGHT_DTYPES`) and shapes.
        shared: for tied tensors, the name of the tensor of the same dtype and shape whose storage they use.
        name: root folder of the archive; torch uses the name of the file without its extension.
    """
    tensors, shared = list(tensors), shared or {}
    owners = {tensor: shared.get(tensor, tensor) for tensor, _, _ in tensors}
    sizes = {owners[tensor]: math.prod(shape) * dtype.itemsize for tensor, dtype, shape in tensors}
    keys = {owner: str(number) for number, owner in enumerate(sizes)}
    views = ((tensor, _view(keys[owners[tensor]], dtype, shape)) for tensor, dtype, shape in tensors)
    before = {
        "data.pkl": write_pickle(Call(_ORDERED_DICT, items=tuple(views))),
        ".format_version": b"1",
        ".storage_alignment": b"%d" % _ALIGNMENT,
        "byteorder": b"little",
    }
    after = {"version": b"3\n", ".data/serialization_id": _serialization_id([])}
    records: list[tuple[str, bytes, int, str | None]] = [
        *((record, content, len(content), None) for record, content in before.items()),
        *((f"data/{keys[owner]}", b"", size, owner) for owner, size in sizes.items()),
        *((record, content, len(content), None) for record, content in after.items()),
    ]
    entries: list[Entry] = []
    end = 0
    for record, content, size, owner in records:
        entries.append(Entry(f"{name}/{record}", end, content, size, owner))
        end = entries[-1].end
    places = {entry.tensor: entry.offset for entry in entries}
    offsets = {tensor: places[owner] for tensor, owner in owners.items()}
    directory_size = sum(len(entry.directory_header(0)) for entry in entries)
    return TorchLayout(offsets, end + directory_size + _END_SIZE, tuple(entries))


def _view(key: str, dtype: Dtype, shape: tuple[int, ...]) -> Call:
    """Pickled tensor that is a view of a whole storage (``torch/_tensor.py: _reduce_ex_internal``)."""
    storage = Persistent(("storage", Global("torch", dtype.storage), key, "cpu", math.prod(shape)))
    return Call(_REBUILD, (storage, 0, shape, contiguous_strides(shape), False, Call(_ORDERED_DICT)))


def _serialization_id(sums: list[int]) -> bytes:
    """Hash of the CRC-32s in 40 digits; torch uses a hash function of its C++ library."""
    return b"%040d" % zlib.crc32(struct.pack(f"<{len(sums)}I", *sums))


def _end_records(count: int, size: int, start: int) -> bytes:
    """End records of a directory of ``size`` bytes at offset ``start``; torch always writes zip64 ones."""
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, 0x031E, 45, 0, 0, count, count, size, start)
    locator = _END64_LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
    return end64 + locator + _END.pack(b"PK\5\6", 0, 0, count, count, size, min(start, _LIMIT32), 0)
