"""Changes of element type, block by block, with a count of what a narrower type could not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_convert.checkpoints.value_scan import INFINITY, Bytes, count_nonzero, max_abs_bits
from llama_convert.dtypes import Dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CastCounts:
    """What happened to the values of one tensor on the way to another type."""

    elements: int = 0
    overflowed: int = 0
    """Finite values that became infinite."""
    vanished: int = 0
    """Values other than zero that became zero."""
    largest: float = 0.0
    """Largest finite magnitude among the values that overflowed."""

    def __add__(self, other: CastCounts) -> CastCounts:
        return CastCounts(
            self.elements + other.elements,
            self.overflowed + other.overflowed,
            self.vanished + other.vanished,
            max(self.largest, other.largest),
        )


@contextmanager
def one_core_a_cast() -> Iterator[None]:
    """Let casts in threads started meanwhile take one core each: the threads are the parallelism."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cast_block(block: Bytes, source: Dtype, target: Dtype) -> tuple[Bytes, CastCounts]:
    """The block's values in another type, rounded to nearest even as torch does; bytes in, bytes out.

    By way of float32, which holds every value of either: torch does both steps in vectors, but not the one.
    """
    import torch

    values = torch.from_numpy(block.reshape(-1)).view(_torch_dtype(source))
    result = values.to(torch.float32).to(_torch_dtype(target))
    cast = result.view(torch.uint8).numpy()
    overflowed, top = 0, 0.0
    if max_abs_bits(cast, target) >= INFINITY[target]:
        new = torch.isinf(result) & torch.isfinite(values)
        overflowed = int(new.sum())
        top = float(values[new].abs().max()) if overflowed else 0.0
    vanished = count_nonzero(block.reshape(-1), source) - count_nonzero(cast, target)
    return cast, CastCounts(values.numel(), overflowed, vanished, top)


def _torch_dtype(dtype: Dtype) -> torch.dtype:
    import torch

    return getattr(torch, dtype.name)  # type: ignore[no-any-return]
