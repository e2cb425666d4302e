"""The same checkpoint in the same layout, cut anew."""

from __future__ import annotations

from pathlib import Path

from llama_convert.checkpoints.folders import is_huggingface, is_meta
from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.locate import locate
from llama_convert.checkpoints.meant import command, nothing_here
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.open import Checkpoint
from llama_convert.checkpoints.params import with_kv_heads
from llama_convert.conversion.carry_over import carry_over, small_files, write_checklist
from llama_convert.conversion.huggingface_plan import plan_huggingface
from llama_convert.conversion.job import Job
from llama_convert.conversion.meta_plan import Cut, plan_meta
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.publish import Staging
from llama_convert.errors import UsageError
from llama_convert.formats.files import MAX_TOKENIZER, read_small
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
    folder = locate(source, options.model_size, output=destination, otherwise=otherwise)
    if folder.path != source:
        notes.note(f"the checkpoint is in {folder.path}")
    tokenizer = options.tokenizer or folder.tokenizer
    kind = open_tokenizer(tokenizer).kind if tokenizer else None
    checkpoint = open_meta(folder, kind, options.llama_version)
    axis = options.embedding_axis
    if axis is None:
        axis = checkpoint.embedding_cut
    if axis is None:
        axis = 0 if checkpoint.identity.release.tokenizer == "tiktoken" else 1
    cut = Cut(checkpoint.config, options.mp, axis)
    plan = plan_meta(checkpoint, None, cut)
    notes.note(
        f"{checkpoint.identity.title}: {len(folder.rank_files)} to {cut.n_ranks} ranks, the embedding cut on "
        f"dim {axis}" + (f", each KV head stored {cut.kv_repeats} times" if cut.kv_repeats > 1 else "")
    )

    carried = small_files(folder.path, skip=("params.json", "tokenizer.model"))

    def write_small_files(staging: Staging) -> None:
        staging.write("params.json", with_kv_heads(checkpoint.params, cut.stored_kv_heads))
        carry_over(carried, staging)
        if tokenizer:
            staging.write("tokenizer.model", read_small(tokenizer, MAX_TOKENIZER))

    read = [*folder.rank_files, checkpoint.params.file]
    job = _job(source, destination, checkpoint, plan, read, [*carried, *([tokenizer] if tokenizer else [])])
    job.write_small_files = write_small_files
    job.finish = lambda staging: write_checklist(staging, options, notes)
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
        raise nothing_here(source, "huggingface", output=destination, otherwise=otherwise)
    if options.embedding_axis is not None or not options.checklist:
        raise UsageError("BAD_USAGE", "--embedding-axis and --no-checklist are of Meta's layout")
    checkpoint = open_huggingface(source)
    plan = plan_huggingface(checkpoint, None, parse_size(options.max_shard_size))
    notes.note(f"{checkpoint.identity.title}: {len(checkpoint.files)} to {len(plan.layouts)} files")
    carried = small_files(source)
    job = _job(source, destination, checkpoint, plan, [*checkpoint.files, source / "config.json"], carried)
    job.write_small_files = lambda staging: carry_over(carried, staging)
    return job


def _job(
    source: Path,
    destination: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    read: list[Path],
    carried: list[Path],
) -> Job:
    identity, dtype = checkpoint.identity, checkpoint.dtype.name
    result = ConvertResult.of(destination, identity, plan.sizes, dtype=dtype)
    return Job(source, plan, result, read, carried, lambda _: None)
