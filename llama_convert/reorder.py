"""Reordering the rows of a block of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class RowTranspose:
    """Transposes each run of ``outer * inner`` rows, seen as an ``outer x inner`` matrix of rows."""

    outer: int
    inner: int

    @property
    def run(self) -> int:
        """Rows that move among themselves."""
        return self.outer * self.inner

    def __call__(self, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A copy of ``block`` (rows x bytes, a whole number of runs) in the other order."""
        rows, width = block.shape
        matrices = block.reshape(rows // self.run, self.outer, self.inner, width)
        reordered: npt.NDArray[np.uint8] = matrices.swapaxes(1, 2).reshape(rows, width)
        return reordered
