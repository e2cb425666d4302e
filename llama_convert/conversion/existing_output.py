"""Detection of an output folder that already holds what a conversion writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.manifest import MANIFEST, file_matches, read_manifest, recorded_files
from llama_convert.conversion.execute import execute
from llama_convert.conversion.job import OutputIdentity
from llama_convert.conversion.journal import Record
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.output import NullOutput
from llama_convert.conversion.plan import Plan, Task
from llama_convert.conversion.read_back import first_difference
from llama_convert.conversion.staging import STAGING
from llama_convert.errors import InputError, RefusedError

_SOURCE_KEYS = ("name", "bytes", "xxh3_128")
"""Keys of a manifest's source entry that only depend on the file's content."""


@dataclass(frozen=True)
class ExistingOutput:
    """An output that an earlier run finished and that is unchanged since."""

    files: dict[str, int]
    """Bytes of each file, by name."""
    is_current: bool
    """Whether this conversion would write the same; if not, only small files differ."""


def find_existing_output(
    destination: Path,
    plan: Plan,
    identity: OutputIdentity,
    sources: Sequence[Mapping[str, Any]],
    options: ConvertOptions,
    messages: Messages,
    *,
    only: Sequence[str] | None = None,
) -> ExistingOutput | None:
    """Return the output of an earlier run if its weights are those that this conversion writes.

    File times are ignored. Where the source has CRC-32s, the plan's identity fixes the source bytes and the
    manifest has the hashes of the output. All other weights are read and converted again, but not written.

    Args:
        destination: the output folder.
        plan: what is written of the weights.
        identity: identifies the output.
        sources: `file_record` of each source file, with its name.
        options: how to read, and whether warnings count as errors.
        messages: receives the findings.
        only: the files whose weights are compared; None for all.

    Returns:
        None if the folder holds no output, another output, or files that the earlier run did not write.

    Raises:
        RefusedError: `strict` is set and the earlier run had warnings.
        InputError: a source file is damaged.
        OutputError: a file cannot be read.
    """
    try:
        manifest = read_manifest(destination)
    except InputError:
        return None
    if manifest is None:
        return None
    is_current = manifest.get("plan") == identity.plan
    if not is_current and manifest.get("weights_plan") != identity.weights:
        messages.note(f"{destination}: Not up to date: written with other options or from other files.")
        return None
    difference = _source_difference(manifest, sources) or _file_difference(destination, manifest)
    for part in [plan] if only is None else map(plan.restricted_to, only):
        difference = difference or _weight_difference(destination, part, manifest, options, messages)
    if difference:
        messages.note(f"{destination}: Not up to date: {difference} differs.")
        return None
    files = [destination / name for name in (*manifest["files"], MANIFEST)]
    sizes = {file.name: file.stat().st_size for file in files if file.exists()}
    if not is_current:
        unlisted = {entry.name for entry in destination.iterdir()} - sizes.keys() - {STAGING}
        return None if unlisted else ExistingOutput(sizes, is_current=False)
    if options.strict and manifest.get("warnings"):
        message = f"The conversion that wrote this folder had {manifest['warnings']} warnings (--strict)."
        raise RefusedError("STRICT_WARNINGS", message, file=destination)
    messages.note(f"Already up to date: {len(sizes)} files match the manifest.")
    return ExistingOutput(sizes, is_current=True)


def _source_difference(manifest: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the first source file that the manifest does not list."""
    recorded = [_source_key(entry) for entry in manifest.get("sources", ())]
    return next((source["name"] for source in sources if _source_key(source) not in recorded), None)


def _source_key(source: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(source.get(key) for key in _SOURCE_KEYS)


def _file_difference(destination: Path, manifest: Mapping[str, Any]) -> str | None:
    """Return the first file that differs from the manifest; of files with weights, only headers are read."""
    for name, entry in recorded_files(manifest).items():
        try:
            if not file_matches(destination / name, entry):
                return name
        except (InputError, FileNotFoundError):
            return name
    return None


def _weight_difference(
    destination: Path, plan: Plan, manifest: Mapping[str, Any], options: ConvertOptions, messages: Messages
) -> str | None:
    """Return the first tensor of the plan's files that differs from what the plan writes."""
    unpinned = Plan(plan.layouts, tuple(task for task in plan.tasks if not _is_pinned(task, manifest)))
    messages.observer.start(unpinned.payload_bytes + plan.total_bytes, "Comparing")
    try:
        recorded = {name: (content_hash,) for name, content_hash in manifest["tensors"].items()}
        difference = first_difference(
            destination,
            plan,
            {**recorded, **_converted_hashes(unpinned, options, messages)},
            workers=options.workers,
            block_size=options.block_size,
            progress=messages.observer.advance,
        )
    finally:
        messages.observer.finish()
    return ": ".join(difference) if difference else None


def _is_pinned(task: Task, manifest: Mapping[str, Any]) -> bool:
    """Return whether checksums fix both the source bytes (in the plan) and the output (in the manifest)."""
    has_crcs = all(slab.storage.crc32 is not None for slab in task.source.slabs)
    return has_crcs and task.name in manifest["tensors"]


def _converted_hashes(plan: Plan, options: ConvertOptions, messages: Messages) -> Mapping[str, Sequence[str]]:
    """Convert a plan's weights without writing them; return the hashes at each of their places."""
    record = Record()
    execute(
        plan,
        {file: NullOutput(layout) for file, layout in plan.layouts.items()},
        record,
        workers=options.workers,
        block_size=options.block_size,
        progress=messages.observer.advance,
    )
    return {name: entry.hashes for name, entry in record.entries.items()}
