"""A scale that has a place for every number there is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes

from llama_convert.verification.html_report.drawing import BAD, INK
from llama_convert.verification.html_report.numbers import power

Point = tuple[float, float]

ROW = 24
"""Pixels from one line of a scale to the next, at least."""


class Scale:
    """Powers of ten up the side, with a row below them for zeros and one above for NaN and infinity."""

    def __init__(self, axes: Axes, values: Sequence[float], zero: str = "0") -> None:
        logs = [math.log10(value) for value in values if math.isfinite(value) and value > 0]
        low = math.floor(min(logs, default=0))
        high = max(math.ceil(max(logs, default=0)), low + 1)
        has_zeros = any(value <= 0 for value in values)
        has_infinities = not all(map(math.isfinite, values))
        room = max(axes.bbox.height - ROW * (has_zeros + has_infinities), ROW)
        row = (high - low) * ROW / room
        self.axes, self.zeros, self.infinities = axes, low - row, high + row
        ticks = range(low, high + 1, math.ceil((high - low) * ROW / room)) if logs else ()
        rows = {float(tick): power(tick) for tick in ticks}
        rows |= {self.zeros: zero} if has_zeros else {}
        rows |= {self.infinities: "NaN, ∞"} if has_infinities else {}
        axes.set_yticks(list(rows), list(rows.values()))
        margin = (high - low) * 0.06
        axes.set_ylim(min(rows) - margin, max(*rows, high if logs else self.zeros) + margin)
        axes.grid(axis="y", linewidth=1)

    def place(self, value: float) -> float:
        """How high ``value`` stands."""
        if not math.isfinite(value):
            return self.infinities
        return math.log10(value) if value > 0 else self.zeros

    def line(self, points: Sequence[Point], colour: str, label: str, marker: str = "o") -> None:
        """Draw ``points`` as a line; where one is no number it breaks, and a cross is in the row above."""
        has_room = self.axes.bbox.width / len(points) > 5
        broken = not all(math.isfinite(value) for _, value in points)
        self.axes.plot(
            [x for x, _ in points],
            [self.place(value) if math.isfinite(value) else math.nan for _, value in points],
            color=colour,
            label=label,
            marker=marker if has_room or broken else "",
            markersize=4,
        )
        self.crosses(points)

    def crosses(self, points: Sequence[Point]) -> None:
        """Mark those that are NaN or infinite."""
        where = [x for x, value in points if not math.isfinite(value)]
        heights = [self.infinities] * len(where)
        self.axes.plot(where, heights, "x", color=BAD, markersize=7, markeredgewidth=2)

    def limit(self, limit: float, label: str) -> None:
        """Draw a line that was not to be passed."""
        self.axes.axhline(self.place(limit), color=INK, linewidth=1.2, linestyle=(0, (5, 4)), label=label)


def not_finite(values: Iterable[float]) -> str:
    """A sentence on the values that are no numbers; empty where all are."""
    count = sum(not math.isfinite(value) for value in values)
    return f" NaN or infinite: {count:,}, crosses on the upper edge." if count else ""
