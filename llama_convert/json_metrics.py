"""The metrics of each check of `verify`, as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Json = dict[str, Any]
"""A JSON object."""


def metrics(of: str, figures: Mapping[str, Any]) -> Json:
    """The figures of a check; empty if it has none."""
    return _METRICS[of](figures) if figures else {}


def structure_metrics(figures: Mapping[str, Any]) -> Json:
    """Numbers of tensors and files, and the dtype of the weights."""
    return {
        "tensor_count": figures["tensors"],
        "file_count": figures["files"],
        "dtype": figures["dtype"],
    }


def values_metrics(figures: Mapping[str, Any]) -> Json:
    """The root mean square of each tensor."""
    return {"norms": [{"tensor": row["tensor"], "rms": row["rms"]} for row in figures["norms"]]}


def weights_metrics(figures: Mapping[str, Any]) -> Json:
    """How each tensor differs from the source's."""
    return {
        "compared_tensors": [
            {
                "tensor": row["tensor"],
                "elements": row["elements"],
                "different_elements": row["different"],
                "max_difference": row["max_difference"],
                "relative_difference": row["relative_difference"],
            }
            for row in figures["tensors"]
        ]
    }


def tokenizer_metrics(figures: Mapping[str, Any]) -> Json:
    """Numbers of tokens, merges and texts that were compared."""
    return {
        "token_count": figures["tokens"],
        "merge_count": figures.get("merges"),
        "text_count": figures["texts"],
    }


def logits_metrics(figures: Mapping[str, Any]) -> Json:
    """How the results of the forward passes differ; without a source, the perplexity."""
    if "layers" not in figures:
        return {
            "bits_per_byte": figures["bits_per_byte"],
            "perplexity": figures["perplexity"],
            "limits": {"bits_per_byte": figures["limit"]},
        }
    limits = figures["threshold"]
    return {
        "layers": [
            {
                "layer": row["layer"],
                "divergence": row["divergence"],
                "text_difference": row["local"],
                "probe_difference": row["probe"],
            }
            for row in figures["layers"]
        ],
        "embedding_difference": figures["embedding"],
        "lm_head_difference": figures["head"],
        "max_lm_head_difference": figures["max_head_difference"],
        "positions": list(figures["positions"]),
        "kl": list(figures["kl"]),
        "predictions": [prediction(row) for row in figures["predictions"]],
        "max_kl": figures["max_kl"],
        "mean_kl": figures["mean_kl"],
        "top1_agreement": figures["top1_agreement"],
        "overturned": figures["overturned"],
        "max_logit_difference": figures["max_logit_difference"],
        "logit_std": figures["logit_spread"],
        "limits": {
            "embedding_difference": limits["embedding"],
            "layer_difference": limits["probe"],
            "divergence": limits["divergence"],
            "max_kl": limits["max_kl"],
            "max_logit_difference": limits["max_logit_difference"],
            "max_lm_head_difference": limits["max_head_difference"],
            "reason": limits["reason"],
        },
    }


def prediction(row: Mapping[str, Any]) -> Json:
    """The most likely next tokens after one token of the text; texts are None without a tokenizer."""
    return {
        key: row.get(key)
        for name in ("token", "source_top1", "output_top1")
        for key in (name, f"{name}_text")
    }


_METRICS: dict[str, Callable[[Mapping[str, Any]], Json]] = {
    "structure": structure_metrics,
    "values": values_metrics,
    "weights": weights_metrics,
    "tokenizer": tokenizer_metrics,
    "logits": logits_metrics,
}
