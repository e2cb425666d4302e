"""Table of the weights of a dense text Llama: names, shapes, sharded dimensions, permuted rows.

Conversion, resharding, inspection and verification all use this table.  Sources: Meta names and sharding,
llama-models ``models/llama3/model.py`` and ``models/checkpoint.py``; Hugging Face names, transformers
``models/llama/modeling_llama.py``; torchtune names, torchtune ``models/convert_weights.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from llama_convert.llama.config import LlamaConfig

CheckpointFormat = Literal["meta", "huggingface"]

WIDTHS = {
    "vocab": lambda c: c.vocab_size,
    "dim": lambda c: c.dim,
    "q": lambda c: c.n_heads * c.head_dim,
    "kv": lambda c: c.n_kv_heads * c.head_dim,
    "ffn": lambda c: c.ffn_dim,
}
"""Size of each kind of dimension, from a `LlamaConfig`."""


@dataclass(frozen=True)
class WeightKind:
    """One row of the table: a weight of the model, or one weight of each layer."""

    meta: str
    """Name in Meta format; ``{layer}`` stands for the number of the layer."""
    huggingface: str
    """Name in Hugging Face format; ``{layer}`` as in `meta`."""
    torchtune: str
    """Name in torchtune; ``{layer}`` as in `meta`.  Q and K rows are in the order of Meta format."""
    dims: tuple[str, ...]
    """Shape, as keys of `WIDTHS`: for example ``("q", "dim")`` is [n_heads * head_dim, dim]."""
    sharded_dims: tuple[int, ...] = ()
    """Dimensions along which ranks may split it (the shapes decide); empty: every rank has a full copy."""
    permuted: bool = False
    """RoPE rotates its rows in pairs, so their order depends on the format (see `rope`)."""
    dropped_when_tied: bool = False
    """Hugging Face format omits it if the LM head is the embedding matrix."""

    @property
    def per_layer(self) -> bool:
        """Whether each layer has one."""
        return "{layer}" in self.meta

    @cached_property
    def meta_pattern(self) -> re.Pattern[str]:
        """Matches its names in Meta format."""
        return _pattern(self.meta)

    @cached_property
    def huggingface_pattern(self) -> re.Pattern[str]:
        """Matches its names in Hugging Face format."""
        return _pattern(self.huggingface)

    @cached_property
    def torchtune_pattern(self) -> re.Pattern[str]:
        """Matches its names in torchtune."""
        return _pattern(self.torchtune)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d*)"))


def _layer(
    meta: str,
    huggingface: str,
    torchtune: str,
    *dims: str,
    sharded: int | None = None,
    permuted: bool = False,
) -> WeightKind:
    return WeightKind(
        f"layers.{{layer}}.{meta}.weight",
        f"model.layers.{{layer}}.{huggingface}.weight",
        f"layers.{{layer}}.{torchtune}",
        dims,
        () if sharded is None else (sharded,),
        permuted,
    )


LLAMA: tuple[WeightKind, ...] = (
    # Llama 1 and 2 shard the embedding along dim 1, Llama 3 and later along dim 0.
    WeightKind(
        "tok_embeddings.weight",
        "model.embed_tokens.weight",
        "tok_embeddings.weight",
        ("vocab", "dim"),
        sharded_dims=(0, 1),
    ),
    _layer("attention.wq", "self_attn.q_proj", "attn.q_proj.weight", "q", "dim", sharded=0, permuted=True),
    _layer("attention.wk", "self_attn.k_proj", "attn.k_proj.weight", "kv", "dim", sharded=0, permuted=True),
    _layer("attention.wv", "self_attn.v_proj", "attn.v_proj.weight", "kv", "dim", sharded=0),
    _layer("attention.wo", "self_attn.o_proj", "attn.output_proj.weight", "dim", "q", sharded=1),
    _layer("feed_forward.w1", "mlp.gate_proj", "mlp.w1.weight", "ffn", "dim", sharded=0),
    _layer("feed_forward.w3", "mlp.up_proj", "mlp.w3.weight", "ffn", "dim", sharded=0),
    _layer("feed_forward.w2", "mlp.down_proj", "mlp.w2.weight", "dim", "ffn", sharded=1),
    _layer("attention_norm", "input_layernorm", "sa_norm.scale", "dim"),
    _layer("ffn_norm", "post_attention_layernorm", "mlp_norm.scale", "dim"),
    WeightKind("norm.weight", "model.norm.weight", "norm.scale", ("dim",)),
    WeightKind(
        "output.weight",
        "lm_head.weight",
        "output.weight",
        ("vocab", "dim"),
        sharded_dims=(0,),
        dropped_when_tied=True,
    ),
)
"""In the order of the modules of both implementations."""

EMBEDDING, HEAD = LLAMA[0], LLAMA[-1]

RECOMPUTED = re.compile(
    r"(?:.+\.)?(?:"
    r"rope\.freqs"  # Meta; also in each layer in LLaMA 1's first files
    r"|freqs_cis"  # torchtitan
    r"|rotary_emb\.inv_freq"  # transformers until 4.31
    r")"
)
"""Tensors that are constants of RoPE, not weights; every implementation recomputes them."""


@dataclass(frozen=True)
class Weight:
    """One weight of a model."""

    kind: WeightKind
    layer: int | None = None
    """Number of the layer from 0; None outside the layers."""

    @property
    def meta_name(self) -> str:
        """Name in ``consolidated.NN.pth``."""
        return self.kind.meta.format(layer=self.layer)

    @property
    def huggingface_name(self) -> str:
        """Name in ``model.safetensors``."""
        return self.kind.huggingface.format(layer=self.layer)

    def shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """Shape of the whole weight: all ranks joined, replicated KV heads counted once."""
        return tuple(WIDTHS[dim](config) for dim in self.kind.dims)


def model_weights(config: LlamaConfig) -> Iterator[Weight]:
    """Every weight of a model in the order of its modules, including a tied LM head."""
    layers = [kind for kind in LLAMA if kind.per_layer]
    yield from (Weight(kind) for kind in LLAMA[:1])
    for layer in range(config.n_layers):
        yield from (Weight(kind, layer) for kind in layers)
    yield from (Weight(kind) for kind in LLAMA[1:] if not kind.per_layer)


def huggingface_weights(config: LlamaConfig) -> list[Weight]:
    """The weights of a Hugging Face checkpoint in the order of its modules, without a tied LM head."""
    return [w for w in model_weights(config) if not (config.tied and w.kind.dropped_when_tied)]


def parse_meta_name(name: str) -> Weight | None:
    """The weight with this name in Meta format; None if no weight has this name."""
    return _parse(name, [kind.meta_pattern for kind in LLAMA])


def parse_huggingface_name(name: str) -> Weight | None:
    """The weight with this name in Hugging Face format; None if no weight has this name."""
    return _parse(name, [kind.huggingface_pattern for kind in LLAMA])


def parse_torchtune_name(name: str) -> Weight | None:
    """The weight with this name in torchtune; None if no weight has this name."""
    return _parse(name, [kind.torchtune_pattern for kind in LLAMA])


def _parse(name: str, patterns: list[re.Pattern[str]]) -> Weight | None:
    for kind, pattern in zip(LLAMA, patterns, strict=True):
        if match := pattern.fullmatch(name):
            return Weight(kind, int(match["layer"]) if kind.per_layer else None)
    return None
