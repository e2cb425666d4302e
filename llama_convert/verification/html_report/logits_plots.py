"""How far what both sides compute is apart: layer by layer, and token by token."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llama_convert.verification.html_report.drawing import (
    ACCENT,
    BAD,
    SECOND,
    SOFT,
    Plot,
    add_legend,
    axes_in,
    is_narrow,
    label_foot,
    make_plot,
)
from llama_convert.verification.html_report.numbers import badness, format_figure
from llama_convert.verification.html_report.scale import Scale, not_finite
from llama_convert.verification.report import CheckReport

SERIES = {"divergence": (SOFT, "^"), "local": (ACCENT, "o"), "probe": (SECOND, "s")}
"""What is measured of each layer, with its colour and marker."""

LIMITED = ("local", "probe")
"""Those by which a layer is judged: both sides are given the same input."""


def layers_plot(level: CheckReport) -> Plot:
    """How far the layers are from the source's, each for itself and carried through."""
    rows: list[dict[str, Any]] = level.measures["layers"]
    limit = level.measures["threshold"]["probe"]
    values = [row[name] for row in rows for name in SERIES]
    wrong = [row["layer"] for row in rows if not all(row[name] <= limit for name in LIMITED)]

    def draw(figure: Figure) -> None:
        narrow = is_narrow(figure)
        axes = axes_in(figure, top=56 if narrow else 40)
        scale = Scale(axes, [*values, limit])
        for name, (colour, marker) in SERIES.items():
            scale.line([(row["layer"], row[name]) for row in rows], colour, name, marker)
        scale.limit(limit, f"limit of {' and '.join(LIMITED)}")
        label_foot(axes, "layer", {row["layer"]: str(row["layer"]) for row in rows})
        if wrong:
            _mark(axes, wrong[0])
        add_legend(axes, 2 if narrow else 4)

    caption = f"Layer {wrong[0]} is the first above its limit." if wrong else "No layer is above its limit."
    caption += (
        " Both sides' layers are given the same: the source's text (local), or small random vectors (probe)."
        " Divergence is that of the text carried from layer to layer, where rounding adds up."
    )
    return make_plot("Difference of each layer", caption + not_finite(values), draw, (340, 320))


def _mark(axes: Axes, layer: int) -> None:
    """Mark the first layer above its limit, with words on its left, where the lines are still low."""
    low, high = axes.get_xlim()
    left = layer - low > (high - low) / 5
    axes.axvline(layer, color=BAD, linewidth=6, alpha=0.22)
    axes.annotate(
        f"layer {layer}",
        (layer, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-8 if left else 8, -2),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        color=BAD,
        weight="bold",
    )


def kl_plot(level: CheckReport) -> Plot:
    """How far the predictions are from the source's at each position."""
    kl: list[float] = level.measures["kl"]
    positions: list[int] = level.measures["positions"]
    limit = level.measures["threshold"]["max_kl"]
    worst, position = max(zip(kl, positions, strict=True), key=lambda pair: badness(pair[0]))

    def draw(figure: Figure) -> None:
        axes = axes_in(figure, top=40)
        scale = Scale(axes, [*kl, limit])
        scale.line(list(enumerate(kl)), ACCENT, "KL")
        scale.limit(limit, f"limit {format_figure(limit)}")
        label_foot(axes, "position", {index: f"{position:,}" for index, position in enumerate(positions)})
        add_legend(axes, 2)

    caption = f"The worst, {format_figure(worst)}, is at position {position:,}." + not_finite(kl)
    return make_plot("KL divergence of the predictions", caption, draw, (280, 280))
