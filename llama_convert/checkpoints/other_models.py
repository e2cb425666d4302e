"""Tensors of models that are not dense text Llamas, recognized by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_convert.errors import InputError
from llama_convert.text import quoted

_UNQUANTIZED = "Convert the unquantized release."
MERGE_ADAPTER = "Merge the adapter into its base model first."


@dataclass(frozen=True)
class _Kind:
    """A kind of model, or of weights."""

    pattern: re.Pattern[str]
    """Matches in some names of its tensors, and in none of a Llama."""
    message: str
    hint: str | None = None


def _kind(pattern: str, message: str, hint: str | None = None) -> _Kind:
    return _Kind(re.compile(pattern), message, hint)


_KINDS = (
    _kind(r"(?:^|\.)lora_\w+(?:\.|$)", "A LoRA adapter, not a whole model.", MERGE_ADAPTER),
    _kind(
        r"\.(?:qweight|qzeros|g_idx|scales)$",
        "Quantized weights (GPTQ or AWQ) are not supported.",
        _UNQUANTIZED,
    ),
    _kind(
        r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map|SCB)$|\.quant_state\.",
        "Quantized weights (bitsandbytes) are not supported.",
        _UNQUANTIZED,
    ),
    _kind(
        r"(?:scale|scale_inv|scales|zeros|zero_point|_packed)$",
        "Quantized weights are not supported.",
        _UNQUANTIZED,
    ),
    _kind(
        r"block_sparse_moe|\.(?:shared_)?experts?\.|\.feed_forward\.gate\.",
        "A mixture of experts, as in Mixtral and Llama 4, is not supported.",
    ),
    _kind(
        r"(?:^|\.)(?:vision_\w+|visual|multi_modal_projector|cross_attn\w*|cross_attention_layers)\.",
        "A vision model is not supported.",
    ),
    _kind(
        r"\.(?:[qkvo]_proj|w[qkvo])\.bias$",
        "Biases of attention, as in Qwen 2, are not supported.",
    ),
    _kind(
        r"\.[qk]_norm\.",
        "Normalized queries and keys, as in Qwen 3, are not supported.",
    ),
    _kind(r"(?:^|\.)h\.\d+\.attn\.c_attn\.", "A GPT-2 model is not supported."),
    _kind(r"(?:^|\.)gpt_neox\.", "A GPT-NeoX model is not supported."),
    _kind(
        r"(?:^|\.)embeddings\.word_embeddings\.",
        "A BERT model is not supported.",
    ),
    _kind(r"(?:^|\.)(?:encoder|decoder)\.block\.\d+\.", "A T5 model is not supported."),
    _kind(
        r"\.(?:qkv_proj|query_key_value|Wqkv|wqkv|linear_qkv)\.",
        "Fused weights of queries, keys and values, as in Phi-3 and Megatron, are not supported.",
    ),
)
"""In order of precedence."""


def known_model(tensors: Mapping[str, Path]) -> InputError | None:
    """The error for tensors that are not of a Llama; None if no kind of model is known by such names.

    Args:
        tensors: the file of each tensor that is not a weight of a Llama, by name.
    """
    for kind in _KINDS:
        for name, file in tensors.items():
            if kind.pattern.search(name):
                return InputError("UNSUPPORTED_MODEL", kind.message, file=file, tensor=name, hint=kind.hint)
    return None


def without_llama_weights(names: Iterable[str], file: Path) -> InputError:
    """The error for a file or folder none of whose tensors is a weight of a Llama.

    Args:
        names: names of its tensors.
        file: the file or folder, for the error.
    """
    names = list(names)
    if known := known_model(dict.fromkeys(names, file)):
        return known
    first = f" (the first tensor is {quoted(names[0])})" if names else ""
    message = f"Contains no weights of a Llama{first}."
    hint = "Rename the tensors like those in Meta or Hugging Face format, and save them with torch.save."
    return InputError("UNSUPPORTED_MODEL", message, file=file, hint=hint if names else None)
