"""The plan of a Meta folder: one ``.pth`` file per tensor-parallel rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_convert.checkpoints.source import Checkpoint
from llama_convert.checkpoints.stored_weight import matrix_shape
from llama_convert.conversion.plan import Place, Plan, Task
from llama_convert.dtypes import Dtype
from llama_convert.errors import UsageError
from llama_convert.formats.torch_writer import lay_out_torch
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.rope import rope_permutation
from llama_convert.llama.weights import EMBEDDING, HEAD, Weight, model_weights


@dataclass(frozen=True)
class RankSplit:
    """How tensor-parallel ranks split the weights."""

    config: LlamaConfig
    n_ranks: int
    embedding_axis: int
    """The dim along which ranks split the embedding: 1 up to Llama 2, 0 from Llama 3 on."""

    def __post_init__(self) -> None:
        """Check that every dimension is divisible.

        Raises:
            UsageError: names the dimensions that are not.
        """
        config, n = self.config, self.n_ranks
        if n < 1:
            raise UsageError("BAD_MP", f"--mp {n}: The number of shards is at least 1.")
        dimensions = {
            "n_heads": config.n_heads,
            "ffn_dim": config.ffn_dim,
            "vocab_size": config.vocab_size,
        }
        if self.embedding_axis == 1:
            dimensions["dim"] = config.dim
        indivisible = [f"{name} ({size})" for name, size in dimensions.items() if size % n]
        if config.n_kv_heads % n and n % config.n_kv_heads:
            indivisible.append(f"n_kv_heads ({config.n_kv_heads}, nor does {config.n_kv_heads} divide {n})")
        if indivisible:
            message = f"--mp {n}: {n} does not divide {', '.join(indivisible)}."
            hint = "Choose a number of shards that divides all of them."
            raise UsageError("BAD_MP", message, hint=hint)

    @property
    def kv_repeats(self) -> int:
        """Number of neighboring ranks that hold the same KV head."""
        return max(1, self.n_ranks // self.config.n_kv_heads)

    @property
    def stored_kv_heads(self) -> int:
        """Number of KV heads in all files together, with repetitions."""
        return self.config.n_kv_heads * self.kv_repeats

    def axis(self, weight: Weight) -> int | None:
        """Return the dim along which the weight is split; None if each rank holds all of it."""
        return self.embedding_axis if weight.kind == EMBEDDING else next(iter(weight.kind.sharded_dims), None)

    def rectangle(self, weight: Weight, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the rows and columns that a rank holds, of the weight seen as a matrix."""
        rows, columns = matrix_shape(weight.shape(self.config))
        axis = self.axis(weight)
        if axis is None:
            return (0, rows), (0, columns)
        repeats = self.kv_repeats if "kv" in weight.kind.dims else 1
        part, parts = rank // repeats, self.n_ranks // repeats
        extent = (rows, columns)[axis] // parts
        window = (part * extent, (part + 1) * extent)
        return (window, (0, columns)) if axis == 0 else ((0, rows), window)

    def shape(self, weight: Weight, rank: int) -> tuple[int, ...]:
        """Return the shape of the weight in a rank's file."""
        (top, bottom), (left, right) = self.rectangle(weight, rank)
        return (right - left,) if len(weight.kind.dims) == 1 else (bottom - top, right - left)


def plan_meta(checkpoint: Checkpoint, dtype: Dtype | None, split: RankSplit) -> Plan:
    """Return the plan that writes a checkpoint of any format as Meta shards.

    Args:
        checkpoint: the source.
        dtype: dtype of the output; None keeps the dtype of each weight.
        split: how ranks split the weights.
    """
    config = split.config
    permutation = rope_permutation(checkpoint.row_order, "meta", config.head_dim)
    sources = checkpoint.weights
    if config.tied:  # Meta's files always hold the LM head
        sources = sources | {Weight(HEAD): sources[Weight(EMBEDDING)]}
    dtypes = {weight: dtype or sources[weight].dtype for weight in model_weights(config)}
    one_storage = config.tied and (split.n_ranks == 1 or split.embedding_axis == 0)
    shared = {Weight(HEAD).meta_name: Weight(EMBEDDING).meta_name} if one_storage else {}
    files = [f"consolidated.{rank:02d}.pth" for rank in range(split.n_ranks)]
    layouts = {
        file: lay_out_torch(
            ((weight.meta_name, dtypes[weight], split.shape(weight, rank)) for weight in dtypes),
            shared,
            file.removesuffix(".pth"),
        )
        for rank, file in enumerate(files)
    }

    def places(weight: Weight) -> Iterator[Place]:
        for rank, file in enumerate(files):
            name = weight.meta_name
            yield Place(file, name, layouts[file].offsets[name], *split.rectangle(weight, rank))

    tasks = [
        Task(
            weight.meta_name,
            sources[weight],
            dtypes[weight],
            tuple(places(weight)),
            permutation if weight.kind.permuted else None,
        )
        for weight in dtypes
        if weight.meta_name not in shared
    ]
    return Plan(layouts, tuple(tasks))
