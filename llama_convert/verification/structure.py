"""The *structure* check: files, names, shapes, dtypes, the index and hyper-parameters; reads headers only."""

from __future__ import annotations

from dataclasses import replace

from llama_convert.checkpoints.folders import RANK_FILE
from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.source import Checkpoint
from llama_convert.findings import Finding, severity_of
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.weights import HEAD, Weight
from llama_convert.verification.context import Context, contradictions
from llama_convert.verification.inputs import config_file, declared_config
from llama_convert.verification.report import Outcome
from llama_convert.verification.safetensors_library import check_with_library


def check_structure(context: Context) -> Outcome:
    """Report what opening output and source found, and where their hyper-parameters differ."""
    context.headers_reported = True
    findings = [Finding.of(error) for error in context.output.problems]
    output, source = context.output.checkpoint, None
    if context.source:
        source = context.source.checkpoint
        findings += [_in_source(Finding.of(error)) for error in context.source.problems]
    if output is None:
        return Outcome("The headers are damaged", findings)
    if source is not None:
        findings += config_differences(source, output)
        findings += [_in_source(Finding.of(error, severity="warning")) for error in source.warnings]
    wrong = contradictions(output)
    findings += [
        Finding.of(error, severity=severity_of(warning=error not in wrong)) for error in output.warnings
    ]
    findings += _unusual_names(output)
    is_meta = isinstance(output, MetaCheckpoint)
    if isinstance(output, HuggingFaceCheckpoint):
        files = [file for file in output.files if file.suffix == ".safetensors"]
        findings += check_with_library(files, output.weights.values())
    n_files = len(output.folder.files if isinstance(output, MetaCheckpoint) else output.files)
    summary = f"{len(output.weights)} tensors in {n_files} file{'s' * (n_files > 1)}"
    details = f"Names, shapes, dtypes, {'ranks' if is_meta else 'index'} and hyper-parameters"
    details += "" if is_meta else ", also as the safetensors library reads them"
    measures = {"tensors": len(output.weights), "files": n_files, "dtype": output.dtype.name}
    return Outcome(summary, findings, measures, details)


def _unusual_names(output: Checkpoint) -> list[Finding]:
    """A finding if loaders do not know the names of the tensors: an error in files of the usual names."""
    if output.note is None and output.row_order == output.format:
        return []
    files = output.folder.files if isinstance(output, MetaCheckpoint) else output.files
    is_usual = all(file.suffix == ".safetensors" or RANK_FILE.fullmatch(file.name) for file in files)
    return [
        Finding(
            "TENSOR_UNKNOWN",
            "Loaders do not know the names of the tensors.",
            file=files[0].name,
            hint="Convert the checkpoint, which writes the usual names.",
            severity=severity_of(warning=not is_usual),
        )
    ]


def _in_source(finding: Finding) -> Finding:
    return replace(finding, message=f"In the source: {finding.message}")


def config_differences(source: Checkpoint, output: Checkpoint) -> list[Finding]:
    """A finding for each hyper-parameter in which the output differs from the source.

    Only config.json has a setting for tied embeddings.  It makes no difference if the output stores an LM
    head, which is then compared like any other weight.
    """
    expected, found = source.config, declared_config(output)
    stores_head = Weight(HEAD) in output.weights
    if isinstance(output, MetaCheckpoint):
        found = replace(found, tied=expected.tied)
    both_scaled = expected.rope_scaling is not None and found.rope_scaling is not None
    in_source, in_output = (_settings(config, both_scaled) for config in (expected, found))
    return [
        Finding(
            "CONFIG_DIFFERS",
            f"{name} differs from the source.",
            file=config_file(output),
            expected=value,
            found=in_output[name],
            # The context length is a limit and does not change what is computed.
            severity=severity_of(
                warning=name == "max_position_embeddings"
                or (name == "tie_word_embeddings" and stores_head and not found.tied)
            ),
        )
        for name, value in in_source.items()
        if value != in_output[name]
    ]


_CONFIG_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "tied": "tie_word_embeddings",
    "original_context_length": "original_max_position_embeddings",
}
"""Fields of `LlamaConfig` that config.json names differently, with the key in config.json."""


def _settings(config: LlamaConfig, scaling_in_parts: bool) -> dict[str, str]:
    """Every hyper-parameter by its key in config.json; RoPE scaling as one text, or number by number."""
    settings: dict[str, object] = dict(vars(config))
    scaling = settings["rope_scaling"]
    if scaling_in_parts:
        settings |= vars(settings.pop("rope_scaling"))
    elif isinstance(scaling, RopeScaling):
        settings["rope_scaling"] = (
            f"llama3, factor {scaling.factor:g}, from {scaling.original_context_length}"
        )
    return {_CONFIG_KEYS.get(name, name): _as_text(value) for name, value in settings.items()}


def _as_text(value: object) -> str:
    return "none" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
