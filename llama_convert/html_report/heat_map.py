"""A figure of every tensor: a cell for each, layers from left to right, kinds from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

from llama_convert.html_report.color_scale import N_COLORS, ColorScale
from llama_convert.html_report.figure import (
    LINE_HEIGHT,
    WIDTH,
    Label,
    text_width,
    thinned,
    truncated,
)
from llama_convert.html_report.tensor_grid import TensorValue, tensor_grid

_ROW = 22
_MAX_COLUMN = 30
_CELL = 20
_SWATCH = 54


@dataclass(frozen=True)
class Cell:
    """A rectangle in the color of a value."""

    x: float
    y: float
    width: float
    height: float
    color: str
    title: str = ""
    """The tooltip."""


@dataclass(frozen=True)
class HeatMap:
    """Geometry in units of the figure's view box, `WIDTH` wide."""

    macro: ClassVar[str] = "heat_map"
    title: str
    caption: str
    height: float
    cells: Sequence[Cell]
    labels: Sequence[Label]


def heat_map(title: str, caption: str, values: Sequence[TensorValue], scale: ColorScale) -> HeatMap:
    """A figure of one value per tensor.

    Args:
        title: what the colors show.
        caption: what the reader should see first.
        values: tensors in the order of the model.
        scale: the colors.
    """
    grid = tensor_grid(values)
    cells: list[Cell] = []
    labels: list[Label] = []
    y = 2.0
    if grid.layers:
        kinds = [truncated(kind) for kind in grid.kinds]
        left = 14 + max(map(text_width, ["layer", *kinds]))
        pitch = min((WIDTH - left - 2) / len(grid.layers), _MAX_COLUMN)
        gap = 2 if pitch >= 12 else 1 if pitch >= 5 else 0
        for (row, column), value in sorted(grid.cells.items()):
            place = (left + column * pitch, y + row * _ROW)
            cells.append(_cell(place, (pitch - gap, _ROW - gap), value, scale))
        labels += [Label(left - 8, y + (row + 0.5) * _ROW, kind, "end") for row, kind in enumerate(kinds)]
        y += len(kinds) * _ROW + 10
        labels.append(Label(left - 8, y, "layer", "end", soft=True))
        ticks = [(left + (column + 0.5) * pitch, str(layer)) for column, layer in enumerate(grid.layers)]
        labels += [Label(x, y, text, "middle", soft=True) for x, text in thinned(ticks, pitch)]
        y += LINE_HEIGHT + 6
    x = 2.0
    for label, value in grid.others:
        name = truncated(label)
        width = _CELL + 8 + text_width(name) + 28
        if x > 2 and x + width > WIDTH:
            x, y = 2.0, y + _CELL + 6
        cells.append(_cell((x, y), (_CELL, _CELL), value, scale))
        labels.append(Label(x + _CELL + 8, y + _CELL / 2, name))
        x += width
    y += (_CELL + 18) if grid.others else 6
    legend = list(_legend(scale, y, {cell.color for cell in cells}))
    cells += [each for each in legend if isinstance(each, Cell)]
    labels += [each for each in legend if isinstance(each, Label)]
    if grid.omitted:
        caption += f" Not drawn: {grid.omitted:,} tensors."
    return HeatMap(title, caption, y + 40, cells, labels)


def _cell(
    place: tuple[float, float], size: tuple[float, float], value: TensorValue, scale: ColorScale
) -> Cell:
    x, y = (round(each, 2) for each in place)
    return Cell(x, y, round(size[0], 2), size[1], scale.color(value), f"{value.tensor}: {value.detail}")


def _legend(scale: ColorScale, y: float, colors: Set[str]) -> Iterator[Cell | Label]:
    """Swatches on one line, those outside the scale only if they are among ``colors``; labels below them."""
    middle, x = y + 8, 2.0
    if "zero" in colors:
        yield Cell(x, y, 24, 16, "zero")
        yield Label(x + 32, middle, scale.zero_label)
        x += 58 + text_width(scale.zero_label)
    for index in range(N_COLORS):
        yield Cell(x + index * _SWATCH, y, _SWATCH, 16, f"heat{index}")
    edges = [(x + (index + 1) * _SWATCH, label) for index, label in enumerate(scale.labels)]
    yield from (Label(at, y + 27, text, "middle", soft=True) for at, text in thinned(edges, _SWATCH))
    if "nan" in colors:
        x += N_COLORS * _SWATCH + 26
        yield Cell(x, y, 24, 16, "nan")
        yield Label(x + 32, middle, "NaN, ∞")
