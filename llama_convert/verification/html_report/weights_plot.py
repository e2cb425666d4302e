"""How far each tensor is from its counterpart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llama_convert.verification.html_report.drawing import (
    ACCENT,
    BAD,
    GOOD,
    LAYER,
    Plot,
    axes_in,
    label_foot,
    make_plot,
)
from llama_convert.verification.html_report.numbers import badness, format_figure
from llama_convert.verification.html_report.scale import Point, Scale, not_finite
from llama_convert.verification.report import CheckReport, Status

LABELLED = 5
"""How many of the tensors that differ are named."""


def weights_plot(level: CheckReport) -> Plot:
    """Every tensor in the order of the model: a block where it is identical, a stem where it differs."""
    rows: list[dict[str, Any]] = level.measures["tensors"]
    points = [(float(place), float(row["relative_difference"])) for place, row in enumerate(rows)]
    different = [point for point, row in zip(points, rows, strict=True) if row["different"]]
    same = [x for (x, _), row in zip(points, rows, strict=True) if not row["different"]]
    worst = sorted(different, key=lambda point: badness(point[1]), reverse=True)[:LABELLED]
    colour = BAD if level.status is Status.FAIL else ACCENT

    def draw(figure: Figure) -> None:
        axes = axes_in(figure, top=22 if different else 4)
        frame = [1e-6, 1.0] if different else []
        scale = Scale(axes, [0.0, *frame, *(value for _, value in different)], "identical")
        axes.set_xlim(-0.5 - len(rows) / 100, len(rows) - 0.5 + len(rows) / 100)
        label_foot(axes, "tensors in the model's order, by layer", _layer_starts(rows))
        pitch = axes.bbox.width / len(rows)
        half = 0.35 if pitch > 6 else 0.6  # where there is no room for gaps, neighbours run together
        blocks = [end for x in same for end in (x - half, x + half, math.nan)]
        axes.plot(blocks, [scale.zeros] * len(blocks), color=GOOD, linewidth=8, solid_capstyle="butt")
        finite = [(x, scale.place(value)) for x, value in different if math.isfinite(value)]
        axes.plot(
            [x for place, _ in finite for x in (place, place, math.nan)],
            [y for _, top in finite for y in (scale.zeros, top, math.nan)],
            color=colour,
            linewidth=min(max(pitch * 0.6, 0.8), 2),
        )
        heads = [x for x, _ in finite], [y for _, y in finite]
        axes.plot(*heads, "o", color=colour, markersize=min(max(pitch, 2), 5))
        scale.crosses(different)
        _number(axes, [(x, scale.place(value)) for x, value in worst])

    if different:
        caption = f"{len(different):,} of {len(rows):,} tensors differ."
    else:
        caption = f"All {len(rows):,} tensors are identical."
    caption += not_finite(value for _, value in different)
    heights = (300, 280) if different else (84, 84)
    numbered = [(rows[int(x)]["tensor"], _difference(rows[int(x)])) for x, _ in worst]
    return make_plot("Relative difference of each tensor", caption, draw, heights, numbered)


def _difference(row: dict[str, Any]) -> str:
    """How a tensor differs."""
    relative, largest = (format_figure(row[name]) for name in ("relative_difference", "max_difference"))
    count = f"{row['different']:,} of {row['elements']:,} values differ"
    return f"relative difference {relative}; largest {largest}; {count}"


def _layer_starts(rows: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Where the first tensor of each layer is, and the layer's number."""
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        if match := LAYER.search(row["tensor"]):
            first.setdefault(match[1], index)
    return {index: layer for layer, index in first.items()}


def _number(axes: Axes, points: Sequence[Point]) -> None:
    """Number ``points`` from 1 on, each above its point and clear of those before it."""
    taken: list[Point] = []
    for number, point in enumerate(points, start=1):
        x, y = axes.transData.transform(point)
        offset = 8
        while any(abs(x - other_x) < 11 and abs(y + offset - other_y) < 13 for other_x, other_y in taken):
            offset += 13
        taken.append((x, y + offset))
        axes.annotate(str(number), point, (0, offset), textcoords="offset points", ha="center", weight="bold")
