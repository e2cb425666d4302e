"""The *weights* level: every tensor against the source's, bit for bit, or as a cast rounds it.

Shares no code with the conversion but the reading of bytes: rows are put in order by an index, not by a
transpose, and rounding is done on the bits.
"""

from __future__ import annotations

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
class Rows:
    """A stored weight as the other side should hold it: rows put in order, then rounded."""

    files: SourceFiles
    stored: StoredWeight
    dtype: Dtype
    order: npt.NDArray[np.int64] | None = None
    """For each row of a head, which row of the stored head it is; None: the rows stand as they should."""
    between: Dtype | None = None
    """A dtype to round to before."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return matrix_shape(self.stored.shape)

    @property
    def run(self) -> int:
        """Rows that move among themselves."""
        return 1 if self.order is None else len(self.order)

    def through(self, between: Dtype) -> Rows:
        """The same, rounded to another dtype on the way."""
        return replace(self, between=between)

    def raw(self, start: int, stop: int) -> Bytes:
        """Rows as they are stored, as bytes [rows, columns * itemsize]."""
        return rows_of(self.files, self.stored, start, stop)

    def __call__(self, start: int, stop: int) -> Bytes:
        """Rows ``start`` to ``stop``, as bytes [rows, columns * itemsize]."""
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
    """Where the output's rows of a rotary head stand in the source's; None if both have one layout.

    Meta's row 2j is Hugging Face's j, Meta's 2j + 1 is Hugging Face's j + head_dim / 2.
    """
    if isinstance(source, MetaCheckpoint) == isinstance(output, MetaCheckpoint):
        return None
    meta_rows = np.arange(head_dim)
    huggingface_rows = meta_rows // 2 + meta_rows % 2 * (head_dim // 2)
    if isinstance(output, MetaCheckpoint):
        return huggingface_rows
    order = np.empty_like(meta_rows)
    order[huggingface_rows] = meta_rows
    return order


def rounded(block: Bytes, source: Dtype, target: Dtype) -> Bytes:
    """The numbers of a block in another dtype, rounded to nearest, ties to even."""
    if source == target:
        return block
    values = as_float32(block, source)
    if target == FLOAT16:
        with np.errstate(over="ignore"):
            half: Bytes = values.astype(np.float16).view(np.uint8)
        return half
    if target == BFLOAT16:
        bits = values.view(np.uint32)
        up = (bits >> 16) & 1
        result = ((bits + np.uint32(0x7FFF) + up) >> 16).astype(np.uint16)
        result[np.isnan(values)] = 0x7FC0
        brain: Bytes = result.view(np.uint8)
        return brain
    single: Bytes = values.view(np.uint8)
    return single


@dataclass(frozen=True)
class Pair:
    """One tensor of the output, and what it should hold."""

    weight: Weight
    expected: Rows
    found: Rows
    head_dim: int
    to_pairs: bool
    """The output is Meta's, whose rotary rows stand in pairs."""

    @property
    def name(self) -> str:
        """What the output calls it."""
        return self.found.stored.name


@dataclass(frozen=True)
class Difference:
    """How one tensor differs."""

    pair: Pair
    elements: int
    different: int
    row: int
    """Where the first element that differs stands."""
    column: int
    expected: float
    """That element's value on both sides."""
    found: float
    bits: int
    """Its bits that differ, set to one."""
    max_difference: float
    relative_difference: float


def pairs(source: Checkpoint, output: Checkpoint, files: SourceFiles) -> list[Pair]:
    """The tensors of the output that have a counterpart of their shape in the source, in model order."""
    head_dim = source.config.head_dim
    order = row_order(head_dim, source, output)
    result: list[Pair] = []
    for weight, stored in output.weights.items():
        origin = source.weights.get(weight)
        if origin is None and weight.kind == HEAD and source.config.tied:
            origin = source.weights.get(Weight(EMBEDDING))
        if origin is not None and origin.shape == stored.shape:
            expected = Rows(files, origin, stored.dtype, order if weight.kind.permuted else None)
            found = Rows(files, stored, stored.dtype)
            result.append(Pair(weight, expected, found, head_dim, isinstance(output, MetaCheckpoint)))
    return result


def differing(every_pair: list[Pair], progress: Callable[[int], None] = lambda _: None) -> list[Difference]:
    """The pairs that differ, in the order given.

    Raises:
        InputError: a file is damaged or its copies differ.
        OutputError: a file could not be read.
    """
    with interruptible_threads(WORKERS) as (pool, stop):
        same = pool.map(lambda pair: _same(pair, progress, stop), every_pair)
        return [measure(pair) for pair, is_same in zip(every_pair, same, strict=True) if not is_same]


def _same(pair: Pair, progress: Callable[[int], None], stopped: Event) -> bool:
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


def measure(pair: Pair) -> Difference:
    """How a tensor differs that is known to."""
    dtype = pair.found.stored.dtype
    different, bits, largest, error, size = 0, 0, 0.0, 0.0, 0.0
    first: tuple[int, int] | None = None
    values = (0.0, 0.0)
    for start, stop in row_blocks(pair.found.stored, BLOCK_SIZE):
        expected, found = pair.expected(start, stop), pair.found(start, stop)
        one, other = as_float32(expected, dtype), as_float32(found, dtype)
        size += float(np.square(one, dtype=np.float64).sum())
        if np.array_equal(expected, found):
            continue
        code = f"<u{dtype.itemsize}"
        unequal = expected.view(code) != found.view(code)
        different += int(unequal.sum())
        if first is None:
            row, column = (int(i) for i in np.argwhere(unequal)[0])
            first, values = (start + row, column), (float(one[row, column]), float(other[row, column]))
            bits = int(expected.view(code)[row, column]) ^ int(found.view(code)[row, column])
        with np.errstate(invalid="ignore"):
            distance = np.abs(other.astype(np.float64) - one)
        distance[~unequal] = 0.0
        distance[np.isnan(distance)] = np.inf  # what is no number is as far away as can be
        largest = max(largest, float(distance.max()))
        error += float(np.square(distance).sum())
    row, column = first or (0, 0)
    return Difference(
        pair=pair,
        elements=pair.found.shape[0] * pair.found.shape[1],
        different=different,
        row=row,
        column=column,
        expected=values[0],
        found=values[1],
        bits=bits,
        max_difference=largest,
        relative_difference=(error / size) ** 0.5 if size else float("inf"),
    )


def to_json(every_pair: list[Pair], differences: list[Difference]) -> list[dict[str, Any]]:
    """Each tensor's figures, in the order of the model."""
    by_name = {difference.pair.name: difference for difference in differences}
    rows = []
    for pair in every_pair:
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
