"""What the values of a tensor are like: one pass in blocks of rows, in memory that no tensor exceeds.

Values of 16 bits are counted by their 65,536 bit patterns, from which every figure follows exactly.  Of wider
ones the upper 16 bits of a float32 are counted, which settles the histogram's bins; mean and deviation are
joined block by block (Chan, Golub and LeVeque 1979).  NaN and infinities are counted, and otherwise left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama_convert.checkpoints.row_reader import Bytes, as_float32, row_blocks, rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight, matrix_shape
from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype
from llama_convert.errors import LlamaConvertError, OutputError
from llama_convert.inspection.histogram import Counts, Floats, Histogram, histogram_of
from llama_convert.worker_threads import interruptible_threads

BLOCK_SIZE = 1 << 20
WORKERS = 2
_PATTERNS = 1 << 16
_COUNTABLE = {"float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"}


@dataclass(frozen=True)
class Stats:
    """What the values of a tensor are like; NaN and infinities count only as such."""

    elements: int
    nan: int
    inf: int
    zeros: int
    min: float | None
    """None: no value is finite."""
    max: float | None
    mean: float | None
    std: float | None
    """Of the values as they are, not of what they may be a sample of: divided by their number."""
    histogram: Histogram | None


def countable(stored: StoredWeight) -> bool:
    """Whether its values can be told; those of quantised and complex dtypes are not."""
    return stored.dtype.name in _COUNTABLE


def all_stats(
    tensors: Sequence[StoredWeight],
    files: SourceFiles,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Stats | LlamaConvertError]:
    """The figures of each tensor in turn, or why it cannot be read whole.

    Raises:
        OutputError: the machine could not read.
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
    """The figures of one tensor; of a part of it once it is ``stopped``.

    Raises:
        InputError: a file is damaged, or copies in it differ.
        OutputError: the machine could not read.
    """
    tally = _Patterns(stored.dtype) if stored.dtype in (FLOAT16, BFLOAT16) else _Values(stored.dtype)
    for part, (start, stop) in _blocks(stored, block_size):
        if stopped():
            break
        block = rows_of(files, part, start, stop)
        tally.add(block)
        progress(block.nbytes)
    return tally.stats()


def _blocks(stored: StoredWeight, block_size: int) -> Iterator[tuple[StoredWeight, tuple[int, int]]]:
    """Ranges of rows of about ``block_size`` bytes; a row that has more is split by columns."""
    rows, columns = matrix_shape(stored.shape)
    width = max(1, block_size // stored.dtype.itemsize)
    for left in range(0, columns, width):
        part = stored.part((0, rows), (left, min(left + width, columns))) if columns > width else stored
        yield from ((part, block) for block in row_blocks(part, block_size))


class _Patterns:
    """Counts of 16-bit values by their bits."""

    def __init__(self, dtype: Dtype) -> None:
        self.counts: Counts = np.zeros(_PATTERNS, np.int64)
        self.values = _meaning(dtype)

    def add(self, block: Bytes) -> None:
        self.counts += np.bincount(block.view(np.uint16).reshape(-1), minlength=_PATTERNS)

    def stats(self) -> Stats:
        finite = np.isfinite(self.values) & (self.counts > 0)
        values, counts = self.values[finite], self.counts[finite]
        n = int(counts.sum())
        mean = float(values @ counts) / n if n else 0.0
        return _stats(
            elements=int(self.counts.sum()),
            nan=int(self.counts[np.isnan(self.values)].sum()),
            zeros=int(counts[values == 0].sum()),
            moments=_Moments(n, mean, float(np.square(values - mean) @ counts)),
            extremes=(float(values.min()), float(values.max())) if n else None,
            bins=(values, counts),
        )


class _Values:
    """Moments and extremes of wider values, and counts of the upper half of their bits as float32."""

    def __init__(self, dtype: Dtype) -> None:
        self.dtype = dtype
        self.counts: Counts = np.zeros(_PATTERNS, np.int64)
        self.elements = self.nan = self.zeros = 0
        self.moments = _Moments()
        self.extremes: tuple[float, float] | None = None

    def add(self, block: Bytes) -> None:
        stored = (
            as_float32(block, FLOAT32) if self.dtype == FLOAT32 else block.view(np.dtype(self.dtype.name))
        )
        self.elements += stored.size
        self.nan += int(np.isnan(stored).sum())
        values = stored[np.isfinite(stored)].astype(np.float64)
        if not values.size:
            return
        self.zeros += int((values == 0).sum())
        low, high = float(values.min()), float(values.max())
        self.extremes = (
            (low, high)
            if self.extremes is None
            else (min(low, self.extremes[0]), max(high, self.extremes[1]))
        )
        mean = float(values.mean())
        self.moments += _Moments(values.size, mean, float(np.square(values - mean).sum()))
        with np.errstate(over="ignore"):
            bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # there is one zero now
        upper = (bits - (values < 0)) >> 16  # less one: a run includes its lower bound below zero too
        self.counts += np.bincount(upper.astype(np.int64), minlength=_PATTERNS)

    def stats(self) -> Stats:
        seen = self.counts > 0
        lowest = _meaning(BFLOAT16)
        lowest[_PATTERNS // 2 : -1] = lowest[_PATTERNS // 2 + 1 :]
        bins = (lowest[seen], self.counts[seen])
        return _stats(self.elements, self.nan, self.zeros, self.moments, self.extremes, bins)


@dataclass(frozen=True)
class _Moments:
    """Number, mean, and sum of squared distances from the mean."""

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


def _meaning(dtype: Dtype) -> Floats:
    """The number that each pattern of 16 bits stands for."""
    with np.errstate(invalid="ignore"):
        patterns = np.arange(_PATTERNS, dtype=np.uint16).view(np.uint8)
        return as_float32(patterns, dtype).astype(np.float64)


def _stats(
    elements: int,
    nan: int,
    zeros: int,
    moments: _Moments,
    extremes: tuple[float, float] | None,
    bins: tuple[Floats, Counts],
) -> Stats:
    inf = elements - nan - moments.n
    if extremes is None:
        return Stats(elements, nan, inf, zeros, None, None, None, None, None)
    std = math.sqrt(moments.squares / moments.n)
    histogram = histogram_of(*bins, extremes, moments.mean, std)
    return Stats(elements, nan, inf, zeros, *extremes, moments.mean, std, histogram)
