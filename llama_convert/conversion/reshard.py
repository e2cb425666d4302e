"""The same checkpoint in the same layout, cut anew."""

from __future__ import annotations

from pathlib import Path

from llama_convert.checkpoints.checkpoint import Checkpoint
from llama_convert.checkpoints.folders import is_huggingface, is_meta
from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.huggingface_config import with_tied
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.meta_folder import find_meta_folder
from llama_convert.checkpoints.params import with_kv_heads
from llama_convert.checkpoints.suggestions import command, no_checkpoint_at
from llama_convert.conversion.auxiliary_files import carry_over, small_files
from llama_convert.conversion.huggingface_plan import plan_huggingface
from llama_convert.conversion.job import Job
from llama_convert.conversion.meta_plan import Cut, plan_meta
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.staging import Staging
from llama_convert.conversion.warnings import warn_of_head
from llama_convert.errors import UsageError
from llama_convert.formats.files import MAX_TOKENIZER, read_small
from llama_convert.llama.releases import DetectedRelease
from llama_convert.tokenizers import open_tokenizer
from llama_convert.units import parse_size


def reshard_meta(source: Path, destination: Path, options: ConvertOptions, notes: Notes) -> Job:
    """The job of cutting a Meta checkpoint into another number of ranks.

    Raises:
        UsageError: the source has the other layout, or the ranks do not divide the widths.
        InputError: the source is missing, damaged, inconsistent or unsupported.
    """

    def otherwise(found: Path) -> str:
        return command("convert", found, destination, "--to", "meta", "--mp", options.mp)

    if is_huggingface(source):
        message = f"--mp cuts Meta's layout; {source} has Hugging Face's"
        raise UsageError("BAD_USAGE", message, hint=otherwise(source))
    folder = find_meta_folder(source, options.model_size, output=destination, otherwise=otherwise)
    if folder.path != source:
        notes.note(f"the checkpoint is in {folder.path}")
    tokenizer = options.tokenizer or folder.tokenizer
    kind = open_tokenizer(tokenizer).kind if tokenizer else None
    checkpoint = open_meta(folder, kind, options.llama_version)
    notes.warn_of_each(checkpoint.warnings)
    axis = options.embedding_axis
    if axis is None:
        axis = checkpoint.embedding_dim
    if axis is None:
        axis = 0 if checkpoint.detected.release.tokenizer == "tiktoken" else 1
    warn_of_head(checkpoint, notes)
    cut = Cut(checkpoint.config, options.mp, axis)
    plan = plan_meta(checkpoint, None, cut)
    notes.note(
        f"{checkpoint.detected.title}: {len(folder.rank_files)} to {cut.n_ranks} ranks, the embedding cut on "
        f"dim {axis}" + (f", each KV head stored {cut.kv_repeats} times" if cut.kv_repeats > 1 else "")
    )

    carried = small_files(folder.path, folder.rank_files, notes, skip=("params.json", "tokenizer.model"))

    def write_small_files(staging: Staging) -> None:
        staging.write("params.json", with_kv_heads(checkpoint.params, cut.stored_kv_heads))
        carry_over(carried, staging)
        if tokenizer:
            staging.write("tokenizer.model", read_small(tokenizer, MAX_TOKENIZER))

    read = [*folder.rank_files, checkpoint.params.file]
    along = [*carried, *([tokenizer] if tokenizer else [])]
    job = _job(source, destination, checkpoint, checkpoint.detected, plan, read, along)
    job.write_small_files = write_small_files
    job.checklist = options.checklist
    return job


def reshard_huggingface(source: Path, destination: Path, options: ConvertOptions, notes: Notes) -> Job:
    """The job of cutting a Hugging Face checkpoint into files of another size.

    Raises:
        UsageError: the source has the other layout.
        InputError: the source is missing, damaged, inconsistent or unsupported.
    """

    def otherwise(found: Path) -> str:
        return command("convert", found, destination, "--max-shard-size", options.max_shard_size)

    if not source.is_dir() or not is_huggingface(source):
        if source.is_dir() and is_meta(source):
            message = f"--max-shard-size cuts Hugging Face's layout; {source} has Meta's"
            raise UsageError("BAD_USAGE", message, hint=otherwise(source))
        raise no_checkpoint_at(source, "huggingface", output=destination, otherwise=otherwise)
    if options.embedding_axis is not None or not options.checklist:
        raise UsageError("BAD_USAGE", "--embedding-axis and --no-checklist are of Meta's layout")
    if options.tokenizer:
        raise UsageError(
            "BAD_USAGE", "--tokenizer only applies to --mp; --max-shard-size copies SRC's tokenizer."
        )
    checkpoint = open_huggingface(source)
    notes.warn_of_each(checkpoint.warnings)
    plan = plan_huggingface(checkpoint, None, parse_size(options.max_shard_size))
    identity = checkpoint.detect(options.llama_version)
    notes.note(f"{identity.title}: {len(checkpoint.files)} to {len(plan.layouts)} files")
    settings, tied = checkpoint.settings, checkpoint.config.tied
    carried = small_files(source, checkpoint.files, notes, skip=(settings.file.name,))

    def write_small_files(staging: Staging) -> None:
        staging.write(settings.file.name, with_tied(settings, tied))
        carry_over(carried, staging)

    read = [*checkpoint.files, settings.file]
    job = _job(source, destination, checkpoint, identity, plan, read, carried)
    job.write_small_files = write_small_files
    return job


def _job(
    source: Path,
    destination: Path,
    checkpoint: Checkpoint,
    identity: DetectedRelease,
    plan: Plan,
    read: list[Path],
    carried: list[Path],
) -> Job:
    result = ConvertResult.of(destination, identity, plan.sizes, dtype=checkpoint.dtype.name)
    return Job(source, plan, result, read, carried, lambda _: None)
