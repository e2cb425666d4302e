"""What a Meta folder of so many ranks is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_convert.checkpoints.checkpoint import Checkpoint
from llama_convert.checkpoints.stored_weight import matrix_shape
from llama_convert.conversion.plan import Place, Plan, Task
from llama_convert.dtypes import Dtype
from llama_convert.errors import UsageError
from llama_convert.formats.torch_writer import lay_out_torch
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.rope import rope_permutation
from llama_convert.llama.weights import EMBEDDING, HEAD, Weight, model_weights


@dataclass(frozen=True)
class Cut:
    """How weights are cut over tensor-parallel ranks."""

    config: LlamaConfig
    n_ranks: int
    embedding_axis: int
    """The axis on which ranks cut the embedding: 1 up to Llama 2, 0 from Llama 3 on."""

    def __post_init__(self) -> None:
        """Refuse a cut that does not come out even.

        Raises:
            UsageError: with the numbers that do not divide.
        """
        config, n = self.config, self.n_ranks
        if n < 1:
            raise UsageError("BAD_MP", f"--mp {n}: there is one rank at least")
        wanted = {
            "heads": config.n_heads,
            "feed-forward columns (ffn_dim)": config.ffn_dim,
            "words (vocab_size)": config.vocab_size,
        }
        if self.embedding_axis == 1:
            wanted["embedding columns (dim)"] = config.dim
        uneven = [f"{number} {what}" for what, number in wanted.items() if number % n]
        if config.n_kv_heads % n and n % config.n_kv_heads:
            uneven.append(f"{config.n_kv_heads} KV heads (nor {n} ranks by them)")
        if uneven:
            message = f"--mp {n}: {n} ranks do not divide {', '.join(uneven)}"
            raise UsageError("BAD_MP", message)

    @property
    def kv_repeats(self) -> int:
        """How many neighbouring ranks hold the same KV head."""
        return max(1, self.n_ranks // self.config.n_kv_heads)

    @property
    def stored_kv_heads(self) -> int:
        """KV heads in all files together, repeated ones counted as often as they are stored."""
        return self.config.n_kv_heads * self.kv_repeats

    def axis(self, weight: Weight) -> int | None:
        """The axis on which the weight is cut; None: each rank has all of it."""
        return self.embedding_axis if weight.kind == EMBEDDING else next(iter(weight.kind.sharded_dims), None)

    def rectangle(self, weight: Weight, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The rows and the columns that a rank holds, of the weight seen as a matrix."""
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
        """What a rank's file says of it."""
        (top, bottom), (left, right) = self.rectangle(weight, rank)
        return (right - left,) if len(weight.kind.dims) == 1 else (bottom - top, right - left)


def plan_meta(checkpoint: Checkpoint, dtype: Dtype | None, cut: Cut) -> Plan:
    """The rank files of a checkpoint, whichever layout that has.

    Args:
        checkpoint: the source.
        dtype: what the weights become; None keeps each one's own.
        cut: how they are cut.
    """
    config = cut.config
    reorder = rope_permutation(checkpoint.format, "meta", config.head_dim)
    sources = checkpoint.weights
    if config.tied:  # the LM head stands in Meta's files all the same
        sources = sources | {Weight(HEAD): sources[Weight(EMBEDDING)]}
    dtypes = {weight: dtype or sources[weight].dtype for weight in model_weights(config)}
    one_storage = config.tied and (cut.n_ranks == 1 or cut.embedding_axis == 0)
    shared = {Weight(HEAD).meta_name: Weight(EMBEDDING).meta_name} if one_storage else {}
    files = [f"consolidated.{rank:02d}.pth" for rank in range(cut.n_ranks)]
    layouts = {
        file: lay_out_torch(
            ((weight.meta_name, dtypes[weight], cut.shape(weight, rank)) for weight in dtypes),
            shared,
            file.removesuffix(".pth"),
        )
        for rank, file in enumerate(files)
    }

    def places(weight: Weight) -> Iterator[Place]:
        for rank, file in enumerate(files):
            name = weight.meta_name
            yield Place(file, name, layouts[file].offsets[name], *cut.rectangle(weight, rank))

    tasks = [
        Task(
            weight.meta_name,
            sources[weight],
            dtypes[weight],
            tuple(places(weight)),
            reorder if weight.kind.permuted else None,
        )
        for weight in dtypes
        if weight.meta_name not in shared
    ]
    return Plan(layouts, tuple(tasks))
