"""A checkpoint in Hugging Face's layout: its files' names, its shards, its configs.

``config.json`` keeps the spelling of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`), which all
versions from 4.45 to 5.x read right; 5's own spelling loses the rotary settings in 4.
"""

from __future__ import annotations

import json
from typing import Any

from llama_convert.dtypes import Dtype
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.releases import Release
from llama_convert.llama.weights import Weight, model_weights

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DEFAULT_SHARD_SIZE = "5GB"
FORMAT_VERSION = "4.45.0.dev0"
"""The transformers version whose files ours are written like: the one that wrote the Hub's Llama 3.2."""


def stored_weights(config: LlamaConfig) -> list[Weight]:
    """The weights a Hugging Face folder holds, in the order of its modules; a tied LM head is left out."""
    return [w for w in model_weights(config) if not (config.tied and w.kind.dropped_when_tied)]


def split_into_shards(sizes: dict[str, int], max_shard_size: int) -> dict[str, list[str]]:
    """Which tensor goes into which file, as ``save_pretrained`` has it.

    A shard is filled in model order until the next tensor would pass ``max_shard_size`` bytes; a tensor
    larger than that gets a file of its own, which comes before the shard being filled (huggingface_hub,
    ``serialization/_base.py: split_state_dict_into_shards_factory``).
    """
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if size > max_shard_size:
            shards.append([name])
            continue
        if filled + size > max_shard_size:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += size
    if current:
        shards.append(current)
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    count = len(shards)
    return {f"model-{n:05d}-of-{count:05d}.safetensors": names for n, names in enumerate(shards, start=1)}


def index_json(shards: dict[str, list[str]], total_size: int) -> bytes:
    """``model.safetensors.index.json``; ``total_size`` counts the bytes of all tensors."""
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return to_json(index, sort_keys=True)


def to_json(content: dict[str, Any], *, sort_keys: bool = True) -> bytes:
    """JSON as transformers writes its configs."""
    return (json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n").encode()


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
    """``generation_config.json``: the ids that begin and end a text, and the release's way of sampling."""
    sampling: dict[str, Any] = dict(release.sampling) or {"_from_model_config": True}
    ids = {"bos_token_id": bos, "eos_token_id": eos, "transformers_version": FORMAT_VERSION}
    return to_json(sampling | ids)


Ids = int | list[int]


def eos_ids(release: Release, instruct: bool, bos: int, eos: int) -> tuple[Ids, Ids]:
    """What ends a text, in config.json and in generation_config.json.

    Llama 3's special tokens count from the ``bos`` that begins a text: 1 ``<|end_of_text|>``, 8
    ``<|eom_id|>`` (from 3.1 on), 9 ``<|eot_id|>``.  ``eos`` is what the tokenizer ends with, which for Code
    Llama 70B Instruct is a token of its own.
    """
    if release.tokenizer == "sentencepiece":
        return 2, 2 if eos == 2 else [2, eos]
    end_of_text, eom, eot = bos + 1, bos + 8, bos + 9
    if not instruct:
        return end_of_text, end_of_text
    if release.special_tokens == "llama3":
        return eot, [end_of_text, eot]
    return [end_of_text, eom, eot], [end_of_text, eom, eot]
