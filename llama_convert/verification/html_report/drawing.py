"""How every plot is made: its style, its size, and its text as an element of the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDE, NARROW = 880, 380
"""Pixels across at which a plot is drawn; the page scales it from there."""

LAYER = re.compile(r"\blayers\.(\d+)\.")
"""What a tensor's name says of its layer, in either layout."""

# Stand-ins in what matplotlib draws for colours that the style sheet knows by name.
COLOURS = {
    name: f"#00000{number}"
    for number, name in enumerate(("ink", "soft", "line", "accent", "second", "good", "bad"), start=1)
}
INK, SOFT, LINE, ACCENT, SECOND, GOOD, BAD = COLOURS.values()

STYLE: dict[Any, object] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "font.size": 13,
    "grid.color": LINE,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0,
    "legend.fontsize": 13,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "path.simplify": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Plot:
    """A picture for wide screens, the same for narrow ones, and in words what they show."""

    title: str
    caption: str
    wide: str
    narrow: str
    numbered: Sequence[tuple[str, str]] = ()
    """What its numerals stand for, from 1 on: a tensor's name and what is said of it."""


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib as it comes, whatever its user's own settings are, with ours on top."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def make_plot(
    title: str,
    caption: str,
    draw: Callable[[Figure], None],
    heights: tuple[int, int],
    numbered: Sequence[tuple[str, str]] = (),
) -> Plot:
    """Draw a plot in both widths, each with its own of ``heights``."""
    label = f"{title}. {caption}"
    return Plot(
        title, caption, _svg(label, draw, WIDE, heights[0]), _svg(label, draw, NARROW, heights[1]), numbered
    )


def _svg(label: str, draw: Callable[[Figure], None], width: int, height: int) -> str:
    """What ``draw`` draws, as an element to be put into HTML."""
    matplotlib.rcParams["svg.hashsalt"] = f"{label} {width}"  # so that no two plots share ids
    figure = Figure(figsize=(width / 72, height / 72))
    draw(figure)
    text = StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"\s*<defs>\s*<style.*?</defs>", "", text.getvalue(), count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{body}'


def is_narrow(figure: Figure) -> bool:
    """Whether ``figure`` is the one for narrow screens."""
    return bool(figure.get_figwidth() * 72 < WIDE)


def axes_in(figure: Figure, top: int) -> Axes:
    """The only axes of a figure, with ``top`` pixels above them."""
    width, height = figure.get_size_inches() * 72
    left, right, bottom = 64, 10, 42
    return figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )


def label_foot(axes: Axes, label: str, ticks: dict[int, str]) -> None:
    """Label places along the foot, as many as there is room for at even distances."""
    column = 20 + 8 * max(map(len, ticks.values()), default=0)
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if len(ticks) * column <= axes.bbox.width * step)
    shown = dict(list(ticks.items())[::step])
    axes.set_xticks(list(shown), list(shown.values()))
    axes.set_xlabel(label)


def add_legend(axes: Axes, columns: int) -> None:
    """Say above the axes what each line is."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=columns, columnspacing=1.6)
