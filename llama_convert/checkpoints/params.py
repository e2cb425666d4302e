"""Meta's ``params.json``, read strictly: what it says is checked here, what it means in `meta`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.json_object import MAX_LAYERS, MAX_WIDTH, JsonObject, read_json_object
from llama_convert.errors import InputError

_UNSUPPORTED = {
    "quantization_args": "a quantised release",
    "lora_args": "a release with LoRA adapters",
    "moe_args": "Llama 4 (mixture of experts)",
    "vision_args": "Llama 4 (vision)",
    "vision_chunk_size": "Llama 3.2 Vision",
}


@dataclass(frozen=True)
class Params:
    """The values of a ``params.json``; None where it says nothing."""

    file: Path
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    vocab_size: int | None
    multiple_of: int | None
    ffn_dim_multiplier: float | None
    norm_eps: float
    rope_theta: float | None
    use_scaled_rope: bool
    nested: bool
    """Everything stood under a key ``model``, as in Llama Guard 1."""
    raw: dict[str, Any] = field(compare=False)

    @property
    def ffn_dim(self) -> int | None:
        """The feed-forward width by Meta's formula (``models/llama3/model.py: FeedForward``)."""
        if self.multiple_of is None:
            return None
        width = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return self.multiple_of * ((width + self.multiple_of - 1) // self.multiple_of)


def read_params(file: Path) -> Params:
    """The hyper-parameters in ``file``.

    Raises:
        InputError: missing, not JSON, a value of the wrong type or out of range, or a model that is no dense
            text Llama.
    """
    outer = read_json_object(file, "PARAMS", belongs="it belongs beside consolidated.00.pth")
    inner = outer.below("model") if isinstance(outer.content.get("model"), dict) else None
    params = inner or outer
    for key, release in _UNSUPPORTED.items():
        if params.content.get(key) is not None:
            message = f'"{key}" marks {release}; only dense text Llamas are converted'
            raise InputError("UNSUPPORTED_MODEL", message, file=file)
    return _check(params, nested=inner is not None)


def _check(params: JsonObject, *, nested: bool) -> Params:
    dim = params.integer("dim", MAX_WIDTH)
    n_heads = params.integer("n_heads", MAX_WIDTH)
    n_kv_heads = params.optional_integer("n_kv_heads", MAX_WIDTH)
    if dim % n_heads or (dim // n_heads) % 2:
        raise params.refuse(f"n_heads {n_heads} does not divide dim {dim} into heads of an even width")
    if n_kv_heads is not None and n_heads % n_kv_heads:
        raise params.refuse(f"n_kv_heads {n_kv_heads} does not divide n_heads {n_heads}")
    vocab_size = params.content.get("vocab_size")
    if vocab_size is not None and vocab_size != -1:  # -1: "ask the tokenizer", LLaMA 1 and Llama 2
        vocab_size = params.integer("vocab_size", MAX_WIDTH)
    norm_eps = params.optional_number("norm_eps")
    if norm_eps is None:
        raise params.refuse('"norm_eps" is missing')
    return Params(
        file=params.file,
        dim=dim,
        n_layers=params.integer("n_layers", MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=None if vocab_size == -1 else vocab_size,
        multiple_of=params.optional_integer("multiple_of", MAX_WIDTH),
        ffn_dim_multiplier=params.optional_number("ffn_dim_multiplier"),
        norm_eps=norm_eps,
        rope_theta=params.optional_number("rope_theta"),
        use_scaled_rope=params.flag("use_scaled_rope"),
        nested=nested,
        raw=params.content,
    )
