"""Compares the files of tensor-parallel ranks: merged sizes, replicated KV heads, copied files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from llama_convert.checkpoints.params import Params
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.tensor_set import Tensor, as_stored_weight
from llama_convert.errors import InputError
from llama_convert.llama.releases import released_kv_heads
from llama_convert.llama.weights import Weight

Rank = dict[str, Tensor]
"""The tensors of one rank, by their names in Meta format."""


@dataclass(frozen=True)
class MergedSizes:
    """Sizes of the merged weights, by the shapes on one rank."""

    q_rows: int
    kv_rows: int
    ffn_dim: int
    vocab_size: int


def merged_sizes(params: Params, tensors: dict[Weight, Tensor], n_ranks: int) -> MergedSizes:
    """Sizes of the merged weights.

    Raises:
        InputError: they do not match ``params.json``.
    """
    by_kind = {weight.kind.meta: tensor for weight, tensor in tensors.items() if weight.layer in (None, 0)}

    def rows(name: str) -> int:
        return by_kind[name].shape[0] * n_ranks

    wq = by_kind["layers.{layer}.attention.wq.weight"]
    q_rows = rows("layers.{layer}.attention.wq.weight")
    if q_rows != params.dim:
        raise _wrong_rank_count(params, wq, q_rows, n_ranks)
    vocabulary = "output.weight"
    if vocabulary not in by_kind:  # tied: the embedding is the LM head, sharded along either dimension
        vocabulary = "tok_embeddings.weight"
    sharded_rows = by_kind[vocabulary].shape[1] == params.dim
    sizes = MergedSizes(
        q_rows,
        rows("layers.{layer}.attention.wk.weight"),
        rows("layers.{layer}.feed_forward.w1.weight"),
        rows(vocabulary) if sharded_rows else by_kind[vocabulary].shape[0],
    )
    if params.vocab_size not in (None, sizes.vocab_size):
        raise InputError(
            "PARAMS_TENSORS_DISAGREE",
            "The total number of rows does not match vocab_size in params.json.",
            file=wq.file,
            tensor=vocabulary,
            expected=params.vocab_size,
            found=sizes.vocab_size,
        )
    if params.ffn_dim not in (None, sizes.ffn_dim):
        settings = f"multiple_of {params.multiple_of}, ffn_dim_multiplier {params.ffn_dim_multiplier}"
        settings = "hidden_dim" if params.hidden_dim else settings
        raise InputError(
            "PARAMS_TENSORS_DISAGREE",
            f"The total number of rows does not match params.json ({settings}).",
            file=wq.file,
            tensor="layers.0.feed_forward.w1.weight",
            expected=params.ffn_dim,
            found=sizes.ffn_dim,
        )
    return sizes


def _wrong_rank_count(params: Params, wq: Tensor, q_rows: int, n_ranks: int) -> InputError:
    if params.dim % wq.shape[0] == 0 and q_rows < params.dim:
        needed = params.dim // wq.shape[0]
        message = (
            f"{needed - n_ranks} of {needed} shards are missing: "
            f"there are {q_rows} of {params.dim} rows of wq."
        )
        hint = "Download the missing files."
        return InputError("RANKS_MISSING", message, file=wq.file.parent, hint=hint)
    return InputError(
        "TENSOR_SHAPE",
        f"The total number of rows of wq in {n_ranks} shard{'s' * (n_ranks > 1)} does not match params.json.",
        file=wq.file,
        tensor=wq.name,
        expected=params.dim,
        found=q_rows,
    )


def kv_repeats(files: SourceFiles, params: Params, ranks: list[Rank], sizes: MergedSizes) -> int:
    """Number of ranks that store each KV head: with more ranks than KV heads, adjacent ranks have replicas.

    405B in 16 ranks stores 16 KV heads, of which 8 are distinct, and n_kv_heads in its ``params.json`` is 16,
    so the weights must be compared: those of layer 0 here, those of all layers when they are copied.  For
    placeholders of zeros, the table of releases decides.  If all heads are equal, they are not merged.

    Raises:
        InputError: the shape does not match ``params.json``.
    """
    head_dim = params.dim // params.n_heads
    declared = params.n_kv_heads or params.n_heads
    stored, rest = divmod(sizes.kv_rows, head_dim)
    wk = ranks[0]["layers.0.attention.wk.weight"]
    if rest or stored % declared or params.n_heads % stored:
        raise InputError(
            "TENSOR_SHAPE",
            f"The total number of rows does not match {declared} KV heads of {head_dim} rows.",
            file=wk.file,
            tensor=wk.name,
            expected=declared * head_dim,
            found=sizes.kv_rows,
        )
    if stored != declared:
        return stored // declared
    if len(ranks) == 1 or stored == 1:
        return 1
    checksums = (
        checksum
        for rank in ranks
        for checksum in _head_checksums(files, rank["layers.0.attention.wk.weight"], head_dim)
    )
    heads = [next(checksums), next(checksums)]
    if heads[0] is None:
        released = released_kv_heads(params.dim, params.n_layers, params.n_heads, sizes.ffn_dim)
        return stored // released if released and stored % released == 0 else 1
    if heads[0] != heads[1]:
        return 1
    heads += checksums
    for repeats in (n for n in range(stored // 2, 1, -1) if stored % n == 0):
        groups = [set(heads[start : start + repeats]) for start in range(0, stored, repeats)]
        distinct = set().union(*groups)
        if all(len(group) == 1 for group in groups) and len(distinct) == len(groups):
            return repeats
    return 1


def _head_checksums(files: SourceFiles, tensor: Tensor, head_dim: int) -> Iterator[bytes | None]:
    """A checksum of the rows of each head, read lazily; None for a placeholder of zeros."""
    from llama_convert.checkpoints.row_reader import rows_of  # imports numpy, which is slow

    weight = as_stored_weight(tensor)
    for start in range(0, tensor.shape[0], head_dim):
        rows = rows_of(files, weight, start, start + head_dim)
        yield xxhash.xxh3_128_digest(rows.data) if rows.any() else None


def check_ranks_match(files: tuple[Path, ...], ranks: list[Rank]) -> None:
    """Check that all ranks have the names, shapes and dtypes of the first one.

    Raises:
        InputError: they do not.
    """
    first, first_file = ranks[0], files[0].name
    for file, rank in zip(files[1:], ranks[1:], strict=True):
        for name in [*first, *rank]:
            if name not in rank:
                message = f"Missing in this shard, but {first_file} has it."
                raise InputError("RANKS_NAMES", message, file=file, tensor=name)
            if name not in first:
                message = f"Not in {first_file}, but all shards must have the same tensors."
                raise InputError("RANKS_NAMES", message, file=file, tensor=name)
            expected, tensor = first[name], rank[name]
            if expected.shape != tensor.shape:
                raise InputError(
                    "RANKS_SHAPES",
                    f"The shape differs from that in {first_file}.",
                    file=file,
                    tensor=name,
                    hint="Use shards of one release only. Compare their MD5s with checklist.chk.",
                    expected=list(expected.shape),
                    found=list(tensor.shape),
                )
            if expected.dtype != tensor.dtype:
                raise InputError(
                    "RANKS_DTYPES",
                    f"The dtype differs from that in {first_file}.",
                    file=file,
                    tensor=name,
                    expected=expected.dtype,
                    found=tensor.dtype,
                )


def check_no_copies(files: SourceFiles, paths: tuple[Path, ...], ranks: list[Rank]) -> None:
    """Check that no rank file is a copy of another: each rank has different rows of w1 of layer 0.

    Compares their CRC-32s and first rows.  A row of equal values is a placeholder.

    Raises:
        InputError: a rank file is a copy.
    """
    from llama_convert.checkpoints.row_reader import rows_of  # imports numpy, which is slow

    seen: dict[object, Path] = {}
    for path, rank in zip(paths, ranks, strict=True):
        w1 = rank["layers.0.feed_forward.w1.weight"]
        weight = as_stored_weight(w1)
        slab = weight.pieces[0].slab
        storage = slab.storage
        place = (
            storage.crc32, storage.size, slab.offset - storage.offset, slab.row_stride, slab.column_stride
        )  # fmt: skip
        row = rows_of(files, weight, 0, 1)
        if (row.reshape(-1, w1.dtype.itemsize) == row[0, : w1.dtype.itemsize]).all():
            return
        first = seen.setdefault((place, row.tobytes()), path)
        if first is not path:
            message = f"Has the same weights as {first.name} (a copy?)."
            raise InputError("RANKS_DUPLICATE", message, file=path, tensor=w1.name, hint="Download it again.")
