"""Row order of ``wq`` and ``wk`` for RoPE in Meta and Hugging Face format.

RoPE rotates pairs of elements of a head.  Meta pairs rows ``2j`` and ``2j + 1`` (interleaved); Hugging Face
pairs rows ``j`` and ``j + head_dim / 2`` (half-split, "rotate half").  Attention uses only dot products of
queries and keys, so permuting the rows of ``wq`` and ``wk`` in the same way does not change the model.

Seen as a ``head_dim/2 x 2`` matrix of rows, an interleaved head becomes half-split by a transpose; the
inverse transposes a ``2 x head_dim/2`` matrix (transformers,
``models/llama/convert_llama_weights_to_hf.py: permute``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_convert.llama.weights import CheckpointFormat

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class RowTranspose:
    """Permutation that transposes each run of ``outer * inner`` rows, seen as an ``outer x inner`` matrix."""

    outer: int
    inner: int

    @property
    def run(self) -> int:
        """Rows in one run; rows do not leave their run."""
        return self.outer * self.inner

    def __call__(self, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return a permuted copy of ``block``, uint8 [rows, bytes per row], rows a multiple of `run`."""
        rows, width = block.shape
        matrices = block.reshape(rows // self.run, self.outer, self.inner, width)
        permuted: npt.NDArray[np.uint8] = matrices.swapaxes(1, 2).reshape(rows, width)
        return permuted


def interleaved_to_half_split(head_dim: int) -> RowTranspose:
    """Meta to Hugging Face order: row ``j`` is old row ``2j``, row ``j + head_dim/2`` is old ``2j + 1``."""
    return RowTranspose(head_dim // 2, 2)


def half_split_to_interleaved(head_dim: int) -> RowTranspose:
    """Hugging Face to Meta order; the inverse of `interleaved_to_half_split`."""
    return RowTranspose(2, head_dim // 2)


_PERMUTATIONS = {
    ("meta", "huggingface"): interleaved_to_half_split,
    ("huggingface", "meta"): half_split_to_interleaved,
}


def rope_permutation(
    source: CheckpointFormat, target: CheckpointFormat, head_dim: int
) -> RowTranspose | None:
    """Permutation of the rows of ``wq`` and ``wk`` between two formats; None if the order is the same."""
    permutation = _PERMUTATIONS.get((source, target))
    return permutation(head_dim) if permutation else None
