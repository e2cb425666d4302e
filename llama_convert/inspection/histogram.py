"""How values are spread, told from counts of runs of values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BINS = 16
_WIDE = 4.0
"""The inner edges of a histogram lie within so many standard deviations; the outer bins hold the rest."""


@dataclass(frozen=True)
class Histogram:
    """How many finite values lie between neighbouring edges; the first and the last are the extremes."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram_of(
    values: Floats, counts: Counts, extremes: tuple[float, float], mean: float, std: float
) -> Histogram:
    """Bins of one width around the mean; the outermost reach to the extremes.

    Inner edges are numbers of 16 bits, so that of a run of values with one upper half the lowest tells on
    which side of an edge all of them lie.
    """
    low, high = extremes
    if low == high:
        return Histogram((low, high), (int(counts.sum()),))
    inner = np.linspace(max(low, mean - _WIDE * std), min(high, mean + _WIDE * std), BINS + 1)[1:-1]
    bits = inner.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    inner = bits.view(np.float32).astype(np.float64)
    inner = np.unique(inner[(inner > low) & (inner < high)])
    place = np.searchsorted(inner, values, side="right")
    totals = np.bincount(place, weights=counts, minlength=len(inner) + 1)
    return Histogram((low, *inner.tolist(), high), tuple(int(total) for total in totals))
