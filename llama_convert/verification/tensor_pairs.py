"""Compares the tensors of two checkpoints exactly, or as a cast rounds them.

Shares no code with the conversion except reading bytes: rows are permuted with an index instead of a
transpose, and rounding is done on the bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.row_reader import Bytes, as_float32, row_blocks, rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight, matrix_shape
from llama_convert.dtypes import BFLOAT16, FLOAT16, Dtype
from llama_convert.llama.weights import EMBEDDING, HEAD, Weight
from llama_convert.worker_threads import interruptible_threads

Checkpoint = MetaCheckpoint | HuggingFaceCheckpoint

BLOCK_SIZE = 4 << 20
WORKERS = 2


@dataclass(frozen=True)
class TensorRows:
    """A stored weight, its rows permuted and then rounded as the other checkpoint should store them."""

    files: SourceFiles
    stored: StoredWeight
    dtype: Dtype
    order: npt.NDArray[np.int64] | None = None
    """For each row of a head, the row of the stored head that it is; None: rows are not permuted."""
    between: Dtype | None = None
    """A dtype to round to first."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return matrix_shape(self.stored.shape)

    @property
    def group_size(self) -> int:
        """Number of rows that are permuted among themselves."""
        return 1 if self.order is None else len(self.order)

    def through(self, between: Dtype) -> TensorRows:
        """The same rows, rounded to another dtype first."""
        return replace(self, between=between)

    def raw(self, start: int, stop: int) -> Bytes:
        """Rows as stored, as bytes [rows, columns * itemsize]."""
        return rows_of(self.files, self.stored, start, stop)

    def __call__(self, start: int, stop: int) -> Bytes:
        """Rows ``start`` to ``stop``, permuted and rounded, as bytes [rows, columns * itemsize]."""
        if self.order is None:
            block = self.raw(start, stop)
        else:
            head = len(self.order)
            first = start // head * head
            heads = self.raw(first, -(-stop // head) * head)
            index = np.arange(start, stop)
            block = heads[index // head * head - first + self.order[index % head]]
        dtypes = (self.stored.dtype, self.between or self.dtype, self.dtype)
        return rounded(rounded(block, *dtypes[:2]), *dtypes[1:])


def row_order(head_dim: int, source: Checkpoint, output: Checkpoint) -> npt.NDArray[np.int64] | None:
    """For each row of a Q or K head of the output, the row of the source; None if both have the same order.

    Row 2j in Meta format is row j in Hugging Face format, and row 2j + 1 is row j + head_dim / 2.
    """
    if source.row_order == output.row_order:
        return None
    meta_rows = np.arange(head_dim)
    huggingface_rows = meta_rows // 2 + meta_rows % 2 * (head_dim // 2)
    if output.row_order == "meta":
        return huggingface_rows
    order = np.empty_like(meta_rows)
    order[huggingface_rows] = meta_rows
    return order


def rounded(block: Bytes, source: Dtype, target: Dtype) -> Bytes:
    """A block of values in another dtype, rounded to nearest, ties to even."""
    if source == target:
        return block
    values = as_float32(block, source)
    if target == FLOAT16:
        with np.errstate(over="ignore"):
            half: Bytes = values.astype(np.float16).view(np.uint8)
        return half
    if target == BFLOAT16:
        bits = values.view(np.uint32)
        odd = (bits >> 16) & 1
        result = ((bits + np.uint32(0x7FFF) + odd) >> 16).astype(np.uint16)
        result[np.isnan(values)] = 0x7FC0
        brain: Bytes = result.view(np.uint8)
        return brain
    single: Bytes = values.view(np.uint8)
    return single


@dataclass(frozen=True)
class TensorPair:
    """One tensor of the output, and the rows of the source that it should contain."""

    weight: Weight
    expected: TensorRows
    found: TensorRows
    head_dim: int
    to_meta: bool
    """The output has Meta's row order, in which rows of a rotary pair are adjacent."""

    @property
    def name(self) -> str:
        """The tensor's name in the output."""
        return self.found.stored.name


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs from the source."""

    pair: TensorPair
    elements: int
    different: int
    """Number of elements that differ."""
    row: int
    """Row of the first element that differs."""
    column: int
    expected: float
    """Value of that element in the source."""
    found: float
    bits: int
    """Bits of that element that differ, set to one."""
    max_difference: float
    mean_difference: float
    """Mean of the absolute difference over all elements."""
    relative_difference: float
    """Norm of the difference divided by the norm of the source."""
    cosine_similarity: float
    """Of both tensors as vectors; NaN if one of them is zero or not finite."""


def pairs_of(source: Checkpoint, output: Checkpoint, files: SourceFiles) -> list[TensorPair]:
    """The tensors of the output that the source has in the same shape, in model order."""
    head_dim = source.config.head_dim
    order = row_order(head_dim, source, output)
    result: list[TensorPair] = []
    for weight, stored in output.weights.items():
        origin = source.weights.get(weight)
        if origin is None and weight.kind == HEAD and source.config.tied:
            origin = source.weights.get(Weight(EMBEDDING))
        if origin is not None and origin.shape == stored.shape:
            expected = TensorRows(files, origin, stored.dtype, order if weight.kind.permuted else None)
            found = TensorRows(files, stored, stored.dtype)
            result.append(TensorPair(weight, expected, found, head_dim, output.row_order == "meta"))
    return result


def differences_of(
    pairs: list[TensorPair], progress: Callable[[int], None] = lambda _: None
) -> list[TensorDifference]:
    """The differences of the pairs that differ, in order.

    Args:
        pairs: the tensors to compare.
        progress: receives the number of bytes compared since its last call; called from several threads.

    Raises:
        InputError: a file is damaged or replicas on the ranks differ.
        OutputError: a file could not be read.
    """
    with interruptible_threads(WORKERS) as (pool, stop):
        equal = pool.map(lambda pair: _is_equal(pair, progress, stop), pairs)
        return [measure(pair) for pair, is_equal in zip(pairs, equal, strict=True) if not is_equal]


def _is_equal(pair: TensorPair, progress: Callable[[int], None], stopped: Event) -> bool:
    stored = pair.found.stored
    for start, stop in row_blocks(stored, BLOCK_SIZE):
        if stopped.is_set():
            break
        found = pair.found(start, stop)
        if not np.array_equal(pair.expected(start, stop), found):
            progress(stored.nbytes - start * found.shape[1])
            return False
        progress(found.nbytes)
    return True


def measure(pair: TensorPair) -> TensorDifference:
    """How a tensor differs, given that it does."""
    dtype = pair.found.stored.dtype
    different, bits, max_difference, error, size = 0, 0, 0.0, 0.0, 0.0
    absolute, product, found_size = 0.0, 0.0, 0.0
    first: tuple[int, int] | None = None
    values = (0.0, 0.0)
    for start, stop in row_blocks(pair.found.stored, BLOCK_SIZE):
        expected, found = pair.expected(start, stop), pair.found(start, stop)
        expected_values, found_values = as_float32(expected, dtype), as_float32(found, dtype)
        squares = float(np.square(expected_values, dtype=np.float64).sum())
        size += squares
        if np.array_equal(expected, found):
            product, found_size = product + squares, found_size + squares
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            product += float(np.multiply(expected_values, found_values, dtype=np.float64).sum())
        found_size += float(np.square(found_values, dtype=np.float64).sum())
        code = f"<u{dtype.itemsize}"
        unequal = expected.view(code) != found.view(code)
        different += int(unequal.sum())
        if first is None:
            row, column = (int(i) for i in np.argwhere(unequal)[0])
            first = start + row, column
            values = float(expected_values[row, column]), float(found_values[row, column])
            bits = int(expected.view(code)[row, column]) ^ int(found.view(code)[row, column])
        with np.errstate(invalid="ignore"):
            distance = np.abs(found_values.astype(np.float64) - expected_values)
        distance[~unequal] = 0.0
        distance[np.isnan(distance)] = np.inf  # NaN counts as an infinite difference
        max_difference = max(max_difference, float(distance.max()))
        absolute += float(distance.sum())
        error += float(np.square(distance).sum())
    elements = pair.found.shape[0] * pair.found.shape[1]
    norms = math.sqrt(size) * math.sqrt(found_size)
    row, column = first or (0, 0)
    return TensorDifference(
        pair=pair,
        elements=elements,
        different=different,
        row=row,
        column=column,
        expected=values[0],
        found=values[1],
        bits=bits,
        max_difference=max_difference,
        mean_difference=absolute / elements,
        relative_difference=(error / size) ** 0.5 if size else float("inf"),
        cosine_similarity=max(-1.0, min(1.0, product / norms)) if 0 < norms < math.inf else math.nan,
    )


def to_json(pairs: list[TensorPair], differences: list[TensorDifference]) -> list[dict[str, Any]]:
    """How much each tensor differs, in model order, as plain data."""
    by_name = {difference.pair.name: difference for difference in differences}
    rows = []
    for pair in pairs:
        difference = by_name.get(pair.name)
        rows.append(
            {
                "tensor": pair.name,
                "elements": pair.found.shape[0] * pair.found.shape[1],
                "different": difference.different if difference else 0,
                "max_difference": difference.max_difference if difference else 0.0,
                "relative_difference": difference.relative_difference if difference else 0.0,
            }
        )
    return rows
