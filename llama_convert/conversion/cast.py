"""Dtype casts of blocks, with counts of the values that overflow or underflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_convert.checkpoints.value_scan import INFINITY, Bytes, count_nonzero, max_abs_bits
from llama_convert.dtypes import Dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CastCounts:
    """Counts of the values that a cast changed beyond rounding."""

    elements: int = 0
    overflowed: int = 0
    """Finite values that became infinite."""
    underflowed: int = 0
    """Nonzero values that became zero."""
    max_overflowed: float = 0.0
    """Maximum finite magnitude among the values that overflowed."""

    def __add__(self, other: CastCounts) -> CastCounts:
        return CastCounts(
            self.elements + other.elements,
            self.overflowed + other.overflowed,
            self.underflowed + other.underflowed,
            max(self.max_overflowed, other.max_overflowed),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        return {
            "elements": self.elements,
            "overflowed": self.overflowed,
            "vanished": self.underflowed,
            "largest": self.max_overflowed,
        }


@contextmanager
def single_threaded_casts() -> Iterator[None]:
    """Limit torch to one core per cast while the context is open: the workers are the parallelism."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cast_block(block: Bytes, source: Dtype, target: Dtype) -> tuple[Bytes, CastCounts]:
    """Return a block cast to another dtype, rounded to nearest even, and the counts of changed values.

    Casts through float32, which holds every value of both dtypes: torch vectorizes these two steps, but not
    the direct cast.

    Args:
        block: bytes of elements of dtype ``source``.
        source: dtype of the block.
        target: dtype of the result.
    """
    import torch

    values = torch.from_numpy(block.reshape(-1)).view(_torch_dtype(source))
    result = values.to(torch.float32).to(_torch_dtype(target))
    cast = result.view(torch.uint8).numpy()
    overflowed, max_overflowed = 0, 0.0
    if max_abs_bits(cast, target) >= INFINITY[target]:
        became_infinite = torch.isinf(result) & torch.isfinite(values)
        overflowed = int(became_infinite.sum())
        max_overflowed = float(values[became_infinite].abs().max()) if overflowed else 0.0
    underflowed = count_nonzero(block.reshape(-1), source) - count_nonzero(cast, target)
    return cast, CastCounts(values.numel(), overflowed, underflowed, max_overflowed)


def _torch_dtype(dtype: Dtype) -> torch.dtype:
    import torch

    return getattr(torch, dtype.name)  # type: ignore[no-any-return]
