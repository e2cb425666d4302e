"""Summaries of a checkpoint's tensors: parameters, dtypes, kinds of weights, shared storages."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from llama_convert.checkpoints.stored_weight import StoredWeight
from llama_convert.formats.tensors import Storage
from llama_convert.inspection.opened import Entry, Opened
from llama_convert.inspection.records import DtypeCount, Parameters, WeightGroup
from llama_convert.llama.weights import EMBEDDING, HEAD, LLAMA


def count_parameters(opened: Opened, *, tied: bool) -> Parameters:
    """Numbers of parameters by part of the model.

    Args:
        opened: the checkpoint.
        tied: whether the LM head is the embedding; it is not counted then.
    """
    by_kind: Counter[str] = Counter()
    by_layer: Counter[int] = Counter()
    other = 0
    tied = tied or _head_shares_storage(opened.entries)
    for entry in opened.entries:
        if entry.weight is None:
            other += 0 if entry.recomputed else entry.numel
        elif entry.weight.layer is not None:
            by_layer[entry.weight.layer] += entry.numel
        elif not (tied and entry.weight.kind == HEAD):
            by_kind[entry.weight.kind.meta] += entry.numel
    layer_sizes = set(by_layer.values())
    norm = sum(by_kind[kind.meta] for kind in LLAMA[1:-1])
    return Parameters(
        total=by_kind.total() + by_layer.total() + other,
        embedding=by_kind[EMBEDDING.meta],
        layers=by_layer.total(),
        per_layer=layer_sizes.pop() if len(layer_sizes) == 1 else None,
        norm=norm,
        head=by_kind[HEAD.meta],
        other=other,
        whole=opened.input.checkpoint is not None and not opened.problems,
    )


def _head_shares_storage(entries: Iterable[Entry]) -> bool:
    """Whether embedding and LM head are the same bytes."""
    places = {
        entry.weight.kind: {(slab.storage, slab.offset) for slab in entry.slabs}
        for entry in entries
        if entry.weight and entry.weight.kind in (EMBEDDING, HEAD)
    }
    return len(places) == 2 and places[EMBEDDING] == places[HEAD]


def count_dtypes(entries: Iterable[Entry]) -> tuple[DtypeCount, ...]:
    """Number and size of the tensors of each dtype, largest size first."""
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in entries:
        tensors[entry.stored.dtype.name] += 1
        sizes[entry.stored.dtype.name] += entry.stored.nbytes
    return tuple(DtypeCount(name, tensors[name], size) for name, size in sizes.most_common())


def group_weights(opened: Opened) -> tuple[WeightGroup, ...]:
    """Tensors grouped by kind, shape, dtype and sharding, in model order."""
    counts: Counter[tuple[str, tuple[int, ...], str, int | None, int]] = Counter()
    for entry in opened.entries:
        dim, copies = _sharding(entry.stored) if entry.slices == 1 else (None, entry.slices)
        counts[_kind_name(entry, opened.format), entry.shape, entry.stored.dtype.name, dim, copies] += 1
    return tuple(
        WeightGroup(name, count, shape, dtype, dim, copies)
        for (name, shape, dtype, dim, copies), count in counts.items()
    )


def _kind_name(entry: Entry, checkpoint_format: str) -> str:
    if entry.weight:
        return entry.weight.kind.meta if checkpoint_format == "meta" else entry.weight.kind.huggingface
    return re.sub(r"(?<=\.)\d+(?=\.)", "{layer}", entry.name)


def _sharding(stored: StoredWeight) -> tuple[int | None, int]:
    """The dimension that is split over the ranks, and the number of ranks with the same rows."""
    copies = 1 + len(stored.pieces[0].replicas)
    if any(piece.column for piece in stored.pieces):
        return 1, copies
    return (0 if len(stored.pieces) > 1 else None), copies


def shared_storages(entries: Iterable[Entry]) -> tuple[tuple[str, ...], ...]:
    """Names of tensors that are views of the same storage; a group that every rank has is listed once."""
    names: dict[Storage, dict[str, None]] = defaultdict(dict)
    for entry in entries:
        for slab in entry.slabs:
            names[slab.storage][entry.name] = None
    return tuple(dict.fromkeys(tuple(group) for group in names.values() if len(group) > 1))
