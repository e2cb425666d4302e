"""What figures have in common: their width, labels and ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH = 880
"""Width of every figure's view box; at this width a unit is a pixel."""
LINE_HEIGHT = 16
_CHARACTER = 7.6
"""Room for a character of a 13 px label; wider than the average of common sans-serif fonts."""
_MAX_LABEL = 32


@dataclass(frozen=True)
class Label:
    """Text at a place, vertically centered."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    soft: bool = False
    """Whether it is in the weaker color of axes."""


def text_width(text: str) -> float:
    """An upper estimate of a label's width."""
    return len(text) * _CHARACTER


def truncated(text: str) -> str:
    """At most `_MAX_LABEL` characters."""
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"


def thinned(ticks: Sequence[tuple[float, str]], pitch: float) -> list[tuple[float, str]]:
    """Every first, second, fifth, tenth, ... tick, so that the labels do not overlap.

    Args:
        ticks: position and label of each.
        pitch: the distance between neighbors.
    """
    room = 10 + max((text_width(label) for _, label in ticks), default=0.0)
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if pitch * step >= room or step >= len(ticks))
    return list(ticks[::step])


def non_finite_note(values: Iterable[float]) -> str:
    """A sentence on how many values are NaN or infinite, to append to a caption; empty if none is."""
    count = sum(not math.isfinite(value) for value in values)
    return f" NaN or infinite: {count:,}." if count else ""
