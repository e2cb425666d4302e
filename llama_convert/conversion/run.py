"""Conversions, all of them one job: read headers, plan, write, publish."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path

from llama_convert.conversion.carry_out import Run
from llama_convert.conversion.job import Prepare
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.units import Order, Share
from llama_convert.errors import UsageError
from llama_convert.observer import Observer


def convert(
    source: Path | str,
    destination: Path | str,
    options: ConvertOptions | None = None,
    observer: Observer | None = None,
    executor: Executor | None = None,
) -> ConvertResult:
    """Convert a checkpoint to the other layout: Meta's to Hugging Face's, or with `to` the way back.

    Args:
        source: a folder in the other layout, or one around it.
        destination: the folder to make; it must be empty or absent.
        options: what to do differently from the default.
        observer: is told of progress, decisions and warnings.
        executor: lets its workers write the weights, a file each; they see both folders as this process does.

    Raises:
        UsageError: an option cannot be meant so.
        InputError: the source is missing, damaged, inconsistent or unsupported.
        OutputError: the machine could not write it.
        ConflictError: the destination holds something.
        RefusedError: `strict`, and something was warned of.
    """
    from llama_convert.conversion.to_huggingface import to_huggingface
    from llama_convert.conversion.to_meta import to_meta

    options = options or ConvertOptions()
    prepare = to_meta if options.to == "meta" else to_huggingface
    return _run(prepare, Path(source), Path(destination), options, observer, executor)


def shard(
    source: Path | str,
    destination: Path | str,
    *,
    mp: int | None = None,
    max_shard_size: str | None = None,
    options: ConvertOptions | None = None,
    observer: Observer | None = None,
    executor: Executor | None = None,
) -> ConvertResult:
    """Cut a checkpoint anew in the layout it has.

    Args:
        source: a folder in either layout.
        destination: the folder to make; it must be empty or absent.
        mp: of Meta's layout, how many tensor-parallel ranks to cut it into.
        max_shard_size: of Hugging Face's layout, bytes of tensors in one file at most, such as ``2GB``.
        options: what else to do differently from the default.
        observer: is told of progress, decisions and warnings.
        executor: lets its workers write the weights, a file each; they see both folders as this process does.

    Raises:
        UsageError: not one of `mp` and `max_shard_size` is given, it is the other layout's, or the numbers do
            not divide.
        InputError, OutputError, ConflictError, RefusedError: as `convert`.
    """
    from llama_convert.conversion.reshard import reshard_huggingface, reshard_meta

    options = options or ConvertOptions()
    if (mp is None) == (max_shard_size is None):
        raise UsageError("BAD_USAGE", "give either --mp N or --max-shard-size SIZE")
    if mp is not None:
        options, prepare = replace(options, mp=mp), reshard_meta
    else:
        assert max_shard_size is not None
        options, prepare = replace(options, max_shard_size=max_shard_size), reshard_huggingface
    return _run(prepare, Path(source), Path(destination), options, observer, executor)


def _run(
    prepare: Prepare,
    source: Path,
    destination: Path,
    options: ConvertOptions,
    observer: Observer | None,
    executor: Executor | None,
) -> ConvertResult:
    notes = Notes(observer or Observer())
    job = prepare(source, destination, options, notes)
    if options.dry_run:
        job.result.warnings = notes.warnings
        return job.result
    run = Run(job, options, notes)
    order = partial(Order, prepare, source.absolute(), destination.absolute(), options)
    if options.finish:
        return run.finish()
    if options.array_task:
        return run.share(Share.parse(options.array_task), order)
    return run.by(executor, order) if executor else run.alone()
