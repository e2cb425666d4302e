"""Two forward passes of Llama: one for tensors in Meta format, one for tensors in Hugging Face format.

Verification compares their outputs, so each follows the definition of its format and they share no code where
the formats differ: names, sharding, and the pairs that RoPE rotates.

* `meta_forward` runs tensor-parallel ranks as they are stored.  Outputs of weights sharded along dim 0 are
  concatenated, those of weights sharded along dim 1 are partial sums.  RoPE rotates the pairs (2j, 2j + 1)
  (meta-llama/llama, ``llama/model.py``; meta-llama/llama-models, ``models/llama3/model.py``).
* `huggingface_forward` runs the whole model.  RoPE rotates the pairs (j, j + head_dim / 2)
  (huggingface/transformers, ``models/llama/modeling_llama.py``).

Shapes: there is no batch dimension and no KV cache.  `tokens` and `positions` are integer [tokens]; positions
may have gaps.  `hidden` is [tokens, dim].  `visible` is bool [tokens, tokens]: ``visible[i, j]`` is true if
token ``i`` attends to token ``j``; sequences are concatenated, and no sequence attends to another.

Dtypes: weights have any floating-point dtype and are converted to the dtype of `hidden`, in which the results
are.  In half precision, RMSNorm, RoPE and softmax are computed in float32, as in both implementations.

Weights are read by name, one layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llama_convert.llama.config import LlamaConfig

ROWS = 128
"""Rows of a weight that `linear` converts at a time: few enough for CPU caches, enough for all cores."""


class Weights(Protocol):
    """Mapping of names to tensors, for example a dict."""

    def __getitem__(self, name: str, /) -> Tensor:
        """The tensor with this name, in any floating-point dtype."""


# Shared by both formats: no names of tensors, no sharding, no order of rows.


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Matrix product ``x @ weight.T`` without converting the whole weight at once.

    Args:
        x: [tokens, in].
        weight: [out, in], any floating-point dtype.

    Returns:
        [tokens, out] in the dtype of ``x``.
    """
    return _onednn_linear(x, weight) if _use_onednn(x, weight) else F.linear(x, weight.to(x.dtype))


def _use_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would use the float32 product of MKL, which is 2 to 3 times slower on AMD CPUs."""
    needs_grad = x.requires_grad or weight.requires_grad  # oneDNN tensors have no gradients
    on_cpu = x.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return on_cpu and x.dtype == torch.float32 and not needs_grad


def _onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    x = x.to_mkldnn()
    products = [F.linear(x, rows.float().to_mkldnn()) for rows in torch.split(weight, ROWS)]
    return torch.cat([product.to_dense() for product in products], dim=1)


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """RoPE rotation of each pair per position: float32 [head_dim / 2], radians.

    Pair i rotates by theta^(-2i / head_dim) (RoFormer, arXiv:2104.09864, section 3.2.2).  Llama 3.1 divides
    the frequency by `factor` if the wavelength exceeds original_context_length / low_freq_factor tokens,
    keeps it below original_context_length / high_freq_factor, and interpolates linearly between
    (llama-models, ``models/llama3/model.py: apply_scaling``).  Computed in float32 like both implementations:
    at large positions, rounding of the frequency changes the angle noticeably.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    rotations = scaling.original_context_length / wavelengths
    smooth = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return smooth * frequencies + (1 - smooth) * frequencies / scaling.factor


def rope_angles(config: LlamaConfig, positions: Tensor) -> Tensor:
    """RoPE angle of each pair at each position: float32 [tokens, head_dim / 2], radians."""
    return torch.outer(positions.float(), rope_frequencies(config).to(positions.device))


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; return float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension: x / sqrt(mean(x²) + eps) * weight (arXiv:1910.07467, equation 4).

    Args:
        x: [tokens, dim].
        weight: [dim].
        eps: `LlamaConfig.norm_eps`.

    Returns:
        [tokens, dim] in the dtype of ``x``.
    """
    x32 = at_least_float32(x)
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight.to(x.dtype)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Feed-forward block: down(silu(gate(x)) * up(x)) (SwiGLU, arXiv:2002.05202, equation 6).

    Args:
        x: [tokens, dim].
        gate: [ffn_dim, dim]; on a rank, [ffn_dim / ranks, dim].
        up: as ``gate``.
        down: [dim, ffn_dim]; on a rank, [dim, ffn_dim / ranks].

    Returns:
        [tokens, dim]; on a rank, a partial sum.
    """
    return linear(F.silu(linear(x, gate)) * linear(x, up), down)


def causal(positions: Tensor) -> Tensor:
    """Causal mask of one sequence: each token attends to positions up to its own.  Bool [tokens, tokens]."""
    return positions[None, :] <= positions[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attention softmax(q kᵀ / sqrt(head_dim)) v (arXiv:1706.03762, equation 1).

    Args:
        q: [tokens, heads, head_dim], after RoPE.
        k: as ``q``; grouped-query heads are already repeated.
        v: as ``k``, without RoPE.
        visible: bool [tokens, tokens].

    Returns:
        [tokens, heads * head_dim].
    """
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    probabilities = at_least_float32(scores).masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", probabilities.to(v.dtype), v).flatten(1)


# Meta format.


def meta_rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Apply RoPE: each pair (2j, 2j + 1) is a complex number, multiplied by exp(i * angle).

    Args:
        x: [tokens, heads, head_dim].
        angles: float32 [tokens, head_dim / 2], radians.

    Returns:
        [tokens, heads, head_dim] in the dtype of ``x``.
    """
    pairs = torch.view_as_complex(at_least_float32(x).reshape(*x.shape[:-1], -1, 2))
    rotated = pairs * torch.polar(torch.ones_like(angles), angles)[:, None, :]
    return torch.view_as_real(rotated).flatten(-2).to(x.dtype)


def meta_embed(
    config: LlamaConfig, ranks: Sequence[Weights], tokens: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Hidden state before the first layer: [tokens, dim] in ``dtype``.

    The embedding of a rank is [vocab_size, dim / ranks] up to Llama 2 (ParallelEmbedding: concatenate) or
    [vocab_size / ranks, dim] from Llama 3 (VocabParallelEmbedding: tokens of other ranks are zero; add).
    """
    parts = []
    first_token = 0
    for rank in ranks:
        table = rank["tok_embeddings.weight"]
        if table.shape[1] < config.dim:
            parts.append(table[tokens].to(dtype))
        else:
            row = tokens - first_token
            on_other_rank = (row < 0) | (row >= len(table))
            embedded = table[row.masked_fill(on_other_rank, 0)].to(dtype)
            parts.append(embedded.masked_fill(on_other_rank[:, None], 0))
            first_token += len(table)
    return torch.stack(parts).sum(0) if first_token > 0 else torch.cat(parts, dim=1)


def meta_layer(
    config: LlamaConfig,
    ranks: Sequence[Weights],
    layer: int,
    hidden: Tensor,
    positions: Tensor,
    visible: Tensor | None = None,
) -> Tensor:
    """Hidden state after a layer.

    Each rank has whole heads; their number follows from the shapes.  wq, wk, wv, w1 and w3 are sharded along
    dim 0; wo and w2 along dim 1, so the result of each rank is a partial sum.

    Args:
        config: hyper-parameters.
        ranks: tensors of each rank.
        layer: number of the layer, from 0.
        hidden: [tokens, dim].
        positions: integer [tokens].
        visible: bool [tokens, tokens]; causal by default.

    Returns:
        [tokens, dim].
    """
    name = f"layers.{layer}."
    angles = rope_angles(config, positions)
    visible = causal(positions) if visible is None else visible

    partial_sums = []
    for rank in ranks:
        x = rms_norm(hidden, rank[name + "attention_norm.weight"], config.norm_eps)
        q = linear(x, rank[name + "attention.wq.weight"]).view(len(x), -1, config.head_dim)
        k = linear(x, rank[name + "attention.wk.weight"]).view(len(x), -1, config.head_dim)
        v = linear(x, rank[name + "attention.wv.weight"]).view(len(x), -1, config.head_dim)
        q = meta_rotate(q, angles)
        k = meta_rotate(k, angles)
        queries_per_key = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(queries_per_key, dim=1)
        v = v.repeat_interleave(queries_per_key, dim=1)
        partial_sums.append(linear(attention(q, k, v, visible), rank[name + "attention.wo.weight"]))
    hidden = hidden + torch.stack(partial_sums).sum(0)

    partial_sums = []
    for rank in ranks:
        x = rms_norm(hidden, rank[name + "ffn_norm.weight"], config.norm_eps)
        w1 = rank[name + "feed_forward.w1.weight"]
        w2 = rank[name + "feed_forward.w2.weight"]
        w3 = rank[name + "feed_forward.w3.weight"]
        partial_sums.append(swiglu(x, gate=w1, up=w3, down=w2))
    return hidden + torch.stack(partial_sums).sum(0)


def meta_logits(config: LlamaConfig, ranks: Sequence[Weights], hidden: Tensor) -> Tensor:
    """Logits of the next token: [tokens, vocab_size].  Each rank has a part of the vocabulary."""
    return torch.cat(
        [
            linear(rms_norm(hidden, rank["norm.weight"], config.norm_eps), rank["output.weight"])
            for rank in ranks
        ],
        dim=1,
    )


def meta_forward(
    config: LlamaConfig,
    ranks: Sequence[Weights],
    tokens: Tensor,
    positions: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Logits of a checkpoint in Meta format.

    Args:
        config: hyper-parameters.
        ranks: tensors of consolidated.00.pth, consolidated.01.pth, ... in this order.
        tokens: token ids, integer [tokens].
        positions: integer [tokens]; 0, 1, 2, ... by default.
        dtype: of the computation and the result.

    Returns:
        [tokens, vocab_size].
    """
    if positions is None:
        positions = torch.arange(len(tokens), device=tokens.device)
    hidden = meta_embed(config, ranks, tokens, dtype)
    for layer in range(config.n_layers):
        hidden = meta_layer(config, ranks, layer, hidden, positions)
    return meta_logits(config, ranks, hidden)


# Hugging Face format.


def huggingface_rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Apply RoPE to the pairs (j, j + head_dim / 2).

    Args:
        x: [tokens, heads, head_dim].
        angles: float32 [tokens, head_dim / 2], radians.

    Returns:
        [tokens, heads, head_dim] in the dtype of ``x``.
    """
    cos = torch.cat([angles.cos(), angles.cos()], dim=1)[:, None, :]
    sin = torch.cat([angles.sin(), angles.sin()], dim=1)[:, None, :]
    first_half, second_half = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second_half, first_half], dim=-1) * sin).to(x.dtype)


def huggingface_embed(weights: Weights, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hidden state before the first layer: [tokens, dim] in ``dtype``."""
    return weights["model.embed_tokens.weight"][tokens].to(dtype)


def huggingface_layer(
    config: LlamaConfig,
    weights: Weights,
    layer: int,
    hidden: Tensor,
    positions: Tensor,
    visible: Tensor | None = None,
) -> Tensor:
    """Hidden state after a layer.

    Args:
        config: hyper-parameters.
        weights: tensors of the model.
        layer: number of the layer, from 0.
        hidden: [tokens, dim].
        positions: integer [tokens].
        visible: bool [tokens, tokens]; causal by default.

    Returns:
        [tokens, dim].
    """
    name = f"model.layers.{layer}."
    angles = rope_angles(config, positions)
    visible = causal(positions) if visible is None else visible

    x = rms_norm(hidden, weights[name + "input_layernorm.weight"], config.norm_eps)
    query_shape = (len(hidden), config.n_heads, config.head_dim)
    key_shape = (len(hidden), config.n_kv_heads, config.head_dim)
    q = linear(x, weights[name + "self_attn.q_proj.weight"]).view(query_shape)
    k = linear(x, weights[name + "self_attn.k_proj.weight"]).view(key_shape)
    v = linear(x, weights[name + "self_attn.v_proj.weight"]).view(key_shape)
    q = huggingface_rotate(q, angles)
    k = huggingface_rotate(k, angles)
    groups = config.n_heads // config.n_kv_heads
    k = k[:, :, None, :].expand(-1, -1, groups, -1).reshape(query_shape)
    v = v[:, :, None, :].expand(-1, -1, groups, -1).reshape(query_shape)
    hidden = hidden + linear(attention(q, k, v, visible), weights[name + "self_attn.o_proj.weight"])

    x = rms_norm(hidden, weights[name + "post_attention_layernorm.weight"], config.norm_eps)
    gate = weights[name + "mlp.gate_proj.weight"]
    up = weights[name + "mlp.up_proj.weight"]
    down = weights[name + "mlp.down_proj.weight"]
    return hidden + swiglu(x, gate=gate, up=up, down=down)


def huggingface_logits(config: LlamaConfig, weights: Weights, hidden: Tensor) -> Tensor:
    """Logits of the next token: [tokens, vocab_size].  A tied model uses its embedding as the LM head."""
    x = rms_norm(hidden, weights["model.norm.weight"], config.norm_eps)
    return linear(x, weights["model.embed_tokens.weight" if config.tied else "lm_head.weight"])


def huggingface_forward(
    config: LlamaConfig,
    weights: Weights,
    tokens: Tensor,
    positions: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Logits of a checkpoint in Hugging Face format.

    Args:
        config: hyper-parameters.
        weights: tensors of all safetensors files.
        tokens: token ids, integer [tokens].
        positions: integer [tokens]; 0, 1, 2, ... by default.
        dtype: of the computation and the result.

    Returns:
        [tokens, vocab_size].
    """
    if positions is None:
        positions = torch.arange(len(tokens), device=tokens.device)
    hidden = huggingface_embed(weights, tokens, dtype)
    for layer in range(config.n_layers):
        hidden = huggingface_layer(config, weights, layer, hidden, positions)
    return huggingface_logits(config, weights, hidden)


# Generation.


@torch.no_grad()
def greedy(forward: Callable[[Tensor], Tensor], prompt_ids: Sequence[int], n: int) -> list[int]:
    """Greedy decoding without a KV cache.

    Args:
        forward: maps token ids [tokens] to logits [tokens, vocab_size].
        prompt_ids: at least one token.
        n: number of tokens to generate.

    Returns:
        The prompt followed by the ``n`` generated tokens.
    """
    ids = list(prompt_ids)
    for _ in range(n):
        ids.append(int(forward(torch.tensor(ids))[-1].argmax()))
    return ids
