"""The *structure* level: files, names, shapes, dtypes, the index, and hyper-parameters; headers alone."""

from __future__ import annotations

from dataclasses import replace

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.findings import Finding, severity_of
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.weights import HEAD, Weight
from llama_convert.verification.context import Context, Outcome, config_file, contradictions, declared_config
from llama_convert.verification.inputs import Checkpoint


def check_structure(context: Context) -> Outcome:
    """What opening both sides found, and where their hyper-parameters differ."""
    context.told = True
    findings = [Finding.of(error) for error in context.output.problems]
    output, source = context.output.checkpoint, None
    if context.source:
        source = context.source.checkpoint
        findings += [
            replace(Finding.of(error), message=f"in the source: {error.message}")
            for error in context.source.problems
        ]
    if output is None:
        return "files, names, shapes, dtypes", findings, {}
    if source is not None:
        findings += config_differences(source, output)
        findings += [
            replace(Finding.of(error, severity="warning"), message=f"in the source: {error.message}")
            for error in source.warnings
        ]
    wrong = contradictions(output)
    findings += [
        Finding.of(error, severity=severity_of(warning=error not in wrong)) for error in output.warnings
    ]
    meta = isinstance(output, MetaCheckpoint)
    n_files = len(output.folder.rank_files if isinstance(output, MetaCheckpoint) else output.files)
    summary = (
        f"{len(output.weights)} tensors in {n_files} file{'s' * (n_files > 1)}: names, shapes, dtypes, "
        f"{'ranks' if meta else 'index'}, hyper-parameters"
    )
    return summary, findings, {"tensors": len(output.weights), "files": n_files, "dtype": output.dtype.name}


def config_differences(source: Checkpoint, output: Checkpoint) -> list[Finding]:
    """A finding for each hyper-parameter of the source that the output does not have.

    Whether the LM head is tied is a setting of config.json alone.  It decides nothing where the output stores
    an LM head, which is then compared as any other weight.
    """
    expected, found = source.config, declared_config(output)
    stores_head = Weight(HEAD) in output.weights
    if isinstance(output, MetaCheckpoint):
        found = replace(found, tied=expected.tied)
    both_scaled = expected.rope_scaling is not None and found.rope_scaling is not None
    one, other = (_settings(config, both_scaled) for config in (expected, found))
    return [
        Finding(
            "CONFIG_DIFFERS",
            f"{name} differs: it says {other[name]}, the source {value}",
            file=config_file(output),
            expected=value,
            found=other[name],
            # The context length says how far to go, not what to compute.
            severity=severity_of(
                warning=name == "max_position_embeddings"
                or (name == "tie_word_embeddings" and stores_head and not found.tied)
            ),
        )
        for name, value in one.items()
        if value != other[name]
    ]


_SPELLED = {
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
"""What config.json calls a hyper-parameter, where that is not its name here."""


def _settings(config: LlamaConfig, scaling_in_parts: bool) -> dict[str, str]:
    """Every hyper-parameter by config.json's name for it; the rope scaling as one, or number by number."""
    settings: dict[str, object] = dict(vars(config))
    scaling = settings["rope_scaling"]
    if scaling_in_parts:
        settings |= vars(settings.pop("rope_scaling"))
    elif isinstance(scaling, RopeScaling):
        settings["rope_scaling"] = (
            f"llama3 scaling by {scaling.factor:g} from {scaling.original_context_length}"
        )
    return {_SPELLED.get(name, name): _shown(value) for name, value in settings.items()}


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
