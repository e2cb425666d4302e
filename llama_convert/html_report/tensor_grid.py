"""Tensors arranged by layer and kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llama_convert.html_report.number_format import error_order

_LAYER = re.compile(r"(?:^|\.)layers\.(0|[1-9][0-9]{0,5})\.")
"""The layer in a tensor's name, in Meta and in Hugging Face format."""

MAX_KINDS, MAX_LAYERS, MAX_OTHERS = 40, 512, 40
"""Bounds of what is drawn; names come from files, so their number is not limited otherwise."""


@dataclass(frozen=True)
class TensorValue:
    """One figure of one tensor."""

    tensor: str
    value: float
    detail: str
    """What the tooltip shows after the tensor's name."""
    is_zero: bool = False
    """Whether the value is exactly zero: for a difference, all elements are equal."""


@dataclass(frozen=True)
class TensorGrid:
    """Tensors of layers by kind and layer, and the tensors outside the layers."""

    kinds: Sequence[str]
    """Labels of the rows, for example ``q_proj``, in order of appearance."""
    layers: Sequence[int]
    cells: dict[tuple[int, int], TensorValue]
    """By index of kind and index of layer; of several tensors in one place the worst."""
    others: Sequence[tuple[str, TensorValue]]
    """Label and tensor of those outside the layers: embedding, norm, LM head."""
    omitted: int
    """Tensors beyond the bounds."""


def tensor_grid(values: Iterable[TensorValue]) -> TensorGrid:
    """The tensors by kind and layer."""
    in_layers: dict[str, dict[int, TensorValue]] = {}
    others: list[tuple[str, TensorValue]] = []
    omitted = 0
    for value in values:
        match = _LAYER.search(value.tensor)
        if match is None:
            others.append((_without_weight(value.tensor), value))
            continue
        kind, layer = _without_weight(value.tensor[match.end() :]), int(match[1])
        if kind not in in_layers and len(in_layers) == MAX_KINDS:
            omitted += 1
            continue
        row = in_layers.setdefault(kind, {})
        row[layer] = max(row.get(layer, value), value, key=_order)
    every_layer = sorted({layer for row in in_layers.values() for layer in row})
    layers = every_layer[:MAX_LAYERS]
    column = {layer: index for index, layer in enumerate(layers)}
    omitted += sum(layer not in column for row in in_layers.values() for layer in row)
    return TensorGrid(
        kinds=_short_labels(list(in_layers)),
        layers=layers,
        cells={
            (row, column[layer]): value
            for row, by_layer in enumerate(in_layers.values())
            for layer, value in by_layer.items()
            if layer in column
        },
        others=list(
            zip(
                _short_labels([label for label, _ in others[:MAX_OTHERS]]),
                [value for _, value in others[:MAX_OTHERS]],
                strict=True,
            )
        ),
        omitted=omitted + len(others[MAX_OTHERS:]),
    )


def _order(value: TensorValue) -> tuple[bool, tuple[bool, float]]:
    return not value.is_zero, error_order(value.value)


def _without_weight(name: str) -> str:
    return name.removesuffix(".weight")


def _short_labels(names: Sequence[str]) -> list[str]:
    """The last component of each name; the whole name where several end in the same one."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]
