"""Makes checkpoints in Meta's layout with random weights, and says what Hugging Face's of them must be.

Written in a few lines of torch and without the package, so that it can serve as its oracle."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    dim: int = 64
    n_layers: int = 2
    n_heads: int = 8
    n_kv_heads: int = 8
    ffn_dim: int = 96
    vocab_size: int = 80
    ranks: int = 1
    embedding_cut: int = 1
    kv_repeats: int = 1
    tied: bool = False
    dtype: torch.dtype = torch.bfloat16
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def but(self, **changes: Any) -> Shape:
        return replace(self, **changes)


LLAMA2 = Shape()
LLAMA3 = Shape(
    n_kv_heads=4,
    embedding_cut=0,
    vocab_size=96,
    params={"rope_theta": 500000.0, "use_scaled_rope": True},
)


@st.composite
def shapes(draw: st.DrawFn, ranks: int, n_kv_heads: int, kv_repeats: int = 1) -> Shape:
    """Any shape with these KV heads that these ranks divide."""
    n_heads = math.lcm(ranks, n_kv_heads * kv_repeats) * draw(st.integers(1, 3))
    return Shape(
        dim=n_heads * 2 * draw(st.integers(1, 6)),
        n_layers=draw(st.integers(1, 2)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        kv_repeats=kv_repeats,
        ffn_dim=ranks * draw(st.integers(1, 99)),
        vocab_size=ranks * draw(st.integers(1, 99)),
        ranks=ranks,
        embedding_cut=draw(st.integers(0, 1)),
        tied=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        params=draw(st.sampled_from([{}, {"use_scaled_rope": True}, {"rope_theta": 1e6}])),
    )


@st.composite
def shapes_in_ranks(draw: st.DrawFn, *, needless_copies: bool) -> Shape:
    """Any shape in any ranks, which may outnumber its KV heads; or with twice the copies that they need."""
    ranks = draw(st.sampled_from([1, 2, 3, 4, 6]))
    kv_repeats = draw(st.sampled_from([1, *(n for n in (2, 3) if ranks % n == 0 and ranks > n)]))
    n_kv_heads = ranks * draw(st.integers(1, 3)) if kv_repeats == 1 else ranks // kv_repeats
    if needless_copies and ranks > 1:
        kv_repeats *= draw(st.integers(1, 2))
    return draw(shapes(ranks, n_kv_heads, kv_repeats))


def weights(shape: Shape, seed: int = 0) -> State:
    """The whole model under Meta's names, each KV head once."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * 0.5).to(shape.dtype)

    state = {"tok_embeddings.weight": random(shape.vocab_size, shape.dim)}
    kv = shape.n_kv_heads * shape.head_dim
    for i in range(shape.n_layers):
        state |= {
            f"layers.{i}.attention.wq.weight": random(shape.dim, shape.dim),
            f"layers.{i}.attention.wk.weight": random(kv, shape.dim),
            f"layers.{i}.attention.wv.weight": random(kv, shape.dim),
            f"layers.{i}.attention.wo.weight": random(shape.dim, shape.dim),
            f"layers.{i}.feed_forward.w1.weight": random(shape.ffn_dim, shape.dim),
            f"layers.{i}.feed_forward.w3.weight": random(shape.ffn_dim, shape.dim),
            f"layers.{i}.feed_forward.w2.weight": random(shape.dim, shape.ffn_dim),
            f"layers.{i}.attention_norm.weight": random(shape.dim),
            f"layers.{i}.ffn_norm.weight": random(shape.dim),
        }
    state["norm.weight"] = random(shape.dim)
    state["output.weight"] = (
        state["tok_embeddings.weight"] if shape.tied else random(shape.vocab_size, shape.dim)
    )
    return state


def cut(shape: Shape, state: State) -> list[State]:
    """What each rank holds."""
    ranks: list[State] = [{} for _ in range(shape.ranks)]
    for name, weight in state.items():
        part = name.split(".")[-2]
        if part in ("wk", "wv") and shape.kv_repeats > 1:
            heads = weight.view(shape.n_kv_heads, shape.head_dim, shape.dim)
            weight = heads.repeat_interleave(shape.kv_repeats, 0).reshape(-1, shape.dim)
        axis = {"wo": 1, "w2": 1, "tok_embeddings": shape.embedding_cut}.get(part, 0)
        slices = [weight] * shape.ranks if "norm" in part else weight.chunk(shape.ranks, axis)
        for rank, piece in zip(ranks, slices, strict=True):
            rank[name] = piece.clone() if shape.ranks > 1 else piece
    return ranks


def params(shape: Shape) -> dict[str, Any]:
    result: dict[str, Any] = {
        "dim": shape.dim,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "norm_eps": 1e-05,
        "vocab_size": -1,
    }
    if shape.n_kv_heads * shape.kv_repeats != shape.n_heads:
        result["n_kv_heads"] = shape.n_kv_heads * shape.kv_repeats
    return result | shape.params


def write(folder: Path, shape: Shape, ranks: list[State]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, rank in enumerate(ranks):
        torch.save(rank, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params(shape)))
    return folder


def make(folder: Path, shape: Shape, seed: int = 0) -> State:
    """Write a checkpoint; returns the whole model."""
    state = weights(shape, seed)
    write(folder, shape, cut(shape, state))
    return state


def huggingface(shape: Shape, state: State) -> State:
    """The same model as Hugging Face names and orders it."""
    renamed = {
        "tok_embeddings": "model.embed_tokens",
        "norm": "model.norm",
        "output": "lm_head",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    result: State = {}
    for name, weight in state.items():
        part, layer = name.removesuffix(".weight"), ""
        if part.startswith("layers."):
            _, number, part = part.split(".", 2)
            layer = f"model.layers.{number}."
        if part in ("attention.wq", "attention.wk"):
            heads = weight.shape[0] // shape.head_dim
            paired = weight.view(heads, shape.head_dim // 2, 2, shape.dim)
            weight = paired.transpose(1, 2).reshape(-1, shape.dim)
        if not (shape.tied and name == "output.weight"):
            result[f"{layer}{renamed[part]}.weight"] = weight
    return result


def write_huggingface(folder: Path, shape: Shape, state: State) -> Path:
    """The same model as transformers would save it, in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "vocab_size": shape.vocab_size,
        "rms_norm_eps": 1e-05,
        "rope_theta": shape.params.get("rope_theta", 10000.0),
        "tie_word_embeddings": shape.tied,
        "torch_dtype": str(shape.dtype).removeprefix("torch."),
    }
    if shape.params.get("use_scaled_rope"):
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in huggingface(shape, state).items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def read(folder: Path, *, mmap: bool = True) -> list[State]:
    """What each rank file of a folder holds, as torch reads it."""
    return [
        torch.load(file, weights_only=True, mmap=mmap) for file in sorted(folder.glob("consolidated.*.pth"))
    ]


def assert_ranks(found: list[State], expected: list[State]) -> None:
    """The same tensors under the same names, bit by bit, on each rank."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert sorted(ours) == sorted(theirs)
        for name, weight in theirs.items():
            assert ours[name].dtype == weight.dtype, name
            assert ours[name].shape == weight.shape, name
            assert ours[name].is_contiguous(), name
            assert torch.equal(ours[name].view(torch.uint8), weight.contiguous().view(torch.uint8)), name
