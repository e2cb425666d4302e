"""How large the values of each kind of tensor are."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from llama_convert.verification.html_report.drawing import (
    ACCENT,
    INK,
    LAYER,
    Plot,
    is_narrow,
    label_foot,
    make_plot,
)
from llama_convert.verification.html_report.scale import ROW, Point, Scale, not_finite
from llama_convert.verification.report import CheckReport

COLUMNS_WIDE, COLUMNS_NARROW = 4, 2


def norms_plot(level: CheckReport) -> Plot:
    """A panel for each kind of tensor, over the layers; what no layer has stands in its middle."""
    rows = level.measures["norms"]
    values = [row["rms"] for row in rows]
    last = max((int(match[1]) for row in rows if (match := LAYER.search(row["tensor"]))), default=0)
    kinds: dict[str, list[Point]] = {}
    for row in rows:
        match = LAYER.search(row["tensor"])
        kind = row["tensor"].removesuffix(".weight").split(".")[-1]
        kinds.setdefault(kind, []).append((int(match[1]) if match else last / 2, row["rms"]))

    def draw(figure: Figure) -> None:
        columns = COLUMNS_NARROW if is_narrow(figure) else COLUMNS_WIDE
        lines = math.ceil(len(kinds) / columns)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        width, height = figure.get_size_inches() * 72
        figure.subplots_adjust(
            left=60 / width,
            right=1 - 6 / width,
            top=1 - 24 / height,
            bottom=40 / height,
            hspace=0.42,
            wspace=0.08,
        )
        for axes, (kind, points) in zip(panels.flat, kinds.items(), strict=False):
            Scale(axes, values).line(points, ACCENT, kind)
            axes.set_title(kind, loc="left", size=12, color=INK, pad=5, parse_math=False)
            label_foot(axes, "", {layer: str(layer) for layer in range(last + 1)})
            axes.set_xlim(-0.5 - last / 50, last + 0.5 + last / 50)
        for axes in panels.flat[len(kinds) :]:
            axes.set_axis_off()

    caption = "Root mean square of the values, layer by layer." + not_finite(values)
    extremes = any(value <= 0 for value in values) + (not all(map(math.isfinite, values)))
    panel = 116 + ROW * extremes
    wide, narrow = (64 + panel * math.ceil(len(kinds) / n) for n in (COLUMNS_WIDE, COLUMNS_NARROW))
    return make_plot("Size of the values of each kind of tensor", caption, draw, (wide, narrow))
