"""How much there is of what: parameters, dtypes, and kinds of weights with their cuts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from llama_convert.checkpoints.stored_weight import StoredWeight
from llama_convert.inspection.opened import Entry, Opened
from llama_convert.inspection.records import DtypeCount, Kind, Parameters
from llama_convert.llama.weights import EMBEDDING, HEAD, LLAMA


def count_parameters(opened: Opened, *, tied: bool) -> Parameters:
    """Parameters by where they belong; with `tied` the LM head is the embedding once more."""
    by_kind: Counter[str] = Counter()
    by_layer: Counter[int] = Counter()
    other = 0
    tied = tied or _one_storage(opened.entries)
    for entry in opened.entries:
        if entry.weight is None:
            other += 0 if entry.recomputed else entry.numel
        elif entry.weight.layer is not None:
            by_layer[entry.weight.layer] += entry.numel
        elif not (tied and entry.weight.kind == HEAD):
            by_kind[entry.weight.kind.meta] += entry.numel
    layers = set(by_layer.values())
    norm = sum(by_kind[kind.meta] for kind in LLAMA[1:-1])
    return Parameters(
        total=by_kind.total() + by_layer.total() + other,
        embedding=by_kind[EMBEDDING.meta],
        layers=by_layer.total(),
        per_layer=layers.pop() if len(layers) == 1 else None,
        norm=norm,
        head=by_kind[HEAD.meta],
        other=other,
        whole=opened.side.checkpoint is not None and not opened.problems,
    )


def _one_storage(entries: Iterable[Entry]) -> bool:
    """Whether embedding and LM head are the same bytes."""
    ends = {
        entry.weight.kind: {(slab.storage, slab.offset) for slab in entry.slabs}
        for entry in entries
        if entry.weight and entry.weight.kind in (EMBEDDING, HEAD)
    }
    return len(ends) == 2 and ends[EMBEDDING] == ends[HEAD]


def count_dtypes(entries: Iterable[Entry]) -> tuple[DtypeCount, ...]:
    """What is stored in each dtype, the most bytes first."""
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in entries:
        tensors[entry.stored.dtype.name] += 1
        sizes[entry.stored.dtype.name] += entry.stored.nbytes
    return tuple(DtypeCount(name, tensors[name], size) for name, size in sizes.most_common())


def kinds_of(opened: Opened) -> tuple[Kind, ...]:
    """Tensors of one kind, shape, dtype and cut counted together, in the order of the model."""
    counts: Counter[tuple[str, tuple[int, ...], str, int | None, int]] = Counter()
    for entry in opened.entries:
        cut, copies = _cut(entry.stored) if entry.slices == 1 else (None, entry.slices)
        counts[_pattern(entry, opened.layout), entry.shape, entry.stored.dtype.name, cut, copies] += 1
    return tuple(
        Kind(name, count, shape, dtype, cut, copies)
        for (name, shape, dtype, cut, copies), count in counts.items()
    )


def _pattern(entry: Entry, layout: str) -> str:
    if entry.weight:
        return entry.weight.kind.meta if layout == "meta" else entry.weight.kind.huggingface
    return re.sub(r"(?<=\.)\d+(?=\.)", "{layer}", entry.name)


def _cut(stored: StoredWeight) -> tuple[int | None, int]:
    """The axis that its pieces lie along, and how many ranks hold each."""
    copies = 1 + len(stored.pieces[0].replicas)
    if any(piece.column for piece in stored.pieces):
        return 1, copies
    return (0 if len(stored.pieces) > 1 else None), copies
