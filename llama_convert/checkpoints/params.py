"""``params.json`` of a checkpoint in Meta format: read, checked and written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.json_object import (
    MAX_LAYERS,
    MAX_SETTINGS,
    MAX_WIDTH,
    JsonObject,
    read_json_object,
)
from llama_convert.checkpoints.known_keys import (
    PARAMS_FEATURES,
    PARAMS_HARMLESS,
    PARAMS_USED,
    check_keys,
)
from llama_convert.errors import InputError
from llama_convert.formats.files import read_small
from llama_convert.formats.strict_json import parse_json
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.releases import TokenizerKind


@dataclass(frozen=True)
class Params:
    """The values of a ``params.json``; None for missing keys."""

    file: Path
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    vocab_size: int | None
    multiple_of: int | None
    ffn_dim_multiplier: float | None
    hidden_dim: int | None
    """Feed-forward width, written by llama2.c, executorch and Mistral."""
    norm_eps: float
    rope_theta: float | None
    use_scaled_rope: bool
    rope_factor: float | None
    """RoPE scaling factor; no release of Meta has it here."""
    nested: bool
    """All keys are below a key ``model``, as in Llama Guard 1."""
    raw: dict[str, Any] = field(compare=False)
    warnings: tuple[InputError, ...] = field(default=(), compare=False)
    """A warning if there are unknown keys."""

    @property
    def ffn_dim(self) -> int | None:
        """Feed-forward width by these values; None if they do not determine it."""
        if self.hidden_dim is not None or self.multiple_of is None:
            return self.hidden_dim
        return ffn_width(self.dim, self.multiple_of, self.ffn_dim_multiplier)


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Feed-forward width by the formula in llama-models, ``models/llama3/model.py: FeedForward``."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def read_params(file: Path) -> Params:
    """The hyper-parameters in a ``params.json``.

    Raises:
        InputError: the file is missing or not JSON, a value is invalid, or the model is not a dense text
            Llama.
    """
    hint = "Copy the params.json of the model next to consolidated.00.pth."
    outer = read_json_object(file, "PARAMS", missing_hint=hint)
    inner = outer.child("model") if isinstance(outer.content.get("model"), dict) else None
    params = inner or outer
    warnings = check_keys(params, PARAMS_FEATURES, PARAMS_USED, PARAMS_HARMLESS)
    return replace(_check(params, nested=inner is not None), warnings=warnings)


def _check(params: JsonObject, *, nested: bool) -> Params:
    dim = params.integer("dim", MAX_WIDTH)
    n_heads = params.integer("n_heads", MAX_WIDTH)
    n_kv_heads = params.optional_integer("n_kv_heads", MAX_WIDTH)
    if dim % n_heads or (dim // n_heads) % 2:
        raise params.refuse(f"n_heads {n_heads} does not divide dim {dim} into heads of even width.")
    head_dim = params.optional_integer("head_dim", MAX_WIDTH)
    if head_dim not in (None, dim // n_heads):
        raise InputError(
            "UNSUPPORTED_MODEL",
            f"head_dim is not dim {dim} / n_heads {n_heads}, as in Meta's code.",
            file=params.file,
            expected=dim // n_heads,
            found=head_dim,
        )
    if n_kv_heads is not None and n_heads % n_kv_heads:
        raise params.refuse(f"n_kv_heads {n_kv_heads} does not divide n_heads {n_heads}.")
    vocab_size = params.content.get("vocab_size")
    if vocab_size is not None and vocab_size != -1:  # -1 in LLaMA 1 and Llama 2: that of the tokenizer
        vocab_size = params.integer("vocab_size", MAX_WIDTH)
    norm_eps = params.optional_number("norm_eps")
    if norm_eps is None:
        raise params.refuse('Missing "norm_eps".')
    return Params(
        file=params.file,
        dim=dim,
        n_layers=params.integer("n_layers", MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=None if vocab_size == -1 else vocab_size,
        multiple_of=params.optional_integer("multiple_of", MAX_WIDTH),
        ffn_dim_multiplier=params.optional_number("ffn_dim_multiplier"),
        hidden_dim=params.optional_integer("hidden_dim", MAX_WIDTH),
        norm_eps=norm_eps,
        rope_theta=_one_of(params, "rope_theta", "rope_freq_base"),
        rope_factor=_one_of(params, "rope_scaling_factor", "rope_scale_factor"),
        use_scaled_rope=params.flag("use_scaled_rope"),
        nested=nested,
        raw=params.content,
    )


def _one_of(params: JsonObject, *keys: str) -> float | None:
    """A number with several names in different tools."""
    values = {key: value for key in keys if (value := params.optional_number(key)) is not None}
    if len(set(values.values())) > 1:
        contradiction = " and ".join(f"{key} {value:g}" for key, value in values.items())
        raise params.refuse(f"{contradiction} contradict each other.")
    return next(iter(values.values()), None)


# Writing.

_RELEASED_WIDTHS: dict[tuple[int, int], tuple[int, float | None]] = {
    (4096, 14336): (1024, 1.3),
    (2048, 8192): (256, 1.5),
    (3072, 8192): (256, 1.0),
}
"""`multiple_of` and `ffn_dim_multiplier` of releases by dim and ffn_dim, if rounder values exist."""


def width_params(dim: int, ffn_dim: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` that result in exactly this feed-forward width.

    Those of the release with this width, or else the roundest numbers.
    """
    if (dim, ffn_dim) in _RELEASED_WIDTHS:
        return _RELEASED_WIDTHS[dim, ffn_dim]
    roundings = [n for n in (256, 4096, 2048, 1024, 512, 128, 64, 32, 16, 8, 4, 2, 1) if ffn_dim % n == 0]
    plain = int(2 * (4 * dim) / 3)
    candidates: list[tuple[int, float | None]] = [(n, None) for n in roundings]
    candidates += [
        (n, round(target / plain, digits))
        for digits in (1, 2, 3, 4)
        for n in roundings
        for target in (ffn_dim, ffn_dim - n / 2)
    ]
    candidates.append((1, (ffn_dim + 0.5) / plain))
    return next(c for c in candidates if ffn_width(dim, *c) == ffn_dim)


def params_json(config: LlamaConfig, tokenizer: TokenizerKind, stored_kv_heads: int) -> bytes:
    """``params.json`` of a model, with the keys in the order of its release.

    Args:
        config: hyper-parameters.
        tokenizer: kind of tokenizer.  With sentencepiece, a vocabulary of 32000 tokens is written as -1.
        stored_kv_heads: KV heads in all rank files, counting replicas; loaders divide it by the ranks.
    """
    multiple_of, multiplier = width_params(config.dim, config.ffn_dim)
    grouped = {"n_kv_heads": stored_kv_heads} if stored_kv_heads != config.n_heads else {}
    widened = {"ffn_dim_multiplier": multiplier} if multiplier is not None else {}
    theta = {"rope_theta": float(config.rope_theta)}
    scaled = {"use_scaled_rope": True} if config.rope_scaling else {}
    if tokenizer == "sentencepiece":
        released = config.vocab_size == 32000  # 32016 tokens are detected as Code Llama, with its rope_theta
        content = {
            "dim": config.dim,
            "multiple_of": multiple_of,
            **widened,
            "n_heads": config.n_heads,
            **grouped,
            "n_layers": config.n_layers,
            "norm_eps": config.norm_eps,
            **({} if released and config.rope_theta == 10000.0 else theta),
            "vocab_size": -1 if released else config.vocab_size,
            **scaled,
        }
        return json.dumps(content).encode() + b"\n"
    content = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": stored_kv_heads,
        "vocab_size": config.vocab_size,
        **widened,
        "multiple_of": multiple_of,
        "norm_eps": config.norm_eps,
        **theta,
        **scaled,
    }
    return json.dumps(content, indent=2 if config.tied else None).encode()


def with_kv_heads(params: Params, stored_kv_heads: int) -> bytes:
    """The bytes of a ``params.json`` with another number of KV heads in all rank files."""
    original = read_small(params.file, MAX_SETTINGS)
    if stored_kv_heads == (params.n_kv_heads or params.n_heads):
        return original
    content = parse_json(original)
    (content["model"] if params.nested else content)["n_kv_heads"] = stored_kv_heads
    return json.dumps(content).encode()
