"""What makes one Llama different from another: its hyper-parameters, in nobody's file format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary wavelengths (``rope_type: llama3``).

    The defaults are Meta's constants (llama-models, ``models/llama3/model.py: apply_scaling``).
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Hyper-parameters of a dense text Llama.  Widths and lengths count elements, heads or tokens."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    context_length: int
    tied: bool
    """The LM head is the embedding matrix."""
