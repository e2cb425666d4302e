"""One checkpoint, described from its headers; with `stats` also from one pass over its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_convert.checkpoints.huggingface_config import read_config
from llama_convert.checkpoints.json_object import read_json_object
from llama_convert.checkpoints.manifest_check import GLANCE_BYTES, current_manifest
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.shards import DEFAULT_SHARD_SIZE
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.conversion.huggingface_plan import plan_huggingface
from llama_convert.errors import LlamaConvertError, UsageError
from llama_convert.findings import Finding
from llama_convert.inspection.counts import count_dtypes, count_parameters, kinds_of
from llama_convert.inspection.findings import oddities, shared_storages
from llama_convert.inspection.folder import checksums_of, files_of
from llama_convert.inspection.opened import Entry, Opened, open_any
from llama_convert.inspection.records import Conversion, Inspection, Release, Tensor, Tokenizer
from llama_convert.inspection.release import release_of
from llama_convert.inspection.tokenizer_info import tokenizer_of
from llama_convert.observer import Observer
from llama_convert.stores.mount import mounted
from llama_convert.units import parse_size

if TYPE_CHECKING:
    from llama_convert.inspection.stats import Stats

_PEAK = 128 << 20
_PEAK_WITH_CAST = 512 << 20
"""What conversions of any size stay below: `tests/test_memory.py`."""


def inspect(
    path: Path | str, *, tensors: str | None = None, stats: bool = False, observer: Observer | None = None
) -> Inspection:
    """Describe a checkpoint; of the weights no more than 1 MB is read unless `stats` is asked for.

    Args:
        path: a folder in Hugging Face's or in Meta's layout, or one ``.pth`` or ``.safetensors`` file,
            or the URL of one.
        tensors: lists the tensors whose name, in either layout, this pattern matches; ``*`` matches all.
        stats: tell what the values of the tensors listed, or of all, are like.
        observer: is told of progress.

    Raises:
        InputError: there is no checkpoint at all.
        OutputError: the machine could not read.
    """
    with mounted(path) as place:
        return place.display(_inspect(place.path, tensors, observer or Observer() if stats else None))


def _inspect(path: Path, tensors: str | None, counting: Observer | None) -> Inspection:
    """With figures of the values if somebody counts."""
    opened = open_any(path)
    described = describe(opened)
    if tensors is None and not counting:
        return described
    chosen = [entry for entry in opened.entries if matches(entry, tensors or "*")]
    if tensors and not chosen:
        raise UsageError("BAD_USAGE", f"--tensors {tensors}: No tensor matches.", file=path)
    listed = [_tensor(entry) for entry in chosen]
    if not counting:
        return replace(described, tensors=tuple(listed))
    figures, wrong = _figures(chosen, counting)
    listed = [replace(tensor, stats=figures.get(place)) for place, tensor in enumerate(listed)]
    return replace(described, tensors=tuple(listed), findings=(*described.findings, *wrong))


def describe(opened: Opened) -> Inspection:
    """All that headers and small files tell."""
    findings = [Finding.of(problem) for problem in opened.problems]
    if opened.side.checkpoint:
        findings += [Finding.of(error, severity="warning") for error in opened.side.checkpoint.warnings]
    tokenizer, wrong = tokenizer_of(opened)
    findings += wrong
    config, raw = _config(opened)
    meta = opened.side.checkpoint if isinstance(opened.side.checkpoint, MetaCheckpoint) else None
    shared = shared_storages(opened.entries)
    dtypes = count_dtypes(opened.entries)
    files = files_of(opened)
    return Inspection(
        path=str(opened.path),
        layout=opened.layout,
        single_file=opened.single_file,
        release=_release(opened, tokenizer),
        config=config,
        raw_config=raw,
        ranks=len(meta.folder.rank_files) if meta else None,
        kv_repeats=meta.kv_repeats if meta else None,
        parameters=count_parameters(opened, tied=bool(config and config["tied"])),
        dtypes=dtypes,
        kinds=kinds_of(opened),
        files=files,
        bytes=sum(file.bytes for file in files),
        tokenizer=tokenizer,
        checksums=checksums_of(opened),
        shared=shared,
        conversion=_conversion(meta) if meta else None,
        findings=(*findings, *oddities(opened, dtypes, files)),
    )


def matches(entry: Entry, pattern: str) -> bool:
    """Whether the pattern is that of the tensor's name, in either layout."""
    names = [entry.name]
    if entry.weight:
        names += [entry.weight.meta_name, entry.weight.huggingface_name]
    return any(fnmatchcase(name, pattern) for name in names)


def _release(opened: Opened, tokenizer: Tokenizer | None) -> Release | None:
    checkpoint = opened.side.checkpoint
    if checkpoint is None:
        return None
    try:
        manifest = current_manifest(opened.folder, checkpoint.weights.values(), GLANCE_BYTES)
    except LlamaConvertError:
        manifest = None
    said = manifest.get("release") if manifest else None
    kind = tokenizer.kind if tokenizer and tokenizer.kind in ("sentencepiece", "tiktoken") else None
    return release_of(checkpoint, kind, said if isinstance(said, str) else None)  # type: ignore[arg-type]


def _config(opened: Opened) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Hyper-parameters; where none can be made of the settings file, what it says."""
    if opened.side.checkpoint is not None:
        return asdict(opened.side.checkpoint.config), None
    if opened.single_file:
        return None, None
    if opened.layout == "huggingface":
        try:
            return asdict(read_config(opened.folder / "config.json").llama), None
        except LlamaConvertError:
            pass
    name = "config.json" if opened.layout == "huggingface" else "params.json"
    try:
        return None, read_json_object(opened.folder / name, "CONFIG", belongs="").content
    except LlamaConvertError:
        return None, None


def _conversion(checkpoint: MetaCheckpoint) -> Conversion:
    plan = plan_huggingface(checkpoint, None, parse_size(DEFAULT_SHARD_SIZE))
    files = plan.sizes | {name: len(content) for name, content in plan.small_files.items()}
    return Conversion(
        files=files,
        bytes=sum(files.values()),
        dtype=checkpoint.dtype.name,
        peak_memory=_PEAK,
        peak_memory_with_cast=_PEAK_WITH_CAST,
    )


def _tensor(entry: Entry) -> Tensor:
    weight = entry.weight
    return Tensor(
        name=entry.name,
        meta_name=weight.meta_name if weight else None,
        huggingface_name=weight.huggingface_name if weight else None,
        shape=entry.shape,
        dtype=entry.stored.dtype.name,
        bytes=entry.stored.nbytes,
        files=tuple(file.name for file in entry.files),
    )


def _figures(entries: Sequence[Entry], observer: Observer) -> tuple[dict[int, Stats], list[Finding]]:
    """The figures by the tensor's place in the list, and what could not be read whole."""
    from llama_convert.inspection.stats import Stats, all_stats, countable  # numpy, which takes a moment

    places = [n for n, entry in enumerate(entries) if len(entry.shape) <= 2 and countable(entry.stored)]
    stored = [entries[place].stored for place in places]
    figures: dict[int, Stats] = {}
    wrong: list[Finding] = []
    with progress(observer, sum(one.nbytes for one in stored), "Reading"), SourceFiles() as files:
        results = all_stats(stored, files, observer.advance)
        for place, result in zip(places, results, strict=True):
            if isinstance(result, Stats):
                figures[place] = result
            else:
                wrong.append(Finding.of(result))
    return figures, wrong


@contextmanager
def progress(observer: Observer, total: int, verb: str) -> Iterator[None]:
    """Let the observer count bytes."""
    observer.start(total, verb)
    try:
        yield
    finally:
        observer.finish()
