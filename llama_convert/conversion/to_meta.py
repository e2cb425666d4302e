"""Preparation of a conversion from Hugging Face to Meta format."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.params import params_json
from llama_convert.checkpoints.source import HuggingFaceFolder
from llama_convert.conversion.auxiliary_files import (
    auxiliary_files,
    copy_files,
    meta_tokenizer,
    tokenizer_sources,
)
from llama_convert.conversion.job import Job
from llama_convert.conversion.messages import Messages, report_detection
from llama_convert.conversion.meta_plan import RankSplit, plan_meta
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.staging import Staging
from llama_convert.dtypes import parse_weight_dtype
from llama_convert.errors import InputError
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.releases import Release, detect_release


def huggingface_to_meta(
    folder: HuggingFaceFolder,
    source: Path,
    destination: Path,
    options: ConvertOptions,
    messages: Messages,
) -> Job:
    """Return the job that converts a Hugging Face checkpoint to Meta format.

    Raises:
        UsageError: an option is invalid, or a dimension is not divisible by the number of shards.
        InputError: the source is missing, damaged, inconsistent, or not representable in Meta format.
    """
    checkpoint = open_huggingface(folder.path, folder.found, folder.settings)
    identity, config = checkpoint.detect(options.llama_version), checkpoint.config
    report_detection(identity, len(checkpoint.files), checkpoint.dtype, messages)
    messages.warn_each(checkpoint.warnings)
    if checkpoint.note:
        messages.note(f"{folder.path}: {checkpoint.note}")
    detected_by_readers = detect_release(checkpoint.traits(), options.llama_version).release
    _check_representable(config, detected_by_readers, checkpoint.settings.file, messages)
    axis = options.embedding_axis
    if axis is None:
        axis = 0 if identity.release.tokenizer == "tiktoken" else 1
    split = RankSplit(config, options.mp, axis)
    dtype = parse_weight_dtype(options.dtype)
    plan = plan_meta(checkpoint, dtype, split)
    if split.kv_repeats > 1:
        messages.detail(f"Each of {config.n_kv_heads} KV heads is stored {split.kv_repeats} times.")

    tokenizer_files = tokenizer_sources(folder.settings, options.tokenizer, destination)
    tokenizer = meta_tokenizer(tokenizer_files, folder.settings, config.vocab_size, messages)
    copied = auxiliary_files(
        folder.settings, checkpoint.files, messages, skip=("*.json", "*.jinja", "tokenizer.model")
    )

    def write_small_files(staging: Staging) -> None:
        staging.write("params.json", params_json(config, identity.release.tokenizer, split.stored_kv_heads))
        if tokenizer is not None:
            staging.write("tokenizer.model", tokenizer)
        copy_files(copied, staging)

    return Job(
        source,
        folder.path,
        plan,
        ConvertResult.of(destination, identity, plan.sizes, dtype=(dtype or checkpoint.dtype).name),
        [*checkpoint.files, checkpoint.settings.file],
        [*copied, *tokenizer_files],
        write_small_files,
        writes_checklist=options.checklist,
    )


def _check_representable(config: LlamaConfig, release: Release, file: Path, messages: Messages) -> None:
    """Check that ``params.json`` can express the settings in ``config.json``.

    Meta's code keeps head_dim and the RoPE scaling parameters as constants. Warns if readers of the output
    would assume another scaling factor.

    Args:
        config: the settings.
        release: the release that readers of the output detect.
        file: ``config.json``, for messages.
        messages: receives the warning.

    Raises:
        InputError: Meta format cannot express the settings.
    """
    if config.head_dim * config.n_heads != config.dim:
        raise InputError(
            "UNSUPPORTED_MODEL",
            f"Meta format requires head_dim = dim / n_heads ({config.dim} / {config.n_heads}).",
            file=file,
            expected=f"{config.dim / config.n_heads:g}",
            found=config.head_dim,
        )
    scaling = config.rope_scaling
    if scaling is None:
        return
    supported = RopeScaling(factor=scaling.factor)
    if scaling != supported:
        changed = [
            f"{name} {value:g}"
            for name, value in asdict(scaling).items()
            if value != getattr(supported, name)
        ]
        message = f"Meta format cannot express RoPE scaling with {', '.join(changed)}."
        raise InputError("UNSUPPORTED_MODEL", message, file=file)
    assumed_factor = release.rope_factor or RopeScaling.factor
    if scaling.factor != assumed_factor:
        messages.warn(
            f"{file}: The RoPE scaling factor is {scaling.factor:g}, but params.json cannot store it. "
            f"Readers detect {release.title} and use {assumed_factor:g}."
        )
