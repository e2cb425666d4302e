"""The entry points `convert` and `shard`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama_convert.conversion.dry_run import dry_run
from llama_convert.conversion.execute import DEFAULT_BLOCK_SIZE
from llama_convert.conversion.job import Job, JobFactory
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.runner import Run
from llama_convert.conversion.source_checks import read_source_hashes
from llama_convert.conversion.staging import STAGING
from llama_convert.conversion.work_units import ArrayTask
from llama_convert.conversion.workers import WorkSpec
from llama_convert.errors import OutputError, UsageError
from llama_convert.observer import Observer
from llama_convert.stores.filesystem import is_url, printable, same_location
from llama_convert.stores.location import Location
from llama_convert.stores.mount import mounted

if TYPE_CHECKING:
    from llama_convert.conversion.store_run import StoreRun
    from llama_convert.conversion.upload import Store

_REMOTE_BLOCK_SIZE = 8 << 20
_REMOTE_WORKERS = 16
_PARALLEL_UPLOADS = 4


def convert(
    source: Path | str,
    destination: Path | str,
    options: ConvertOptions | None = None,
    observer: Observer | None = None,
    executor: Executor | None = None,
) -> ConvertResult:
    """Convert a checkpoint; arguments, result and errors are those of `llama_convert.convert`."""
    from llama_convert.conversion.convert_job import convert_job

    options = options or ConvertOptions()
    return _run(_Request(convert_job, source, destination, options, observer or Observer(), executor))


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
    """Reshard a checkpoint; arguments, result and errors are those of `llama_convert.shard`."""
    from llama_convert.conversion.reshard import huggingface_reshard_job, meta_reshard_job

    options = options or ConvertOptions()
    if (mp is None) == (max_shard_size is None):
        raise UsageError("BAD_USAGE", "Pass either --mp N or --max-shard-size SIZE.")
    make_job: JobFactory
    if mp is not None:
        options, make_job = replace(options, mp=mp), meta_reshard_job
    else:
        assert max_shard_size is not None
        options, make_job = replace(options, max_shard_size=max_shard_size), huggingface_reshard_job
    return _run(_Request(make_job, source, destination, options, observer or Observer(), executor))


@dataclass(frozen=True)
class _Request:
    """The arguments of `convert` or `shard`, and the function that prepares the job."""

    make_job: JobFactory
    source: Path | str
    destination: Path | str
    options: ConvertOptions
    observer: Observer
    executor: Executor | None


def _run(request: _Request) -> ConvertResult:
    _check_options(request)
    with _reporting_earlier_work(request.destination):
        return _convert(request)


def _check_options(request: _Request) -> None:
    """Refuse combinations of options in which one would have no effect.

    Raises:
        UsageError: two such options are given.
    """
    options = request.options
    given = {
        "--array-task": bool(options.array_task),
        "--finish": options.finish,
        "--scheduler": request.executor is not None,
        "--no-resume": options.finish and not options.resume,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise UsageError("BAD_USAGE", f"{names[0]} and {names[1]} cannot be combined.")


@contextmanager
def _reporting_earlier_work(destination: Path | str) -> Iterator[None]:
    """Add ``resumable`` and ``kept`` to an interruption before the first write, from earlier runs."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not hasattr(interrupt, "kept"):
            is_resumable = not is_url(destination) and (Path(destination).expanduser() / STAGING).exists()
            sentence = "Work saved by earlier runs is unchanged. Run the same command to resume."
            vars(interrupt).update(resumable=is_resumable, kept=sentence if is_resumable else None)
        raise


def _convert(request: _Request) -> ConvertResult:
    source, destination, options = request.source, request.destination, request.options
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
        with request.observer.phase("Reading headers"):
            input_ = stack.enter_context(mounted(source))
            output = stack.enter_context(mounted(destination, may_be_absent=True))
            messages = Messages(request.observer, (input_, output))
            store = _store(str(destination), output.path) if is_url(destination) else None
            job = request.make_job(input_.path, output.path, options, messages)
            local = job.source if job.source.is_file() else job.folder
            job.result.source = str(source) if is_url(source) else local
            job.source_hashes = read_source_hashes(job, messages)
        if store is None:
            return _convert_to_folder(request, Run(job, options, messages, input_))
        run = _store_run(job, options, messages, input_, store)
        if options.dry_run or not (options.array_task or request.executor):
            return replace(_convert_to_store(run), destination=str(destination))
        uploaded = _upload_files(request, run)
    # Mounts the destination again, to see what other processes have uploaded meanwhile.
    finishing = replace(options, array_task=None, finish=True)
    return _finish_or(uploaded, replace(request, options=finishing, executor=None))


def _convert_to_folder(request: _Request, run: Run) -> ConvertResult:
    options = run.options
    if options.dry_run:
        return dry_run(run.job, options, run.messages, run.manifest)
    if options.finish:
        return run.finish()
    spec = _work_spec(request, run)
    if options.array_task:
        return run.run_array_task(ArrayTask.parse(options.array_task), spec)
    return run.convert_with(request.executor, spec) if request.executor else run.convert()


def _convert_to_store(run: StoreRun) -> ConvertResult:
    if run.options.dry_run:
        return dry_run(run.job, run.options, run.messages, run.manifest)
    return run.finish() if run.options.finish else run.convert()


def _upload_files(request: _Request, run: StoreRun) -> ConvertResult:
    """Upload this array task's weight files, or all of them with an executor; return which."""
    job, task = run.job, run.options.array_task
    files = ArrayTask.parse(task).select(job.weight_files) if task else job.weight_files
    executor = request.executor
    with nullcontext(executor) if executor else ThreadPoolExecutor(_PARALLEL_UPLOADS) as workers:
        run.upload_files(workers, _work_spec(request, run), files)
    sizes = {file: job.result.files[file] for file in files}
    return replace(job.result, destination=str(request.destination), files=sizes)


def _finish_or(uploaded: ConvertResult, request: _Request) -> ConvertResult:
    """Finalize the output, or return ``uploaded`` if other files are not written yet."""
    try:
        return _run(request)
    except OutputError as error:
        if error.code != "ARRAY_TASKS_MISSING":
            raise
        request.observer.note(f"{error.message} The last task finalizes the output.")
        return uploaded


def _work_spec(request: _Request, run: Run) -> WorkSpec:
    return run.work_spec(request.make_job, _absolute(request.source), _absolute(request.destination))


def _absolute(location: Path | str) -> str:
    """Return a location that workers with another current folder can open."""
    return str(location) if is_url(location) else str(Path(location).expanduser().absolute())


def _store(url: str, folder: Path) -> Store:
    from llama_convert.conversion.upload import Store

    return Store(url, folder)


def _store_run(
    job: Job, options: ConvertOptions, messages: Messages, source: Location, store: Store
) -> StoreRun:
    from llama_convert.conversion.store_run import StoreRun

    return StoreRun(job, options, messages, source, store)
