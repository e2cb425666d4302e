"""``config.json`` and ``generation_config.json`` of a checkpoint in Hugging Face format.

Written with the keys of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`), which versions 4.45 to
5.x read correctly; version 4 ignores the RoPE settings in the keys of version 5.  Both are read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.json_object import (
    MAX_LAYERS,
    MAX_SETTINGS,
    MAX_WIDTH,
    JsonObject,
    read_json_object,
    to_json,
)
from llama_convert.checkpoints.known_keys import (
    CONFIG_FEATURES,
    CONFIG_HARMLESS,
    CONFIG_USED,
    check_keys,
)
from llama_convert.dtypes import BY_NAME, Dtype
from llama_convert.errors import InputError
from llama_convert.formats.files import read_small
from llama_convert.formats.strict_json import parse_json, shown
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.releases import Release

FORMAT_VERSION = "4.45.0.dev0"
"""``transformers_version`` in written files: that of Llama 3.2 on the Hub, whose format they have."""


def config_json(config: LlamaConfig, dtype: Dtype, bos: int, eos: Ids) -> bytes:
    """``config.json`` of `LlamaForCausalLM`."""
    return to_json(
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "hidden_size": config.dim,
            "initializer_range": 0.02,
            "intermediate_size": config.ffn_dim,
            "max_position_embeddings": config.context_length,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": config.n_heads,
            "num_hidden_layers": config.n_layers,
            "num_key_value_heads": config.n_kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": config.norm_eps,
            "rope_scaling": _rope_scaling_json(config.rope_scaling),
            "rope_theta": config.rope_theta,
            "tie_word_embeddings": config.tied,
            "torch_dtype": dtype.name,
            "transformers_version": FORMAT_VERSION,
            "use_cache": True,
            "vocab_size": config.vocab_size,
        }
    )


def _rope_scaling_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context_length,
        "rope_type": "llama3",
    }


def generation_config_json(release: Release, bos: int, eos: Ids) -> bytes:
    """``generation_config.json``: BOS and EOS ids, and the sampling settings of the release."""
    sampling: dict[str, Any] = dict(release.sampling) or {"_from_model_config": True}
    ids = {"bos_token_id": bos, "eos_token_id": eos, "transformers_version": FORMAT_VERSION}
    return to_json(sampling | ids)


Ids = int | list[int]


def eos_ids(release: Release, instruct: bool, bos: int, eos: int) -> tuple[Ids, Ids]:
    """EOS ids in config.json and in generation_config.json.

    The special tokens of Llama 3 are consecutive from ``bos``: +1 is ``<|end_of_text|>``, +8 ``<|eom_id|>``
    (from 3.1), +9 ``<|eot_id|>``.

    Args:
        release: the release.
        instruct: whether it is a chat model.
        bos: BOS id of the tokenizer.
        eos: EOS id of the tokenizer; Code Llama 70B Instruct has a different one than Llama 2.
    """
    if release.tokenizer == "sentencepiece":
        return 2, 2 if eos == 2 else [2, eos]
    end_of_text, eom, eot = bos + 1, bos + 8, bos + 9
    if not instruct:
        return end_of_text, end_of_text
    if release.special_tokens == "llama3":
        return eot, [end_of_text, eot]
    return [end_of_text, eom, eot], [end_of_text, eom, eot]


@dataclass(frozen=True)
class HuggingFaceConfig:
    """A ``config.json``, read and checked."""

    file: Path
    llama: LlamaConfig
    dtype: Dtype | None
    """``torch_dtype`` or ``dtype``."""
    raw: dict[str, Any]
    """All keys of the file."""
    warnings: tuple[InputError, ...]
    """A warning if there are unknown keys."""


def edited_config(config: HuggingFaceConfig, *, tied: bool, dtype: Dtype) -> bytes:
    """The bytes of a config.json with these values of ``tie_word_embeddings`` and ``torch_dtype``.

    Everything else is unchanged, and so is a ``torch_dtype`` that is missing.

    Raises:
        InputError, OutputError: the file cannot be read.
    """
    text, content = read_small(config.file, MAX_SETTINGS), config.raw
    if config.llama.tied != tied:
        text, content = _with_value(text, content, "tie_word_embeddings", tied)
    if config.dtype not in (None, dtype):
        key = "torch_dtype" if config.raw.get("torch_dtype") is not None else "dtype"
        text, content = _with_value(text, content, key, dtype.name)
    return text


def _with_value(
    text: bytes, content: dict[str, Any], key: str, value: bool | str
) -> tuple[bytes, dict[str, Any]]:
    """JSON text and its content with another value of a key, formatted as before where that is possible."""
    changed = {**content, key: value}
    old = rb"(?:true|false|null|\"[^\"\\]*\")"
    for match in re.finditer(rb'"' + key.encode() + rb'"\s*:\s*(' + old + rb")", text):
        edited = text[: match.start(1)] + json.dumps(value).encode() + text[match.end(1) :]
        if parse_json(edited) == changed:  # not so for a match in a nested object or in a string
            return edited, changed
    return to_json(changed, sort_keys=False), changed


def read_config(file: Path) -> HuggingFaceConfig:
    """The hyper-parameters in a ``config.json``, with the defaults of `LlamaConfig` of transformers.

    Raises:
        InputError: the file is missing or not JSON, a value is invalid, or the model is not a dense text
            Llama with unquantized weights.
    """
    hint = "Copy the config.json of the model next to the weights, or pass its folder: --config-from FOLDER."
    config = read_json_object(file, "CONFIG", missing_hint=hint)
    warnings = check_keys(config, CONFIG_FEATURES, CONFIG_USED, CONFIG_HARMLESS)
    dim = config.integer("hidden_size", MAX_WIDTH)
    n_heads = config.integer("num_attention_heads", MAX_WIDTH)
    n_kv_heads = config.optional_integer("num_key_value_heads", MAX_WIDTH) or n_heads
    head_dim = config.optional_integer("head_dim", MAX_WIDTH)
    if head_dim is None and dim % n_heads:
        raise config.refuse(f"num_attention_heads {n_heads} does not divide hidden_size {dim}.")
    head_dim = head_dim or dim // n_heads
    if head_dim % 2:
        raise config.refuse(f"head_dim {head_dim} is not even, but RoPE rotates pairs.")
    if n_heads % n_kv_heads:
        message = f"num_key_value_heads {n_kv_heads} does not divide num_attention_heads {n_heads}."
        raise config.refuse(message)
    rope_theta, rope_scaling = _read_rope(config)
    dtype = config.content.get("torch_dtype") or config.content.get("dtype")
    llama = LlamaConfig(
        dim=dim,
        n_layers=config.integer("num_hidden_layers", MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=config.integer("intermediate_size", MAX_WIDTH),
        vocab_size=config.integer("vocab_size", MAX_WIDTH),
        norm_eps=config.optional_number("rms_norm_eps") or 1e-6,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        context_length=config.optional_integer("max_position_embeddings", 1 << 40) or 2048,
        tied=config.flag("tie_word_embeddings"),
    )
    return HuggingFaceConfig(file, llama, BY_NAME.get(str(dtype)), config.content, warnings)


def _read_rope(config: JsonObject) -> tuple[float, RopeScaling | None]:
    """Base and scaling of RoPE, from the keys of transformers 4 or 5.

    A file may have both.  The versions prefer different ones, so they must match.

    Raises:
        InputError: they contradict each other, or a value is invalid.
    """
    objects = [config.child(key) for key in ("rope_scaling", "rope_parameters")]
    settings = [each for each in objects if each and each.content]
    for each in settings:
        check_keys(each, CONFIG_FEATURES, each.content, ())
    thetas = {theta for each in (*settings, config) if (theta := each.optional_number("rope_theta"))}
    scalings = {_read_rope_scaling(each) for each in settings}
    if len(thetas) > 1 or len(scalings) > 1:
        raise config.refuse(
            '"rope_theta", "rope_scaling" and "rope_parameters" contradict each other, '
            "so transformers 4 and 5 would compute different results."
        )
    return next(iter(thetas), 10000.0), next(iter(scalings), None)


def _read_rope_scaling(rope: JsonObject) -> RopeScaling | None:
    kind = rope.content.get("rope_type", rope.content.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        message = f"rope_type is {shown(kind)}. Only llama3 and default are supported."
        raise InputError("UNSUPPORTED_MODEL", message, file=rope.file)

    def number(key: str) -> float:
        value = rope.optional_number(key)
        if value is None:
            raise rope.refuse(f'Missing "{key}" in the RoPE scaling.')
        return value

    scaling = RopeScaling(
        factor=number("factor"),
        low_freq_factor=number("low_freq_factor"),
        high_freq_factor=number("high_freq_factor"),
        original_context_length=rope.integer("original_max_position_embeddings", 1 << 40),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise rope.refuse("high_freq_factor of the RoPE scaling is not above low_freq_factor.")
    return scaling
