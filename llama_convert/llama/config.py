"""Hyper-parameters of a dense text Llama, independent of any file format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling of the RoPE wavelengths (``rope_type: llama3``).

    The defaults are Meta's constants (llama-models, ``models/llama3/model.py: apply_scaling``).
    """

    factor: float = 8.0
    """Long wavelengths are multiplied by this."""
    low_freq_factor: float = 1.0
    """Wavelengths above ``original_context_length / low_freq_factor`` tokens are scaled."""
    high_freq_factor: float = 4.0
    """Wavelengths below ``original_context_length / high_freq_factor`` tokens are kept."""
    original_context_length: int = 8192
    """Context length before scaling, in tokens."""


@dataclass(frozen=True)
class LlamaConfig:
    """Hyper-parameters of a dense text Llama.

    Shapes of weights follow from them: ``wq`` is [n_heads * head_dim, dim], ``wk`` and ``wv`` are
    [n_kv_heads * head_dim, dim], ``wo`` is [dim, n_heads * head_dim], ``w1`` and ``w3`` are [ffn_dim, dim],
    ``w2`` is [dim, ffn_dim], the embedding and the LM head are [vocab_size, dim], the norms are [dim].
    """

    dim: int
    """Width of the residual stream (Hugging Face: ``hidden_size``)."""
    n_layers: int
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Distinct key and value heads; divides ``n_heads``."""
    head_dim: int
    """Width of one head; even, because RoPE rotates pairs."""
    ffn_dim: int
    """Width of the feed-forward block (Hugging Face: ``intermediate_size``)."""
    vocab_size: int
    norm_eps: float
    """Epsilon of RMSNorm."""
    rope_theta: float
    """Base of the RoPE frequencies."""
    rope_scaling: RopeScaling | None
    """None: frequencies are not scaled."""
    context_length: int
    """Tokens (Hugging Face: ``max_position_embeddings``)."""
    tied: bool
    """The LM head is the embedding matrix."""
