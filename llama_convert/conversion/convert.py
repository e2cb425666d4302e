"""Conversions, all of them one job: read headers, plan, write, publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llama_convert.conversion.execute import DEFAULT_BLOCK_SIZE
from llama_convert.conversion.job import Prepare
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.runner import Run
from llama_convert.conversion.source_manifest import read_source_digests
from llama_convert.conversion.staging import STAGING
from llama_convert.conversion.work_units import Share
from llama_convert.conversion.workers import Order
from llama_convert.errors import OutputError, UsageError
from llama_convert.observer import Observer
from llama_convert.stores.filesystem import is_url, printable, same_location
from llama_convert.stores.mount import mounted

if TYPE_CHECKING:
    from llama_convert.conversion.upload import Store

_REMOTE_BLOCK_SIZE = 8 << 20
_REMOTE_WORKERS = 16
_SENT_AT_A_TIME = 4
"""Requests in flight, where each of them takes a while."""


def convert(
    source: Path | str,
    destination: Path | str,
    options: ConvertOptions | None = None,
    observer: Observer | None = None,
    executor: Executor | None = None,
) -> ConvertResult:
    """Convert a checkpoint to the other layout: Meta's to Hugging Face's, or with `to` the way back.

    Args:
        source: a folder in the other layout, or one around it; or the URL of one.
        destination: the folder to make; it must be empty or absent; or a URL such as ``s3://bucket/name``.
        options: what to do differently from the default.
        observer: is told of progress, decisions and warnings.
        executor: lets its workers write the weights, a file each; they see both folders as this process does.

    Raises:
        UsageError: an option cannot be meant so, or the destination is the source or holds files of it.
        InputError: the source is missing, damaged, inconsistent or unsupported.
        OutputError: the machine could not write it.
        ConflictError: the destination holds something.
        RefusedError: `strict`, and something was warned of.
    """
    from llama_convert.conversion.to_huggingface import to_huggingface
    from llama_convert.conversion.to_meta import to_meta

    options = options or ConvertOptions()
    prepare = to_meta if options.to == "meta" else to_huggingface
    return _run(prepare, source, destination, options, observer, executor)


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
        source: a folder in either layout, or the URL of one.
        destination: the folder to make; it must be empty or absent; or a URL such as ``s3://bucket/name``.
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
    return _run(prepare, source, destination, options, observer, executor)


def _run(
    prepare: Prepare,
    source: Path | str,
    destination: Path | str,
    options: ConvertOptions,
    observer: Observer | None,
    executor: Executor | None,
) -> ConvertResult:
    _refuse_contradictions(options, executor)
    with _saying_that_nothing_is_written(destination):
        return _prepared(prepare, source, destination, options, observer, executor)


def _refuse_contradictions(options: ConvertOptions, executor: Executor | None) -> None:
    """Refuse options of which one would do nothing.

    Raises:
        UsageError: two of them are given.
    """
    given = {
        "--array-task": bool(options.array_task),
        "--finish": options.finish,
        "--scheduler": executor is not None,
        "--no-resume": options.finish and not options.resume,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise UsageError("BAD_USAGE", f"{names[0]} and {names[1]} cannot be combined.")


@contextmanager
def _saying_that_nothing_is_written(destination: Path | str) -> Iterator[None]:
    """Add to an interruption that comes before the first write what an earlier run has saved."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not hasattr(interrupt, "kept"):
            earlier = not is_url(destination) and (Path(destination).expanduser() / STAGING).exists()
            kept = (
                "What earlier runs saved is unchanged. Run the same command to resume." if earlier else None
            )
            vars(interrupt).update(resumable=earlier, kept=kept)
        raise


def _prepared(
    prepare: Prepare,
    source: Path | str,
    destination: Path | str,
    options: ConvertOptions,
    observer: Observer | None,
    executor: Executor | None,
) -> ConvertResult:
    if is_url(source) and options.block_size == DEFAULT_BLOCK_SIZE:
        options = replace(
            options, block_size=_REMOTE_BLOCK_SIZE, workers=max(options.workers, _REMOTE_WORKERS)
        )
    if is_url(source) and is_url(destination) and same_location(str(source), str(destination)):
        hint = "Choose another output folder."
        raise UsageError(
            "OUTPUT_IS_INPUT", "Is the input folder.", file=printable(str(destination)), hint=hint
        )
    with ExitStack() as stack:
        observer = observer or Observer()
        with observer.phase("Reading headers"):
            here = stack.enter_context(mounted(source))
            there = stack.enter_context(mounted(destination, may_be_absent=True))
            notes = Notes(observer, (here, there))
            store = _store(str(destination), there.path) if is_url(destination) else None
            job = prepare(here.path, there.path, options, notes)
            job.result.source = str(source) if is_url(source) else job.folder
            job.source_digests = read_source_digests(job, notes)
        run = Run(job, options, notes, here, private=store is not None)
        if options.dry_run:
            return replace(run.dry(), destination=str(destination) if is_url(destination) else there.path)
        order = partial(Order, prepare, _absolute(source), _absolute(destination), options)
        if store is None:
            return _on_disk(run, order, options, executor)
        if not (options.array_task or executor):
            done = run.finish_in_store(store) if options.finish else run.to_store(store)
            return replace(done, destination=str(destination))
        files = Share.parse(options.array_task).of(job.files) if options.array_task else job.files
        with nullcontext(executor) if executor else ThreadPoolExecutor(_SENT_AT_A_TIME) as workers:
            run.send(store, workers, order, files)
        sent = replace(
            job.result, destination=str(destination), files={f: job.result.files[f] for f in files}
        )
    # What others have sent meanwhile shows to who looks anew.
    try:
        finishing = replace(options, array_task=None, finish=True)
        return _run(prepare, source, destination, finishing, observer, None)
    except OutputError as error:
        if error.code != "UNITS_MISSING":
            raise
        notes.note(f"{error.message}; the last task finalizes the output")
        return sent


def _on_disk(
    run: Run, order: Callable[[str, str], Order], options: ConvertOptions, executor: Executor | None
) -> ConvertResult:
    if options.finish:
        return run.finish()
    if options.array_task:
        return run.share(Share.parse(options.array_task), order)
    return run.by(executor, order) if executor else run.alone()


def _absolute(location: Path | str) -> str:
    """As a worker that began elsewhere finds it."""
    return str(location) if is_url(location) else str(Path(location).expanduser().absolute())


def _store(url: str, place: Path) -> Store:
    from llama_convert.conversion.upload import Store

    return Store(url, place)
