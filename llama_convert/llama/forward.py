"""Two small Llamas, written out: one reads Meta's tensors, the other Hugging Face's.

They are evidence, so each follows its owner's definition and neither borrows from the other where the two
differ: names, cuts over ranks, and the order of rows that RoPE turns.

* `meta_forward` runs tensor-parallel ranks as they are stored.  Each rank computes its slice; slices that
  were cut along the rows are joined, partial sums are added.  RoPE turns neighbouring pairs (2j, 2j + 1) as
  complex numbers (meta-llama/llama, ``llama/model.py``; meta-llama/llama-models, ``models/llama3/model.py``).
* `huggingface_forward` runs the merged model.  RoPE turns the pairs (j, j + head_dim / 2)
  (huggingface/transformers, ``models/llama/modeling_llama.py``).

Shapes are written [tokens, ...]: no batch, no KV cache.  `positions` is an integer tensor [tokens]; it may
leave gaps.  `visible` is a bool tensor [tokens, tokens], true where the first token sees the second; several
sequences stand one after the other, none seeing the others'.  Arithmetic is done in the dtype of `hidden`,
whatever that of the weights; in bfloat16 the norms, RoPE and softmax are done in float32, as both owners do.
Weights are asked for one layer at a time, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.linear import linear


class Weights(Protocol):
    """Tensors by name: a dict, or anything that reads them as they are asked for."""

    def __getitem__(self, name: str, /) -> Tensor:
        """Return the tensor called `name`, in any floating-point dtype."""


# What both readings hold alike: nothing here knows a tensor's name or the order of its rows.


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Angle by which RoPE turns each pair from one position to the next: float32 [head_dim / 2], radians.

    Pair i turns by theta^(-2i / head_dim) (RoFormer, arXiv:2104.09864, section 3.2.2).  Llama 3.1 divides
    that by `factor` where the wavelength exceeds original_context_length / low_freq_factor tokens, keeps it
    below original_context_length / high_freq_factor, and goes linearly between (llama-models,
    ``models/llama3/model.py: apply_scaling``).  Both owners compute in float32, and so do we: far out, a
    last digit of the frequency is a visible angle.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_context_length / wavelengths
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rope_angles(config: LlamaConfig, positions: Tensor) -> Tensor:
    """Angle of each pair at each position: float32 [tokens, head_dim / 2], radians."""
    return torch.outer(positions.float(), rope_frequencies(config).to(positions.device))


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis: x / sqrt(mean(x²) + eps) * weight (arXiv:1910.07467, equation 4)."""
    wide = at_least_float32(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight.to(x.dtype)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU: down(silu(gate(x)) * up(x)), [tokens, dim] (arXiv:2002.05202, equation 6)."""
    return linear(F.silu(linear(x, gate)) * linear(x, up), down)


def causal(positions: Tensor) -> Tensor:
    """Who sees whom in one sequence: each token the positions up to its own.  Bool [tokens, tokens]."""
    return positions[None, :] <= positions[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v over the tokens each one sees (arXiv:1706.03762).

    Args:
        q: [tokens, heads, head_dim], turned.
        k: as q; a key for every query head.
        v: as k, not turned.
        visible: bool [tokens, tokens].

    Returns:
        [tokens, heads * head_dim].
    """
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    probabilities = at_least_float32(scores).masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", probabilities.to(v.dtype), v).flatten(1)


# The source, as Meta runs it.


def meta_rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn x [tokens, heads, head_dim], whose neighbours (2j, 2j + 1) are one complex number, by angles."""
    numbers = torch.view_as_complex(at_least_float32(x).reshape(*x.shape[:-1], -1, 2))
    turned = numbers * torch.polar(torch.ones_like(angles), angles)[:, None, :]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def meta_embed(
    config: LlamaConfig, ranks: Sequence[Weights], tokens: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Hidden state before the first layer: [tokens, dim].

    A rank holds either all words and some features (ParallelEmbedding, up to Llama 2: join them) or some
    words and all features (VocabParallelEmbedding, from Llama 3: a word is zero but on its own rank).
    """
    parts = []
    first = 0
    for rank in ranks:
        table = rank["tok_embeddings.weight"]
        if table.shape[1] < config.dim:
            parts.append(table[tokens].to(dtype))
        else:
            row = tokens - first
            absent = (row < 0) | (row >= len(table))
            found = table[row.masked_fill(absent, 0)].to(dtype)
            parts.append(found.masked_fill(absent[:, None], 0))
            first += len(table)
    return torch.stack(parts).sum(0) if first > 0 else torch.cat(parts, dim=1)


def meta_layer(
    config: LlamaConfig,
    ranks: Sequence[Weights],
    layer: int,
    hidden: Tensor,
    positions: Tensor,
    visible: Tensor | None = None,
) -> Tensor:
    """Hidden state after `layer` (counted from 0): [tokens, dim].  `visible` is causal if not given.

    Every rank holds whole heads; their number is read off its rows.  wq, wk, wv, w1, w3 are cut along their
    rows; wo, w2 along their columns, so that each rank yields a partial sum.
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
    """Logits of the next token: [tokens, vocab].  Each rank holds some words of the vocabulary."""
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
    """Logits [tokens, vocab] of a checkpoint in Meta's layout.

    Args:
        config: read from params.json.
        ranks: the tensors of consolidated.00.pth, consolidated.01.pth, ..., in that order.
        tokens: token ids, integer [tokens].
        positions: integer [tokens]; 0, 1, 2, ... if not given.
        dtype: of the arithmetic and the answer.
    """
    if positions is None:
        positions = torch.arange(len(tokens), device=tokens.device)
    hidden = meta_embed(config, ranks, tokens, dtype)
    for layer in range(config.n_layers):
        hidden = meta_layer(config, ranks, layer, hidden, positions)
    return meta_logits(config, ranks, hidden)


# The output, as Hugging Face defines it.


def huggingface_rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn x [tokens, heads, head_dim], whose pairs are (j, j + head_dim / 2), by angles."""
    cos = torch.cat([angles.cos(), angles.cos()], dim=1)[:, None, :]
    sin = torch.cat([angles.sin(), angles.sin()], dim=1)[:, None, :]
    first_half, second_half = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second_half, first_half], dim=-1) * sin).to(x.dtype)


def huggingface_embed(weights: Weights, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hidden state before the first layer: [tokens, dim]."""
    return weights["model.embed_tokens.weight"][tokens].to(dtype)


def huggingface_layer(
    config: LlamaConfig,
    weights: Weights,
    layer: int,
    hidden: Tensor,
    positions: Tensor,
    visible: Tensor | None = None,
) -> Tensor:
    """Hidden state after `layer` (counted from 0): [tokens, dim].  `visible` is causal if not given."""
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
    """Logits of the next token: [tokens, vocab].  A tied model has no lm_head; its embedding serves."""
    x = rms_norm(hidden, weights["model.norm.weight"], config.norm_eps)
    return linear(x, weights["model.embed_tokens.weight" if config.tied else "lm_head.weight"])


def huggingface_forward(
    config: LlamaConfig,
    weights: Weights,
    tokens: Tensor,
    positions: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Logits [tokens, vocab] of a checkpoint in Hugging Face's layout.

    Args:
        config: read from config.json.
        weights: the tensors of all safetensors files together.
        tokens: token ids, integer [tokens].
        positions: integer [tokens]; 0, 1, 2, ... if not given.
        dtype: of the arithmetic and the answer.
    """
    if positions is None:
        positions = torch.arange(len(tokens), device=tokens.device)
    hidden = huggingface_embed(weights, tokens, dtype)
    for layer in range(config.n_layers):
        hidden = huggingface_layer(config, weights, layer, hidden, positions)
    return huggingface_logits(config, weights, hidden)


# Speech.


@torch.no_grad()
def greedy(forward: Callable[[Tensor], Tensor], prompt_ids: Sequence[int], n: int) -> list[int]:
    """Say the likeliest token n times, reading everything said so far anew each time.

    Args:
        forward: token ids [tokens] to logits [tokens, vocab].
        prompt_ids: at least one token.
        n: number of tokens to add.

    Returns:
        The prompt and the n tokens after it.
    """
    ids = list(prompt_ids)
    for _ in range(n):
        ids.append(int(forward(torch.tensor(ids))[-1].argmax()))
    return ids
