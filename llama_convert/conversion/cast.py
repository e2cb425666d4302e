"""Changes of element type, block by block, with a count of what a narrower type could not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llama_convert.dtypes import Dtype

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]


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
    """The block's values in another type, rounded to nearest even as torch does; bytes in, bytes out."""
    import torch

    values = torch.from_numpy(block.reshape(-1)).view(_torch_dtype(source))
    result = values.to(_torch_dtype(target))
    counts = _count(values, result)
    return result.view(torch.uint8).numpy(), counts


def _torch_dtype(dtype: Dtype) -> torch.dtype:
    import torch

    return getattr(torch, dtype.name)  # type: ignore[no-any-return]


def _count(values: torch.Tensor, result: torch.Tensor) -> CastCounts:
    import torch

    vanished = int(torch.count_nonzero(values) - torch.count_nonzero(result))
    overflowed, largest = 0, 0.0
    if torch.isinf(result).any():
        new = torch.isinf(result) & torch.isfinite(values)
        overflowed = int(new.sum())
        largest = float(values[new].abs().max()) if overflowed else 0.0
    return CastCounts(values.numel(), overflowed, vanished, largest)
