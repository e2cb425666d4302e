"""Chunks of tensors in the ``.distcp`` files of a DCP folder: located, checked, not read.

A file is the concatenation of complete torch archives, one per chunk (``torch/distributed/checkpoint/
filesystem.py: _write_item``).  Its storage is uncompressed, has exactly the bytes of the chunk, and a CRC-32.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations, islice, pairwise, product
from pathlib import Path
from typing import Any

from llama_convert.dtypes import BY_NAME, WEIGHT_DTYPES, Dtype
from llama_convert.errors import InputError
from llama_convert.formats.dcp_metadata import DcpChunk, DcpMetadata, DcpTensor
from llama_convert.formats.file_kinds import HEAD_SIZE, SAFETENSORS, kind_of
from llama_convert.formats.files import FileRange, Reader, read_at, reading
from llama_convert.formats.tensors import Storage, StoredTensor, contiguous_strides
from llama_convert.formats.torch_reader import read_torch_tensor
from llama_convert.text import listed

_MAX_COMPARED = 1 << 20
"""Pairs of chunks to search for one that overlaps."""
_COPY_AGAIN = "Copy it again from where it was saved."


def locate_chunks(
    metadata: DcpMetadata, names: Iterable[str]
) -> dict[str, list[tuple[DcpChunk, StoredTensor]]]:
    """The chunks of some tensors, by name: each with its bytes, in the order of ``.metadata``.

    Reads two small ranges of each archive, and has one file open at a time.

    Args:
        metadata: content of ``.metadata``.
        names: names in `metadata.tensors`.

    Raises:
        InputError: the chunks do not tile a tensor, a file is missing, truncated or of another kind, archives
            overlap, or an archive does not contain the tensor that ``.metadata`` describes.
        OutputError: a read error.
    """
    by_file: dict[str, list[tuple[DcpChunk, DcpTensor]]] = defaultdict(list)
    tensors = [metadata.tensors[name] for name in dict.fromkeys(names)]
    for tensor in tensors:
        _check_dtype(metadata, tensor)
        _check_tiles(metadata, tensor)
        for chunk in tensor.chunks:
            if chunk.is_transformed:
                raise InputError(
                    "INPUT_COMPRESSED",
                    "Compressed or encrypted by an extension of the writer.",
                    file=metadata.folder / chunk.file,
                    tensor=tensor.name,
                    hint="Load it with torch.distributed.checkpoint and save it without extensions.",
                )
            by_file[chunk.file].append((chunk, tensor))
    _check_files_exist(metadata.folder, by_file)
    located: dict[tuple[str, tuple[int, ...]], StoredTensor] = {}
    for file in sorted(by_file):
        with reading(metadata.folder / file) as reader:
            _check_ranges(reader, by_file[file])
            for chunk, tensor in by_file[file]:
                located[tensor.name, chunk.offsets] = _locate(reader, chunk, tensor)
    return {
        tensor.name: [(chunk, located[tensor.name, chunk.offsets]) for chunk in tensor.chunks]
        for tensor in tensors
    }


def dtype_of(tensor: DcpTensor) -> Dtype:
    """The dtype of a tensor that `locate_chunks` accepts."""
    return BY_NAME[tensor.dtype]


def _check_dtype(metadata: DcpMetadata, tensor: DcpTensor) -> None:
    if BY_NAME.get(tensor.dtype) not in WEIGHT_DTYPES:
        raise InputError(
            "TENSOR_DTYPE",
            f"Unsupported dtype {tensor.dtype}.",
            file=metadata.file,
            tensor=tensor.name,
            hint=f"Save the model as {', '.join(map(str, WEIGHT_DTYPES[:-1]))} or {WEIGHT_DTYPES[-1]}.",
        )


def _check_files_exist(folder: Path, files: Iterable[str]) -> None:
    if missing := [file for file in files if not (folder / file).exists()]:
        message = f"Missing shard{'s' * (len(missing) > 1)}: {listed(missing)}."
        raise InputError("RANKS_MISSING", message, file=folder, hint="Copy the files of all ranks.")


def _check_tiles(metadata: DcpMetadata, tensor: DcpTensor) -> None:
    """Check that each element is in exactly one chunk, in time proportional to the number of chunks.

    The number of chunks that contain an element, as a function of its index, is 1 in the tensor and 0 outside
    if and only if its mixed differences are: those are +1 or -1 at the corners of each chunk, so they must
    cancel except at the corners of the tensor.
    """
    corners: Counter[tuple[int, ...]] = Counter()
    origin = (0,) * len(tensor.shape)
    boxes = [(chunk.offsets, chunk.sizes, 1) for chunk in tensor.chunks]
    for offsets, sizes, sign in [*boxes, (origin, tensor.shape, -1)]:
        for ends in product((0, 1), repeat=len(sizes)):
            corner = tuple(o + end * n for o, n, end in zip(offsets, sizes, ends, strict=True))
            corners[corner] += sign * (-1) ** sum(ends)
    if not any(corners.values()):
        return
    for one, other in islice(combinations(tensor.chunks, 2), _MAX_COMPARED):
        if _overlap(one, other):
            message = f"Its chunks at {list(one.offsets)} and {list(other.offsets)} overlap."
            raise InputError("TENSOR_INVALID", message, file=metadata.file, tensor=tensor.name)
    message = f"Its {len(tensor.chunks):,} chunks do not cover its shape {list(tensor.shape)} exactly."
    raise InputError(
        "TENSOR_INVALID",
        message,
        file=metadata.file,
        tensor=tensor.name,
        hint="Save the checkpoint again; a rank may not have saved its shards.",
    )


def _overlap(one: DcpChunk, other: DcpChunk) -> bool:
    return all(
        max(start, other_start) < min(start + size, other_start + other_size)
        for start, size, other_start, other_size in zip(
            one.offsets, one.sizes, other.offsets, other.sizes, strict=True
        )
    )


def _check_ranges(reader: Reader, chunks: list[tuple[DcpChunk, DcpTensor]]) -> None:
    """Check that the chunks are torch archives in ranges of the file that do not overlap; sort them."""
    file = reader.file
    chunks.sort(key=lambda each: (each[0].start, each[0].length))
    if kind_of(read_at(reader, HEAD_SIZE, chunks[0][0].start)) is SAFETENSORS:
        raise InputError(
            "INPUT_DCP",
            "Contains safetensors, not torch archives.",
            file=file,
            hint="Save the checkpoint with SerializationFormat.TORCH_SAVE, the default.",
        )
    for (one, owner), (other, tensor) in pairwise(chunks):
        if one.start + one.length > other.start:
            message = f"Its bytes from {other.start:,} overlap those of {owner.name}."
            raise InputError("INPUT_DCP", message, file=file, tensor=tensor.name)
    last, tensor = chunks[-1]
    end = last.start + last.length
    if end > reader.size:
        raise InputError(
            "INPUT_TRUNCATED",
            "The file is truncated.",
            file=file,
            tensor=tensor.name,
            hint=_COPY_AGAIN,
            expected=f"{end:,} bytes or more",
            found=f"{reader.size:,}",
        )


def _locate(reader: Reader, chunk: DcpChunk, tensor: DcpTensor) -> StoredTensor:
    """The bytes of a chunk, as a tensor of its sizes."""

    def refuse(code: str, message: str, **values: Any) -> InputError:
        return InputError(code, message, file=reader.file, tensor=tensor.name, **values)

    try:
        found = read_torch_tensor(FileRange(reader, chunk.start, chunk.length), tensor.name)
    except InputError as error:
        message = f"The archive at byte {chunk.start:,} is damaged ({error.message.removesuffix('.')})."
        raise refuse(error.code, message, hint=_COPY_AGAIN) from None
    if found.dtype.name != tensor.dtype:
        message = f"The dtype of its chunk at {list(chunk.offsets)} differs from that in .metadata."
        raise refuse("TENSOR_DTYPE", message, expected=tensor.dtype, found=found.dtype)
    if found.shape != chunk.sizes:
        message = f"The shape of its chunk at {list(chunk.offsets)} differs from that in .metadata."
        raise refuse("TENSOR_SHAPE", message, expected=list(chunk.sizes), found=list(found.shape))
    strides = zip(found.shape, found.strides, contiguous_strides(found.shape), strict=True)
    if any(size != 1 and stride != contiguous for size, stride, contiguous in strides):
        message = f"Its chunk at {list(chunk.offsets)} is not contiguous."
        raise refuse("TENSOR_INVALID", message, hint="Save the tensor after calling contiguous().")
    if found.nbytes != found.storage.size:
        message = "The size of its storage differs from that of its elements."
        raise refuse(
            "TENSOR_INVALID", message, expected=f"{found.nbytes:,} bytes", found=f"{found.storage.size:,}"
        )
    offset = chunk.start + found.offset
    storage = Storage(reader.file, offset, found.nbytes, found.storage.crc32)
    return StoredTensor(tensor.name, found.dtype, found.shape, found.strides, offset, storage)
