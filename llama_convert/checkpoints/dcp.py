"""Weights of a checkpoint of torch.distributed.checkpoint (DCP), and what else a DCP folder can contain."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

from llama_convert.checkpoints.json_object import read_json_object
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight
from llama_convert.errors import InputError
from llama_convert.formats.dcp_chunks import dtype_of, locate_chunks
from llama_convert.formats.dcp_metadata import METADATA, DcpChunk, DcpMetadata, DcpTensor, read_dcp
from llama_convert.formats.tensors import StoredTensor

_RANK_METADATA = re.compile(r"__\d+\.metadata")
_SAFETENSORS_SHARD = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
MEGATRON_HINT = "Export it in Hugging Face format with Megatron Bridge first."
_MEGATRON_NAME = re.compile(r"(?:^|\.)decoder\.layers\.|\.linear_qkv\.")


def open_dcp(folder: Path) -> DcpMetadata:
    """The metadata of a DCP folder with unfused weights; opens no shard.

    Raises:
        InputError: `.metadata` is missing or damaged, or the folder is of another writer: Megatron, or
            ``HuggingFaceStorageWriter``.
        OutputError: a read error.
    """
    if not (folder / METADATA).exists():
        raise _without_metadata(folder)
    if _is_megatron(folder):
        raise _megatron(folder)
    metadata = read_dcp(folder)
    if any(map(_MEGATRON_NAME.search, metadata.tensors)):
        raise _megatron(folder)
    return metadata


def open_chunks(metadata: DcpMetadata, names: Iterable[str]) -> dict[str, StoredWeight]:
    """Weights by name: each piece is a chunk.  Reads the headers of their chunks only.

    Args:
        metadata: the metadata of the folder.
        names: names in `metadata.tensors`.

    Raises:
        InputError: as `locate_chunks`, or a tensor is sharded along dimension 2 or a higher one.
        OutputError: a read error.
    """
    weights: dict[str, StoredWeight] = {}
    for name, chunks in locate_chunks(metadata, names).items():
        tensor = metadata.tensors[name]
        if any(chunk.sizes[2:] != tensor.shape[2:] for chunk in tensor.chunks):
            message = "Sharded along dimension 2 or a higher one."
            raise InputError("TENSOR_UNSUPPORTED", message, file=metadata.file, tensor=name)
        pieces = tuple(_piece(tensor, chunk, stored) for chunk, stored in chunks)
        weights[name] = StoredWeight(name, tensor.shape, dtype_of(tensor), pieces)
    return weights


def _piece(tensor: DcpTensor, chunk: DcpChunk, stored: StoredTensor) -> Piece:
    """A chunk as a rectangle of the matrix; a vector is one row, a scalar one element."""
    row, column = (0, 0, *chunk.offsets)[-2:] if len(tensor.shape) < 2 else chunk.offsets[:2]
    rows, columns = (1, 1, *chunk.sizes)[-2:] if len(tensor.shape) < 2 else chunk.sizes[:2]
    width = math.prod(tensor.shape[2:])
    itemsize = stored.dtype.itemsize
    slab = Slab(stored.storage, stored.offset, rows, columns * width, columns * width * itemsize, itemsize)
    return Piece(row, column * width, slab)


def _without_metadata(folder: Path) -> InputError:
    """Why a folder has no ``.metadata``, by the names of its files."""
    names = [entry.name for entry in folder.iterdir()]
    if any(map(_RANK_METADATA.fullmatch, names)):
        return InputError(
            "INPUT_DCP",
            "Each rank has separate metadata (use_collectives=False).",
            file=folder,
            hint="Load it with torch.distributed.checkpoint and save it with use_collectives=True.",
        )
    if any(map(_SAFETENSORS_SHARD.fullmatch, names)):
        return InputError(
            "INPUT_DCP",
            "Shards of HuggingFaceStorageWriter that were not consolidated.",
            file=folder,
            hint="Consolidate them with consolidate_safetensors_files of torch.distributed.checkpoint.",
        )
    if any(name.endswith(".distcp") for name in names):
        return InputError(
            "INPUT_DCP",
            "Interrupted save or copy: .metadata, which is saved last, is missing.",
            file=folder,
            hint="Copy .metadata from where the checkpoint was saved, or use an earlier checkpoint.",
        )
    message = "Not a folder of torch.distributed.checkpoint (no .metadata)."
    return InputError("INPUT_NOT_FOUND", message, file=folder)


def _is_megatron(folder: Path) -> bool:
    try:
        settings = read_json_object(folder / "metadata.json", "CONFIG").content
    except InputError:
        return False
    return "sharded_backend" in settings


def _megatron(folder: Path) -> InputError:
    return InputError(
        "INPUT_DCP",
        "A checkpoint of Megatron (torch_dist), whose weights are fused and stacked.",
        file=folder,
        hint=MEGATRON_HINT,
    )
