"""The plan: every byte that will be written, and where it comes from, known before the first is read.

A plan is made from headers alone, depends on nothing but its inputs, and is all that `execute` is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.shards import index_json, split_into_shards
from llama_convert.checkpoints.stored import StoredWeight
from llama_convert.dtypes import Dtype
from llama_convert.formats.safetensors import lay_out
from llama_convert.llama.rotary import interleaved_to_half_split
from llama_convert.llama.weights import huggingface_weights
from llama_convert.reorder import RowTranspose


@dataclass(frozen=True)
class Target:
    """One tensor of an output file, and what it is made of: gathered, its rows reordered, cast."""

    name: str
    offset: int
    """Bytes from the start of the output file."""
    dtype: Dtype
    source: StoredWeight
    reorder: RowTranspose | None = None


@dataclass(frozen=True)
class OutputFile:
    """One file to write: a header, then tensors at their places, without holes."""

    name: str
    header: bytes
    size: int
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Plan:
    """All that a conversion writes of the weights."""

    files: tuple[OutputFile, ...]
    index: bytes | None
    """``model.safetensors.index.json``; None when one file holds everything."""

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all output files."""
        return sum(file.size for file in self.files)

    @cached_property
    def payload_bytes(self) -> int:
        """Bytes of all tensors: all but the headers."""
        return self.total_bytes - sum(len(file.header) for file in self.files)


def plan_huggingface(checkpoint: MetaCheckpoint, dtype: Dtype | None, max_shard_size: int) -> Plan:
    """The Hugging Face folder of a Meta checkpoint.

    Args:
        checkpoint: the source.
        dtype: what the weights become; None keeps each one's own.
        max_shard_size: bytes of tensors in one file at most.
    """
    transpose = interleaved_to_half_split(checkpoint.config.head_dim)
    weights = {weight.huggingface_name: weight for weight in huggingface_weights(checkpoint.config)}
    sources = {name: checkpoint.weights[weight] for name, weight in weights.items()}
    dtypes = {name: dtype or source.dtype for name, source in sources.items()}
    sizes = {
        name: source.nbytes // source.dtype.itemsize * dtypes[name].itemsize
        for name, source in sources.items()
    }
    shards = split_into_shards(sizes, max_shard_size)
    files = []
    for file, names in shards.items():
        layout = lay_out((name, dtypes[name], sources[name].shape) for name in names)
        targets = tuple(
            Target(
                name,
                layout.offsets[name],
                dtypes[name],
                sources[name],
                transpose if weights[name].kind.rotary else None,
            )
            for name in sorted(names, key=layout.offsets.__getitem__)
        )
        files.append(OutputFile(file, layout.header, layout.size, targets))
    index = index_json(shards, sum(sizes.values())) if len(shards) > 1 else None
    return Plan(tuple(files), index)
