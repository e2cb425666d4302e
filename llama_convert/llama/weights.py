"""The one table of a Llama's weights: what each is called, its shape, its cut over ranks, its rotary rows.

Converting, re-sharding, inspecting and verifying all read this table and no other.  Sources: Meta's names and
cuts, llama-models ``models/llama3/model.py`` and ``models/checkpoint.py``; Hugging Face's names, transformers
``models/llama/modeling_llama.py``.  A further family (Vision, Llama 4) is a further table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from llama_convert.llama.config import LlamaConfig

WIDTHS = {
    "vocab": lambda c: c.vocab_size,
    "dim": lambda c: c.dim,
    "q": lambda c: c.n_heads * c.head_dim,
    "kv": lambda c: c.n_kv_heads * c.head_dim,
    "ffn": lambda c: c.ffn_dim,
}


@dataclass(frozen=True)
class WeightKind:
    """One row of the table; ``{layer}`` in its names stands for the layer's number."""

    meta: str
    huggingface: str
    axes: tuple[str, ...]
    """Its shape, as keys of `WIDTHS`."""
    cut: tuple[int, ...] = ()
    """Axes on which ranks may cut it (shapes tell which); none: every rank holds all of it."""
    rotary: bool = False
    """Its rows are rotated in pairs, which the layouts order differently (see `rotary`)."""
    dropped_when_tied: bool = False
    """Hugging Face leaves it out when the LM head is the embedding matrix."""

    @property
    def per_layer(self) -> bool:
        """Whether each decoder layer has one."""
        return "{layer}" in self.meta

    @cached_property
    def meta_pattern(self) -> re.Pattern[str]:
        """Matches its names in a Meta checkpoint."""
        return _pattern(self.meta)

    @cached_property
    def huggingface_pattern(self) -> re.Pattern[str]:
        """Matches its names in a Hugging Face checkpoint."""
        return _pattern(self.huggingface)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d*)"))


def _layer(
    meta: str, huggingface: str, *axes: str, cut: int | None = None, rotary: bool = False
) -> WeightKind:
    cuts = () if cut is None else (cut,)
    return WeightKind(
        f"layers.{{layer}}.{meta}.weight", f"model.layers.{{layer}}.{huggingface}.weight", axes, cuts, rotary
    )


LLAMA: tuple[WeightKind, ...] = (
    # Llama 1 and 2 cut the embedding on dim 1, Llama 3 and later on dim 0.
    WeightKind("tok_embeddings.weight", "model.embed_tokens.weight", ("vocab", "dim"), cut=(0, 1)),
    _layer("attention.wq", "self_attn.q_proj", "q", "dim", cut=0, rotary=True),
    _layer("attention.wk", "self_attn.k_proj", "kv", "dim", cut=0, rotary=True),
    _layer("attention.wv", "self_attn.v_proj", "kv", "dim", cut=0),
    _layer("attention.wo", "self_attn.o_proj", "dim", "q", cut=1),
    _layer("feed_forward.w1", "mlp.gate_proj", "ffn", "dim", cut=0),
    _layer("feed_forward.w3", "mlp.up_proj", "ffn", "dim", cut=0),
    _layer("feed_forward.w2", "mlp.down_proj", "dim", "ffn", cut=1),
    _layer("attention_norm", "input_layernorm", "dim"),
    _layer("ffn_norm", "post_attention_layernorm", "dim"),
    WeightKind("norm.weight", "model.norm.weight", ("dim",)),
    WeightKind("output.weight", "lm_head.weight", ("vocab", "dim"), cut=(0,), dropped_when_tied=True),
)
"""Dense text Llamas, in the order of both Meta's and Hugging Face's modules."""

EMBEDDING, HEAD = LLAMA[0], LLAMA[-1]

RECOMPUTED = re.compile(
    r"rope\.freqs"
    r"|layers\.\d+\.attention\.inner_attention\.rope\.freqs"  # LLaMA 1's first files
    r"|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # transformers until 4.31
)
"""Entries of files that hold constants, not weights; every reader computes them anew."""


@dataclass(frozen=True)
class Weight:
    """One weight of one model: a kind, and the layer it belongs to (None outside the layers)."""

    kind: WeightKind
    layer: int | None = None

    @property
    def meta_name(self) -> str:
        """Its name in ``consolidated.NN.pth``."""
        return self.kind.meta.format(layer=self.layer)

    @property
    def huggingface_name(self) -> str:
        """Its name in ``model.safetensors``."""
        return self.kind.huggingface.format(layer=self.layer)

    def shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """Its whole shape, all ranks joined and repeated KV heads counted once."""
        return tuple(WIDTHS[axis](config) for axis in self.kind.axes)


def model_weights(config: LlamaConfig) -> Iterator[Weight]:
    """Every weight of the model, in the order of its modules.  A tied LM head is among them."""
    layers = [kind for kind in LLAMA if kind.per_layer]
    yield from (Weight(kind) for kind in LLAMA[:1])
    for layer in range(config.n_layers):
        yield from (Weight(kind, layer) for kind in layers)
    yield from (Weight(kind) for kind in LLAMA[1:] if not kind.per_layer)


def huggingface_weights(config: LlamaConfig) -> list[Weight]:
    """The weights a Hugging Face folder holds, in the order of its modules; a tied LM head is left out."""
    return [w for w in model_weights(config) if not (config.tied and w.kind.dropped_when_tied)]


def parse_meta_name(name: str) -> Weight | None:
    """The weight that Meta's files call ``name``; None for a name that is no weight's."""
    return _parse(name, [kind.meta_pattern for kind in LLAMA])


def parse_huggingface_name(name: str) -> Weight | None:
    """The weight that Hugging Face's files call ``name``; None for a name that is no weight's."""
    return _parse(name, [kind.huggingface_pattern for kind in LLAMA])


def _parse(name: str, patterns: list[re.Pattern[str]]) -> Weight | None:
    for kind, pattern in zip(LLAMA, patterns, strict=True):
        if match := pattern.fullmatch(name):
            return Weight(kind, int(match["layer"]) if kind.per_layer else None)
    return None
