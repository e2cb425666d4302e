"""From a folder that transformers loads back to Meta's layout."""

from __future__ import annotations

from pathlib import Path

from llama_convert.checkpoints.folders import is_huggingface
from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.params import params_json
from llama_convert.checkpoints.suggestions import command, no_checkpoint_at
from llama_convert.conversion.auxiliary_files import (
    carry_over,
    small_files,
    tokenizer_back,
    tokenizer_sources,
)
from llama_convert.conversion.job import Job
from llama_convert.conversion.meta_plan import Cut, plan_meta
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.staging import Staging
from llama_convert.dtypes import parse_weight_dtype
from llama_convert.errors import InputError
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.releases import Release, detect_release


def to_meta(source: Path, destination: Path, options: ConvertOptions, notes: Notes) -> Job:
    """The job of converting a Hugging Face checkpoint to Meta's layout.

    Raises:
        UsageError: an option cannot be meant so, or the ranks do not divide the widths.
        InputError: the source is missing, damaged, inconsistent, or what Meta's layout cannot say.
    """
    if not source.is_dir() or not is_huggingface(source):
        raise no_checkpoint_at(
            source,
            "huggingface",
            output=destination,
            otherwise=lambda found: command("shard", found, destination, "--mp", options.mp),
        )
    checkpoint = open_huggingface(source)
    notes.warn_of_each(checkpoint.warnings)
    identity, config = checkpoint.detect(options.llama_version), checkpoint.config
    readers = detect_release(checkpoint.traits(), options.llama_version).release
    _check_sayable(config, readers, source / "config.json", notes)
    axis = options.embedding_axis
    if axis is None:
        axis = 0 if identity.release.tokenizer == "tiktoken" else 1
    cut = Cut(config, options.mp, axis)
    dtype = parse_weight_dtype(options.dtype)
    plan = plan_meta(checkpoint, dtype, cut)
    notes.note(f"{identity.title}, {checkpoint.dtype}: {'; '.join(identity.evidence)}")
    if cut.kv_repeats > 1:
        notes.note(f"each of {config.n_kv_heads} KV heads is stored {cut.kv_repeats} times")

    tokenizer_files = tokenizer_sources(source, options.tokenizer, destination)
    tokenizer = tokenizer_back(tokenizer_files, source, config.vocab_size, notes)
    carried = small_files(source, checkpoint.files, notes, skip=("*.json", "*.jinja", "tokenizer.model"))

    def write_small_files(staging: Staging) -> None:
        staging.write("params.json", params_json(config, identity.release.tokenizer, cut.stored_kv_heads))
        if tokenizer is not None:
            staging.write("tokenizer.model", tokenizer)
        carry_over(carried, staging)

    return Job(
        source,
        plan,
        ConvertResult.of(destination, identity, plan.sizes, dtype=(dtype or checkpoint.dtype).name),
        [*checkpoint.files, source / "config.json"],
        [*carried, *tokenizer_files],
        write_small_files,
        checklist=options.checklist,
    )


def _check_sayable(config: LlamaConfig, release: Release, file: Path, notes: Notes) -> None:
    """Whether ``params.json`` can say what ``config.json`` says; Meta's code holds the rest as constants.

    Raises:
        InputError: it cannot.
    """

    def refuse(message: str) -> InputError:
        return InputError("UNSUPPORTED_MODEL", f"{message}, which Meta's layout cannot say", file=file)

    if config.head_dim * config.n_heads != config.dim:
        raise refuse(f"has {config.n_heads} heads of {config.head_dim}, not of {config.dim} together")
    scaling = config.rope_scaling
    if scaling is None:
        return
    constants = RopeScaling(factor=scaling.factor)
    if scaling != constants:
        raise refuse(f"scales RoPE by {scaling}")
    readers_factor = release.rope_factor or RopeScaling.factor
    if scaling.factor != readers_factor:
        notes.warn(
            f"{file}: scales RoPE by {scaling.factor:g}; params.json only says that it does, and readers "
            f"take this model for {release.title} and scale by {readers_factor:g}"
        )
