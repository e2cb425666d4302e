"""The *structure* level: files, names, shapes, dtypes, the index, and hyper-parameters; headers alone."""

from __future__ import annotations

from dataclasses import fields, replace

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.verify.context import Context, Outcome, config_file
from llama_convert.verify.report import Finding


def look_at_structure(context: Context) -> Outcome:
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
        findings += config_differences(source.config, output.config, config_file(output))
    meta = isinstance(output, MetaCheckpoint)
    n_files = len(output.folder.rank_files if isinstance(output, MetaCheckpoint) else output.files)
    summary = (
        f"{len(output.weights)} tensors in {n_files} file{'s' * (n_files > 1)}: names, shapes, dtypes, "
        f"{'ranks' if meta else 'index'}, hyper-parameters"
    )
    return summary, findings, {"tensors": len(output.weights), "files": n_files, "dtype": output.dtype.name}


def config_differences(expected: LlamaConfig, found: LlamaConfig, file: str) -> list[Finding]:
    """A finding for each hyper-parameter of the source that the output does not have."""
    findings = []
    for name in (one.name for one in fields(LlamaConfig)):
        one, other = getattr(expected, name), getattr(found, name)
        if one != other:
            findings.append(
                Finding(
                    "CONFIG_DIFFERS",
                    f"{_SPELLED.get(name, name)} differs: it says {_shown(other)}, the source {_shown(one)}",
                    file=file,
                    expected=_shown(one),
                    found=_shown(other),
                    warning=name == "context_length",  # tells how far to go, not what to compute
                )
            )
    return findings


_SPELLED = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "tied": "tie_word_embeddings",
}
"""What config.json calls a hyper-parameter, where that is not its name here."""


def _shown(value: object) -> str:
    if isinstance(value, RopeScaling):
        return f"llama3 scaling by {value.factor:g} from {value.original_context_length}"
    return "none" if value is None else str(value)
