"""Describe one checkpoint."""

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
from llama_convert.errors import LlamaConvertError, UsageError
from llama_convert.findings import Finding
from llama_convert.inspection.files import list_checksums, list_files
from llama_convert.inspection.findings import find_warnings
from llama_convert.inspection.opened import Entry, Opened, open_any
from llama_convert.inspection.records import Conversion, Inspection, Release, Tensor, Tokenizer
from llama_convert.inspection.summary import count_dtypes, count_parameters, group_weights, shared_storages
from llama_convert.inspection.tokenizer_info import inspect_tokenizer
from llama_convert.llama.releases import DetectedRelease
from llama_convert.observer import Observer
from llama_convert.stores.mount import mounted
from llama_convert.units import parse_size

if TYPE_CHECKING:
    from llama_convert.inspection.stats import Stats

_PEAK_MEMORY = 128 << 20
"""Upper bound for conversions of any size, enforced by `tests/test_memory.py`."""


def inspect(
    path: Path | str,
    *,
    tensors: str | None = None,
    stats: bool = False,
    config_from: Path | None = None,
    observer: Observer | None = None,
) -> Inspection:
    """Describe a checkpoint from its headers.

    Args:
        path: a folder of any format, one file with tensors, or the URL of either.
        tensors: list tensors whose name in either format matches this pattern; ``*`` matches all.
        stats: read the weights once, and compute statistics of the listed tensors (all by default).
        config_from: the folder with the settings, if it is another one.
        observer: receives progress.

    Raises:
        InputError: there is no checkpoint.
        OutputError: a file could not be read.
        UsageError: no tensor matches the pattern.
    """
    with mounted(path) as location:
        opened = open_any(location.path, config_from)
        found = _inspect(opened, tensors, observer or Observer() if stats else None)
        return location.display(found)


def _inspect(opened: Opened, tensors: str | None, observer: Observer | None) -> Inspection:
    """Describe an opened checkpoint; with an observer, compute statistics."""
    described = describe(opened)
    if tensors is None and not observer:
        return described
    chosen = [entry for entry in opened.entries if _matches(entry, tensors or "*")]
    if tensors and not chosen:
        raise UsageError("BAD_USAGE", f"--tensors {tensors}: No tensor matches.", file=opened.path)
    listed = [_tensor(entry) for entry in chosen]
    if not observer:
        return replace(described, tensors=tuple(listed))
    computed, errors = _compute_stats(chosen, observer)
    listed = [replace(tensor, stats=computed.get(place)) for place, tensor in enumerate(listed)]
    return replace(described, tensors=tuple(listed), findings=(*described.findings, *errors))


def describe(opened: Opened) -> Inspection:
    """Describe an opened checkpoint from its headers and small files."""
    checkpoint = opened.input.checkpoint
    findings = [Finding.of(problem) for problem in opened.problems]
    if checkpoint:
        findings += [Finding.of(error, severity="warning") for error in checkpoint.warnings]
    tokenizer, tokenizer_findings = inspect_tokenizer(opened)
    findings += tokenizer_findings
    config, raw = _config(opened)
    meta = checkpoint if isinstance(checkpoint, MetaCheckpoint) else None
    dtypes = count_dtypes(opened.entries)
    files = list_files(opened)
    return Inspection(
        path=opened.path,
        format=opened.format,
        single_file=opened.single_file,
        release=_release(opened, tokenizer),
        config=config,
        raw_config=raw,
        ranks=meta.folder.n_ranks if meta else None,
        kv_repeats=meta.kv_repeats if meta else None,
        parameters=count_parameters(opened, tied=bool(config and config["tied"])),
        dtypes=dtypes,
        kinds=group_weights(opened),
        files=files,
        bytes=sum(file.bytes for file in files),
        tokenizer=tokenizer,
        checksums=list_checksums(opened),
        shared=shared_storages(opened.entries),
        conversion=_conversion(meta) if meta else None,
        findings=(*findings, *find_warnings(opened, dtypes, files)),
    )


def _matches(entry: Entry, pattern: str) -> bool:
    """Whether the pattern matches the tensor's name in either format."""
    names = [entry.name]
    if entry.weight:
        names += [entry.weight.meta_name, entry.weight.huggingface_name]
    return any(fnmatchcase(name, pattern) for name in names)


def _release(opened: Opened, tokenizer: Tokenizer | None) -> Release | None:
    """The detected release; for a Hugging Face folder also from the manifest of its conversion."""
    checkpoint = opened.input.checkpoint
    if checkpoint is None:
        return None
    if isinstance(checkpoint, MetaCheckpoint):
        return _release_record(checkpoint.detected)
    kind = tokenizer.kind if tokenizer and tokenizer.kind in ("sentencepiece", "tiktoken") else None
    identity = checkpoint.detect(None, kind)  # type: ignore[arg-type]
    try:
        manifest = current_manifest(opened.folder, checkpoint.weights.values(), GLANCE_BYTES) or {}
    except LlamaConvertError:
        manifest = {}
    title = str(manifest.get("release"))
    recorded = next((row for row in identity.candidates if title.startswith(f"{row.title} ")), None)
    if recorded:
        identity = identity.narrowed_to(recorded, identity.candidates, f"llama-convert.json records {title}")
    return _release_record(identity)


def _release_record(identity: DetectedRelease) -> Release:
    return Release(
        title=identity.title,
        version=identity.release.version,
        size=identity.size.label if identity.size else None,
        evidence=identity.evidence,
        alternatives=tuple(release.title for release in identity.alternatives),
    )


def _config(opened: Opened) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Hyper-parameters; or else the content of params.json or config.json."""
    if opened.input.checkpoint is not None:
        return asdict(opened.input.checkpoint.config), None
    if opened.single_file:
        return None, None
    if opened.format == "huggingface":
        try:
            return asdict(read_config(opened.folder / "config.json").llama), None
        except LlamaConvertError:
            pass
    name = "config.json" if opened.format == "huggingface" else "params.json"
    try:
        return None, read_json_object(opened.folder / name, "CONFIG").content
    except LlamaConvertError:
        return None, None


def _conversion(checkpoint: MetaCheckpoint) -> Conversion:
    from llama_convert.conversion.huggingface_plan import plan_huggingface

    plan = plan_huggingface(checkpoint, None, parse_size(DEFAULT_SHARD_SIZE))
    files = plan.sizes | {name: len(content) for name, content in plan.small_files.items()}
    return Conversion(
        files=files,
        bytes=sum(files.values()),
        dtype=checkpoint.dtype.name,
        peak_memory=_PEAK_MEMORY,
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


def _compute_stats(entries: Sequence[Entry], observer: Observer) -> tuple[dict[int, Stats], list[Finding]]:
    """Statistics by index of the entry, and an error for each tensor that cannot be read."""
    from llama_convert.inspection.stats import Stats, all_stats, is_supported  # imports numpy

    places = [n for n, entry in enumerate(entries) if len(entry.shape) <= 2 and is_supported(entry.stored)]
    stored = [entries[place].stored for place in places]
    stats: dict[int, Stats] = {}
    errors: list[Finding] = []
    with count_bytes(observer, sum(tensor.nbytes for tensor in stored), "Reading"), SourceFiles() as files:
        results = all_stats(stored, files, observer.advance)
        for place, result in zip(places, results, strict=True):
            if isinstance(result, Stats):
                stats[place] = result
            else:
                errors.append(Finding.of(result))
    return stats, errors


@contextmanager
def count_bytes(observer: Observer, total: int, label: str) -> Iterator[None]:
    """Report the start and the end of reading ``total`` bytes."""
    observer.start(total, label)
    try:
        yield
    finally:
        observer.finish()
