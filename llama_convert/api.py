"""The Python functions of the commands: `convert`, `shard`, `verify` and `inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from llama_convert.conversion.options import ConvertOptions, ConvertResult, parse_format
from llama_convert.observer import Observer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from llama_convert.inspection.records import Inspection
    from llama_convert.verification.options import VerifyOptions
    from llama_convert.verification.report import VerifyReport


class ConvertKeywords(TypedDict, total=False):
    """The fields of `ConvertOptions`, with the types that `convert` and `shard` accept."""

    to: str
    dtype: str
    mp: int
    embedding_axis: int | None
    checklist: bool
    compare_checklist: bool
    max_shard_size: str
    llama_version: str | None
    model_size: str | None
    num_shards: int | None
    instruct: bool | None
    config_from: Path | str | None
    tokenizer: Path | str | None
    chat_template: Path | str | None
    special_tokens: Sequence[str]
    overwrite: bool
    strict: bool
    dry_run: bool
    resume: bool
    fsync: bool
    array_task: str | None
    finish: bool
    workers: int
    block_size: int


def convert(
    source: Path | str,
    destination: Path | str,
    options: ConvertOptions | None = None,
    observer: Observer | None = None,
    executor: Executor | None = None,
    *,
    progress: bool = False,
    **keywords: Unpack[ConvertKeywords],
) -> ConvertResult:
    """Convert a checkpoint from Meta to Hugging Face format, or with ``to="meta"`` back.

    Args:
        source: folder or URL of the checkpoint.
        destination: folder to create, or a URL, for example ``s3://bucket/name``. It must be empty or absent.
        options: settings for several calls.
        observer: receives progress, notes and warnings.
        executor: writes the weights, one task per output file. Its workers must see both folders under the
            same paths.
        progress: show progress, notes and warnings on stderr, as the command does. Ignored if ``observer`` is
            given.
        keywords: fields of `ConvertOptions`; they take precedence over ``options``.

    Returns:
        What was written, from which release. ``destination`` and ``source`` are a `Path` if local, else a URL
        string.

    Raises:
        UsageError: an option is invalid, or the destination is or contains the source.
        InputError: the source is missing, damaged, inconsistent or unsupported.
        OutputError: the machine or the store could not write.
        ConflictError: the destination is not empty.
        RefusedError: ``strict``, and there was a warning.

    Example:
        >>> result = convert("Llama-2-7B", "llama-2-7b", dtype="fp16")
        >>> result.dtype
        'float16'
    """
    from llama_convert.conversion import convert as conversion

    options = _convert_options(options, dict(keywords))
    return conversion.convert(source, destination, options, _observer(observer, progress), executor)


def shard(
    source: Path | str,
    destination: Path | str,
    *,
    mp: int | None = None,
    max_shard_size: str | None = None,
    options: ConvertOptions | None = None,
    observer: Observer | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    **keywords: Any,
) -> ConvertResult:
    """Reshard a checkpoint: the same format, with another number of ranks or another file size.

    Args:
        source: folder or URL of a checkpoint in Meta or Hugging Face format.
        destination: folder to create, or a URL. It must be empty or absent.
        mp: number of tensor-parallel ranks. For Meta format.
        max_shard_size: max size of the tensors in one file, for example ``2GB``. For Hugging Face format.
        options: settings for several calls.
        observer: receives progress, notes and warnings.
        executor: writes the weights, as for `convert`.
        progress: show progress, notes and warnings on stderr. Ignored if ``observer`` is given.
        keywords: other fields of `ConvertOptions`; they take precedence over ``options``.

    Returns:
        As `convert`.

    Raises:
        UsageError: both or neither of ``mp`` and ``max_shard_size`` are given, it is the other format's, or
            ``mp`` does not divide the model's sizes.
        InputError: as `convert`.
        OutputError: as `convert`.
        ConflictError: as `convert`.
        RefusedError: as `convert`.

    Example:
        >>> result = shard("Llama-2-7B", "Llama-2-7B-mp2", mp=2)
        >>> [name for name in result.files if name.endswith(".pth")]
        ['consolidated.00.pth', 'consolidated.01.pth']
    """
    from llama_convert.conversion import convert as conversion

    return conversion.shard(
        source,
        destination,
        mp=mp,
        max_shard_size=max_shard_size,
        options=_convert_options(options, keywords),
        observer=_observer(observer, progress),
        executor=executor,
    )


def verify(
    path: Path | str,
    source: Path | str | None = None,
    options: VerifyOptions | None = None,
    observer: Observer | None = None,
    *,
    progress: bool = False,
    **keywords: Any,
) -> VerifyReport:
    """Check a checkpoint, by itself or against the checkpoint that it was made from.

    Args:
        path: folder or URL of the checkpoint, in Meta or Hugging Face format.
        source: folder or URL of the original, in either format.
        options: settings for several calls.
        observer: receives progress, notes and warnings.
        progress: show progress, notes and warnings on stderr. Ignored if ``observer`` is given.
        keywords: fields of `VerifyOptions`; they take precedence over ``options``.

    Returns:
        The result of each check; its ``ok`` is False if one failed.

    Raises:
        UsageError: an option is invalid.
        InputError: one of the folders holds no checkpoint.
        OutputError: a file cannot be read.

    Example:
        >>> report = verify("llama-2-7b", "Llama-2-7B", checksums=False)
        >>> report.ok
        True
    """
    from llama_convert.verification import verify as verification
    from llama_convert.verification.options import VerifyOptions

    options = replace(options or VerifyOptions(), **_paths(keywords))
    return verification.verify(path, source, options, _observer(observer, progress))


def inspect(
    path: Path | str,
    *,
    tensors: str | None = None,
    stats: bool = False,
    config_from: Path | str | None = None,
    observer: Observer | None = None,
    progress: bool = False,
) -> Inspection:
    """Describe a checkpoint: release, sizes, dtypes, ranks, files, tokenizer and findings.

    Reads headers only, at most 1 MB, unless ``stats``.

    Args:
        path: folder or URL of a checkpoint of any format, or one file with tensors.
        tensors: list the tensors whose name in either format matches this pattern; ``*`` lists all.
        stats: compute statistics of the values of the listed tensors, or of all.
        config_from: the folder with ``config.json`` or ``params.json``, if it is another one.
        observer: receives progress.
        progress: show progress on stderr. Ignored if ``observer`` is given.

    Returns:
        The description; its ``ok`` is False if the checkpoint has errors.

    Raises:
        UsageError: no tensor matches ``tensors``.
        InputError: the path holds no checkpoint.
        OutputError: a file cannot be read.

    Example:
        >>> inspection = inspect("llama-2-7b")
        >>> inspection.ok
        True
    """
    from llama_convert.inspection import inspect as inspection

    settings = Path(config_from).expanduser() if config_from is not None else None
    return inspection.inspect(
        path, tensors=tensors, stats=stats, config_from=settings, observer=_observer(observer, progress)
    )


def _convert_options(options: ConvertOptions | None, keywords: dict[str, Any]) -> ConvertOptions:
    """The options with some fields replaced; paths may be strings, ``to`` any name of a format."""
    fields = _paths(keywords)
    if "to" in fields:
        fields["to"] = parse_format(fields["to"])
    if "special_tokens" in fields:
        fields["special_tokens"] = tuple(fields["special_tokens"])
    return replace(options or ConvertOptions(), **fields)


def _paths(keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords, with the paths of files as `Path`."""
    names = [name for name in ("config_from", "tokenizer", "chat_template") if keywords.get(name) is not None]
    return keywords | {name: Path(keywords[name]).expanduser() for name in names}


def _observer(observer: Observer | None, progress: bool) -> Observer:
    """The given observer; without one, a printing one if ``progress``, else a silent one."""
    if observer or not progress:
        return observer or Observer()
    from llama_convert.cli.errors import stderr_console
    from llama_convert.cli.progress import ConsoleObserver

    return ConsoleObserver(stderr_console())
