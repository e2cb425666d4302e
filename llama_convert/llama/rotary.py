"""The two orders of a head's rows in wq and wk.

RoPE rotates pairs of a head's elements.  Meta pairs neighbours, rows ``(2j, 2j+1)``, as one complex number;
Hugging Face pairs row ``j`` with row ``j + head_dim/2`` ("rotate half").  Attention is a dot product of a
query with a key, so permuting the rows of both alike changes nothing but the pairing.

Both moves are transposes: seen as a ``head_dim/2 x 2`` matrix of rows, an interleaved head becomes a
half-split one by swapping the axes; the way back swaps a ``2 x head_dim/2`` matrix.  (transformers,
``models/llama/convert_llama_weights_to_hf.py: permute``, states the same as view and transpose.)
"""

from __future__ import annotations

from typing import Literal

from llama_convert.reorder import RowTranspose

CheckpointLayout = Literal["meta", "huggingface"]


def interleaved_to_half_split(head_dim: int) -> RowTranspose:
    """From Meta's order to Hugging Face's: row ``j`` comes from ``2j``, ``j + head_dim/2`` from ``2j+1``."""
    return RowTranspose(head_dim // 2, 2)


def half_split_to_interleaved(head_dim: int) -> RowTranspose:
    """From Hugging Face's order of rows to Meta's; the inverse of `interleaved_to_half_split`."""
    return RowTranspose(2, head_dim // 2)


_REORDERINGS = {
    ("meta", "huggingface"): interleaved_to_half_split,
    ("huggingface", "meta"): half_split_to_interleaved,
}


def reordering(source: CheckpointLayout, target: CheckpointLayout, head_dim: int) -> RowTranspose | None:
    """How rotary rows move from one layout to another; None where they stay."""
    move = _REORDERINGS.get((source, target))
    return move(head_dim) if move else None
