"""Color classes for values over many orders of magnitude."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llama_convert.html_report.number_format import format_number, format_power
from llama_convert.html_report.tensor_grid import TensorValue

N_COLORS = 9
"""The style sheet defines ``--heat-0`` to ``--heat-8``."""

_MIN_SPAN = 0.1
"""Of a scale, in powers of ten: nearly equal values have nearly the same color."""
_MAX_EXPONENT = math.log10(sys.float_info.max)


@dataclass(frozen=True)
class ColorScale:
    """Edges between neighboring colors, ascending, and their labels."""

    edges: Sequence[float]
    labels: Sequence[str]
    zero_label: str
    """What exactly zero means."""

    def color(self, value: TensorValue) -> str:
        """The CSS class of a value: ``zero``, ``heat0`` to ``heat8``, or ``nan`` for NaN and infinity."""
        if value.is_zero:
            return "zero"
        if not math.isfinite(value.value):
            return "nan"
        return f"heat{bisect_right(self.edges, value.value)}"


def decades(zero_label: str) -> ColorScale:
    """One color per power of ten from 10⁻⁷ to 1, the same for all reports: the scale of relative errors."""
    exponents = range(-N_COLORS + 2, 1)
    return ColorScale(
        [10.0**e for e in exponents], [format_power(e) if e else "1" for e in exponents], zero_label
    )


def spanning(values: Iterable[TensorValue]) -> ColorScale:
    """Colors of equal ratio from the min to the max positive value."""
    logs = [math.log10(v.value) for v in values if not v.is_zero and 0 < v.value < math.inf]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    if high - low < _MIN_SPAN:
        middle = (low + high) / 2
        low, high = middle - _MIN_SPAN / 2, min(middle + _MIN_SPAN / 2, _MAX_EXPONENT)
    edges = [10 ** (low + (high - low) * index / N_COLORS) for index in range(1, N_COLORS)]
    return ColorScale(edges, [format_number(edge) for edge in edges], "0")
