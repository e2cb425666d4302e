"""Preparation of resharding: the same checkpoint in the same format, split differently."""

from __future__ import annotations

from pathlib import Path

from llama_convert.checkpoints.folders import is_huggingface, is_meta
from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.huggingface_config import edited_config
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.meta_folder import MetaFolder, find_meta_folder
from llama_convert.checkpoints.params import with_kv_heads
from llama_convert.checkpoints.source import HuggingFaceFolder
from llama_convert.checkpoints.suggestions import command, no_checkpoint_at
from llama_convert.conversion.auxiliary_files import auxiliary_files, copy_files
from llama_convert.conversion.huggingface_plan import plan_huggingface
from llama_convert.conversion.job import Job
from llama_convert.conversion.messages import Messages, report_detection, warn_of_missing_head
from llama_convert.conversion.meta_plan import RankSplit, plan_meta
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.staging import Staging
from llama_convert.dtypes import parse_weight_dtype
from llama_convert.errors import UsageError
from llama_convert.formats.files import MAX_TOKENIZER, read_small
from llama_convert.tokenizers import open_tokenizer
from llama_convert.units import parse_size

_META_OPTIONS = ("tokenizer", "chat_template", "special_tokens", "instruct")
"""Options of the conversion of Meta's tokenizer."""


def meta_reshard_job(source: Path, destination: Path, options: ConvertOptions, messages: Messages) -> Job:
    """Return the job that splits a Meta checkpoint into another number of shards.

    Raises:
        UsageError: the source has the other format, or a dimension is not divisible by the number of shards.
        InputError: the source is missing, damaged, inconsistent or unsupported.
    """

    def convert_command(found: Path) -> str:
        return command("convert", found, destination, "--to", "meta", "--mp", options.mp)

    if source.is_dir() and is_huggingface(source):
        message = f"--mp only applies to Meta checkpoints. {source} is in Hugging Face format."
        raise UsageError("BAD_USAGE", message, hint=f"Run: {convert_command(source)}")
    folder = find_meta_folder(source, options.model_size, output=destination, otherwise=convert_command)
    if folder.path != source:
        messages.detail(f"Found the checkpoint in {folder.path}.")
    return meta_to_meta(folder, source, destination, options, messages)


def meta_to_meta(
    folder: MetaFolder, source: Path, destination: Path, options: ConvertOptions, messages: Messages
) -> Job:
    """Return the job that writes a Meta checkpoint with ``options.mp`` shards and another dtype.

    Raises:
        UsageError: a dimension is not divisible by the number of shards, or an option has no effect.
        InputError: the source is damaged, inconsistent or unsupported.
    """
    dtype = parse_weight_dtype(options.dtype)
    tokenizer = options.tokenizer or folder.tokenizer
    kind = open_tokenizer(tokenizer).kind if tokenizer else None
    checkpoint = open_meta(folder, kind, options.llama_version)
    report_detection(checkpoint.detected, folder.n_ranks, checkpoint.dtype, messages)
    messages.warn_each(checkpoint.warnings)
    if checkpoint.note:
        messages.note(f"{folder.path}: {checkpoint.note}")
    axis = options.embedding_axis
    if axis is None:
        axis = checkpoint.embedding_dim
    if axis is None:
        axis = 0 if checkpoint.detected.release.tokenizer == "tiktoken" else 1
    warn_of_missing_head(checkpoint, messages)
    split = RankSplit(checkpoint.config, options.mp, axis)
    plan = plan_meta(checkpoint, dtype, split)
    messages.detail(f"Writing {split.n_ranks} shards, with the embedding split along dim {axis}.")
    if split.kv_repeats > 1:
        messages.detail(f"Each KV head is stored {split.kv_repeats} times.")

    copied = auxiliary_files(folder.settings, folder.files, messages, skip=("params.json", "tokenizer.model"))

    def write_small_files(staging: Staging) -> None:
        staging.write("params.json", with_kv_heads(checkpoint.params, split.stored_kv_heads))
        copy_files(copied, staging)
        if tokenizer:
            staging.write("tokenizer.model", read_small(tokenizer, MAX_TOKENIZER))

    return Job(
        source,
        folder.path,
        plan,
        ConvertResult.of(
            destination, checkpoint.detected, plan.sizes, dtype=(dtype or checkpoint.dtype).name
        ),
        [*folder.files, checkpoint.params.file],
        [*copied, *([tokenizer] if tokenizer else [])],
        write_small_files,
        writes_checklist=options.checklist,
    )


def huggingface_reshard_job(
    source: Path, destination: Path, options: ConvertOptions, messages: Messages
) -> Job:
    """Return the job that splits a Hugging Face checkpoint into files of another size.

    Raises:
        UsageError: the source has the other format, or an option only applies to Meta checkpoints.
        InputError: the source is missing, damaged, inconsistent or unsupported.
    """

    def convert_command(found: Path) -> str:
        return command("convert", found, destination, "--max-shard-size", options.max_shard_size)

    if not source.is_dir() or not is_huggingface(source):
        if source.is_dir() and is_meta(source):
            message = (
                f"--max-shard-size only applies to Hugging Face checkpoints. {source} is in Meta format."
            )
            raise UsageError("BAD_USAGE", message, hint=f"Run: {convert_command(source)}")
        raise no_checkpoint_at(source, "huggingface", output=destination, otherwise=convert_command)
    if options.embedding_axis is not None or not options.checklist:
        raise UsageError("BAD_USAGE", "--embedding-axis and --no-checklist only apply to Meta checkpoints.")
    if options.tokenizer:
        raise UsageError(
            "BAD_USAGE", "--tokenizer only applies to --mp; --max-shard-size copies SRC's tokenizer."
        )
    return huggingface_to_huggingface(
        HuggingFaceFolder(source, source), source, destination, options, messages
    )


def huggingface_to_huggingface(
    folder: HuggingFaceFolder,
    source: Path,
    destination: Path,
    options: ConvertOptions,
    messages: Messages,
) -> Job:
    """Return the job that writes a checkpoint with ``config.json`` as safetensors, with another dtype.

    Tokenizer and settings are copied.

    Raises:
        UsageError: an option has no effect.
        InputError: the source is damaged, inconsistent or unsupported.
    """
    dtype = parse_weight_dtype(options.dtype)
    for name in _META_OPTIONS:
        if getattr(options, name) not in (None, ()):
            flag = f"--{name.replace('_', '-')}"
            message = f"{flag} has no effect: tokenizer and settings of a Hugging Face checkpoint are copied."
            raise UsageError("BAD_USAGE", message, hint=f"Remove {flag}.")
    checkpoint = open_huggingface(folder.path, folder.found, folder.settings)
    identity = checkpoint.detect(options.llama_version)
    report_detection(identity, len(checkpoint.files), checkpoint.dtype, messages)
    messages.warn_each(checkpoint.warnings)
    if checkpoint.note:
        messages.note(f"{folder.path}: {checkpoint.note}")
    plan = plan_huggingface(checkpoint, dtype, parse_size(options.max_shard_size))
    messages.detail(f"Writing {len(plan.layouts)} shards.")
    settings, written = checkpoint.settings, dtype or checkpoint.dtype
    tied = checkpoint.config.tied
    copied = auxiliary_files(folder.settings, checkpoint.files, messages, skip=(settings.file.name,))

    def write_small_files(staging: Staging) -> None:
        staging.write(settings.file.name, edited_config(settings, tied=tied, dtype=written))
        copy_files(copied, staging)

    return Job(
        source,
        folder.path,
        plan,
        ConvertResult.of(destination, identity, plan.sizes, dtype=written.name),
        [*checkpoint.files, settings.file],
        copied,
        write_small_files,
    )
