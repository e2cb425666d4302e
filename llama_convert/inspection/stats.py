"""Statistics of tensors: one pass over the values in blocks of rows.

16-bit dtypes are counted by bit pattern (65,536 counters); all statistics are exact functions of the counts.
Other dtypes are accumulated block by block: mean and standard deviation as in Chan, Golub and LeVeque (1979),
the histogram from counts of the upper 16 bits of a float32, and the 99.9th percentile, also exactly, from
the largest 0.1% of the magnitudes.  NaN and infinities are counted and excluded from everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_convert.checkpoints.row_reader import Bytes, as_float32, row_blocks, rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight, matrix_shape
from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype
from llama_convert.errors import LlamaConvertError, OutputError
from llama_convert.worker_threads import interruptible_threads

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BLOCK_SIZE = 1 << 20
WORKERS = 2
NEAR_ZERO = 1e-6
"""Values with a smaller magnitude count as near zero.

Weights of Llama have standard deviations of about 0.01 to 0.1, so these contribute nothing to a product.
"""
BINS = 16
_BIN_RANGE = 4.0
"""The inner edges of a histogram are within this many standard deviations of the mean."""
_PATTERNS = 1 << 16
_SUPPORTED = {"float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"}


@dataclass(frozen=True)
class Histogram:
    """Number of finite values between neighboring edges; the first and last edges are min and max."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Stats:
    """Statistics of the finite values of a tensor; None where there is no finite value."""

    elements: int
    """Number of all elements."""
    nan: int
    inf: int
    zeros: int
    near_zero: int
    """Number of elements with a magnitude below `NEAR_ZERO`, zeros included."""
    min: float | None
    max: float | None
    absmax: float | None
    """Max magnitude."""
    p999: float | None
    """99.9th percentile of the magnitudes, with linear interpolation as in `numpy.percentile`."""
    mean: float | None
    std: float | None
    """Population standard deviation (divided by n, not n - 1)."""
    histogram: Histogram | None


def is_supported(stored: StoredWeight) -> bool:
    """Whether statistics can be computed for its dtype: not for quantized and complex dtypes."""
    return stored.dtype.name in _SUPPORTED


def all_stats(
    tensors: Sequence[StoredWeight],
    files: SourceFiles,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Stats | LlamaConvertError]:
    """Statistics of each tensor, or the error that prevented reading it.

    Raises:
        OutputError: a file could not be read.
    """

    def work(stored: StoredWeight) -> Stats | LlamaConvertError:
        try:
            return tensor_stats(stored, files, progress=progress, stopped=stop.is_set)
        except OutputError:
            raise
        except LlamaConvertError as error:
            return error

    with interruptible_threads(WORKERS) as (pool, stop):
        return list(pool.map(work, tensors))


def tensor_stats(
    stored: StoredWeight,
    files: SourceFiles,
    block_size: int = BLOCK_SIZE,
    progress: Callable[[int], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Stats:
    """Statistics of one tensor; of its first blocks only, once ``stopped`` returns True.

    Raises:
        InputError: a file is damaged, or replicas differ.
        OutputError: a file could not be read.
    """
    rows, columns = matrix_shape(stored.shape)
    is_16_bit = stored.dtype in (FLOAT16, BFLOAT16)
    accumulator = _PatternCounts(stored.dtype) if is_16_bit else _RunningStats(stored.dtype, rows * columns)
    for part, (start, stop) in _blocks(stored, block_size):
        if stopped():
            break
        block = rows_of(files, part, start, stop)
        accumulator.add(block)
        progress(block.nbytes)
    return accumulator.stats()


def _blocks(stored: StoredWeight, block_size: int) -> Iterator[tuple[StoredWeight, tuple[int, int]]]:
    """Ranges of rows of about ``block_size`` bytes; longer rows are split by columns."""
    rows, columns = matrix_shape(stored.shape)
    width = max(1, block_size // stored.dtype.itemsize)
    for left in range(0, columns, width):
        part = stored.part((0, rows), (left, min(left + width, columns))) if columns > width else stored
        yield from ((part, block) for block in row_blocks(part, block_size))


class _PatternCounts:
    """Counts of 16-bit values by bit pattern."""

    def __init__(self, dtype: Dtype) -> None:
        self.counts: Counts = np.zeros(_PATTERNS, np.int64)
        self.values = _values_of_patterns(dtype)

    def add(self, block: Bytes) -> None:
        self.counts += np.bincount(block.view(np.uint16).reshape(-1), minlength=_PATTERNS)

    def stats(self) -> Stats:
        finite = np.isfinite(self.values) & (self.counts > 0)
        values, counts = self.values[finite], self.counts[finite]
        n = int(counts.sum())
        mean = float(values @ counts) / n if n else 0.0
        magnitudes, place = np.unique(np.abs(values), return_inverse=True)
        ranks = np.cumsum(np.bincount(place, weights=counts, minlength=len(magnitudes)))
        return _stats(
            elements=int(self.counts.sum()),
            nan=int(self.counts[np.isnan(self.values)].sum()),
            zeros=int(counts[values == 0].sum()),
            near_zero=int(counts[np.abs(values) < NEAR_ZERO].sum()),
            moments=_Moments(n, mean, float(np.square(values - mean) @ counts)),
            extremes=(float(values.min()), float(values.max())) if n else None,
            magnitude=lambda index: float(magnitudes[np.searchsorted(ranks, index, side="right")]),
            bins=(values, counts),
        )


class _RunningStats:
    """Accumulated statistics of values in any other dtype."""

    def __init__(self, dtype: Dtype, elements: int) -> None:
        self.dtype = dtype
        self.counts: Counts = np.zeros(_PATTERNS, np.int64)
        """By the upper 16 bits of the values as float32."""
        self.elements = self.nan = self.zeros = self.near_zero = 0
        self.moments = _Moments()
        self.extremes: tuple[float, float] | None = None
        self.largest = _LargestMagnitudes(elements)

    def add(self, block: Bytes) -> None:
        stored = (
            as_float32(block, FLOAT32) if self.dtype == FLOAT32 else block.view(np.dtype(self.dtype.name))
        )
        self.elements += stored.size
        self.nan += int(np.isnan(stored).sum())
        values = stored[np.isfinite(stored)].astype(np.float64)
        if not values.size:
            return
        magnitudes = np.abs(values)
        self.largest.add(magnitudes)
        self.zeros += int((values == 0).sum())
        self.near_zero += int((magnitudes < NEAR_ZERO).sum())
        low, high = float(values.min()), float(values.max())
        self.extremes = (
            (low, high)
            if self.extremes is None
            else (min(low, self.extremes[0]), max(high, self.extremes[1]))
        )
        mean = float(values.mean())
        self.moments += _Moments(values.size, mean, float(np.square(values - mean).sum()))
        with np.errstate(over="ignore"):
            bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
        # Subtracting one moves a negative bin's lower bound, where the lower 16 bits are zero, into the bin.
        upper = (bits - (values < 0)) >> 16
        self.counts += np.bincount(upper.astype(np.int64), minlength=_PATTERNS)

    def stats(self) -> Stats:
        seen = self.counts > 0
        lower_bounds = _values_of_patterns(BFLOAT16)
        lower_bounds[_PATTERNS // 2 : -1] = lower_bounds[_PATTERNS // 2 + 1 :]
        largest = self.largest.sorted()
        return _stats(
            elements=self.elements,
            nan=self.nan,
            zeros=self.zeros,
            near_zero=self.near_zero,
            moments=self.moments,
            extremes=self.extremes,
            magnitude=lambda index: float(largest[index - self.moments.n]),
            bins=(lower_bounds[seen], self.counts[seen]),
        )


class _LargestMagnitudes:
    """The largest 0.1% of the magnitudes of a tensor, which the 99.9th percentile is computed from.

    Holds at most 0.2% of the tensor's elements and one block.
    """

    def __init__(self, elements: int) -> None:
        self.limit = elements // 1000 + 2
        self.parts: list[Floats] = []
        self.held = 0
        self.threshold = -1.0
        """`limit` magnitudes at least this large are held."""

    def add(self, magnitudes: Floats) -> None:
        candidates = magnitudes[magnitudes > self.threshold]
        self.parts.append(candidates)
        self.held += candidates.size
        if self.held > 2 * self.limit:
            self._discard_small()

    def _discard_small(self) -> None:
        values = np.concatenate(self.parts)
        if values.size > self.limit:
            values = np.partition(values, -self.limit)[-self.limit :].copy()
            self.threshold = float(values[0])
        self.parts, self.held = [values], values.size

    def sorted(self) -> Floats:
        """In ascending order."""
        return np.sort(np.concatenate(self.parts)) if self.parts else np.empty(0)


@dataclass(frozen=True)
class _Moments:
    """Number of values, their mean, and the sum of squared distances from the mean."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def __add__(self, other: _Moments) -> _Moments:
        n = self.n + other.n
        if not n:
            return self
        distance = other.mean - self.mean
        return _Moments(
            n,
            self.mean + distance * other.n / n,
            self.squares + other.squares + distance * distance * self.n * other.n / n,
        )


def _values_of_patterns(dtype: Dtype) -> Floats:
    """Value of each 16-bit pattern, shape [65536]."""
    with np.errstate(invalid="ignore"):
        patterns = np.arange(_PATTERNS, dtype=np.uint16).view(np.uint8)
        return as_float32(patterns, dtype).astype(np.float64)


def _stats(
    elements: int,
    nan: int,
    zeros: int,
    near_zero: int,
    moments: _Moments,
    extremes: tuple[float, float] | None,
    magnitude: Callable[[int], float],
    bins: tuple[Floats, Counts],
) -> Stats:
    """Statistics from accumulated sums.

    Args:
        elements: number of elements.
        nan: number of NaNs.
        zeros: number of zeros.
        near_zero: number of magnitudes below `NEAR_ZERO`.
        moments: of the finite values.
        extremes: min and max of the finite values; None if there is no finite value.
        magnitude: returns a finite magnitude by its index in ascending order, from the 99.9th percentile on.
        bins: lower bounds of value ranges, and the number of finite values in each.
    """
    inf = elements - nan - moments.n
    if extremes is None:
        return Stats(elements, nan, inf, zeros, near_zero, *(None,) * 7)
    std = math.sqrt(moments.squares / moments.n)
    return Stats(
        elements=elements,
        nan=nan,
        inf=inf,
        zeros=zeros,
        near_zero=near_zero,
        min=extremes[0],
        max=extremes[1],
        absmax=max(abs(bound) for bound in extremes),
        p999=_percentile(moments.n, magnitude),
        mean=moments.mean,
        std=std,
        histogram=_histogram(*bins, extremes, moments.mean, std),
    )


def _percentile(n: int, magnitude: Callable[[int], float]) -> float:
    """99.9th percentile of ``n`` magnitudes, interpolated linearly between neighbors."""
    index, thousandths = divmod((n - 1) * 999, 1000)
    low = magnitude(index)
    return low + (magnitude(index + 1) - low) * thousandths / 1000 if thousandths else low


def _histogram(
    values: Floats, counts: Counts, extremes: tuple[float, float], mean: float, std: float
) -> Histogram:
    """Bins of equal width around the mean; the outermost bins extend to min and max.

    Inner edges are rounded to 16-bit numbers, so that all values with the same upper 16 bits are on the same
    side of each edge.
    """
    low, high = extremes
    if low == high:
        return Histogram((low, high), (int(counts.sum()),))
    inner = np.linspace(max(low, mean - _BIN_RANGE * std), min(high, mean + _BIN_RANGE * std), BINS + 1)[1:-1]
    bits = inner.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    inner = bits.view(np.float32).astype(np.float64)
    inner = np.unique(inner[(inner > low) & (inner < high)])
    place = np.searchsorted(inner, values, side="right")
    totals = np.bincount(place, weights=counts, minlength=len(inner) + 1)
    return Histogram((low, *inner.tolist(), high), tuple(int(total) for total in totals))
