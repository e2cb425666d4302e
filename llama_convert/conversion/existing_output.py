"""Whether the output folder already holds what a conversion writes, so that there is nothing to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.manifest import MANIFEST, file_matches, promised_files, read_manifest
from llama_convert.conversion.execute import execute
from llama_convert.conversion.journal import Identity, Record
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.output import Discarded
from llama_convert.conversion.plan import Plan, Task
from llama_convert.conversion.read_back import first_difference
from llama_convert.conversion.staging import STAGING
from llama_convert.errors import InputError, RefusedError

_IDENTIFYING = ("name", "bytes", "xxh3_128")
"""What a manifest says of a source file and of nothing but its content."""


@dataclass(frozen=True)
class Existing:
    """An output that an earlier run finished, and that was not changed since."""

    files: dict[str, int]
    """Bytes of each file."""
    is_current: bool
    """Whether it is what this conversion writes; if not, it has the same weights but other small files."""


def existing_output(
    destination: Path,
    plan: Plan,
    identity: Identity,
    sources: Sequence[Mapping[str, Any]],
    options: ConvertOptions,
    notes: Notes,
    *,
    only: Sequence[str] | None = None,
) -> Existing | None:
    """The output of an earlier run, if its weights are those that this conversion writes.

    The times of files decide nothing.  Of sources with CRC-32s the plan's identity pins the bytes, and the
    manifest has the hashes of what they became; others are read and converted again, and only not written.

    Args:
        destination: the output folder.
        plan: what is written of the weights.
        identity: what decides the output.
        sources: `describe_file` of each source file, and its name.
        options: how to read, and whether warnings count.
        notes: receives what was found.
        only: the files whose weights are compared; None: all.

    Returns:
        None if something else is there, or nothing, or more than that run wrote.

    Raises:
        RefusedError: `strict`, and the run that wrote it had warnings.
        InputError: a source file is damaged.
        OutputError: the machine could not read.
    """
    try:
        manifest = read_manifest(destination)
    except InputError:
        return None
    if manifest is None:
        return None
    is_current = manifest.get("plan") == identity.plan
    if not is_current and manifest.get("weights_plan") != identity.weights:
        notes.note(f"{destination}: Not up to date: it was written with other options or from other files.")
        return None
    other = _other_source(manifest, sources) or _other_file(destination, manifest)
    for part in [plan] if only is None else map(plan.only, only):
        other = other or _other_weight(destination, part, manifest, options, notes)
    if other:
        notes.note(f"{destination}: Not up to date: {other} differs from what this command reads or writes.")
        return None
    there = [destination / name for name in (*manifest["files"], MANIFEST)]
    sizes = {file.name: file.stat().st_size for file in there if file.exists()}
    if not is_current:
        others = {entry.name for entry in destination.iterdir()} - sizes.keys() - {STAGING}
        return None if others else Existing(sizes, is_current=False)
    if options.strict and manifest.get("warnings"):
        message = f"--strict, and the conversion that wrote it had {manifest['warnings']} warnings"
        raise RefusedError("STRICT_WARNINGS", message, file=destination)
    notes.note(f"Already up to date: {len(sizes)} files match the manifest.")
    return Existing(sizes, is_current=True)


def _other_source(manifest: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> str | None:
    """The first source file that the output was not made from."""
    known = [{key: said.get(key) for key in _IDENTIFYING} for said in manifest.get("sources", ())]
    return next((s["name"] for s in sources if {key: s[key] for key in _IDENTIFYING} not in known), None)


def _other_file(destination: Path, manifest: Mapping[str, Any]) -> str | None:
    """The first file that is not what the manifest says; of weights' files, the list of what they hold."""
    for name, said in promised_files(manifest).items():
        try:
            if not file_matches(destination / name, said):
                return name
        except (InputError, FileNotFoundError):
            return name
    return None


def _other_weight(
    destination: Path, plan: Plan, manifest: Mapping[str, Any], options: ConvertOptions, notes: Notes
) -> str | None:
    """The first tensor of the plan's files that is not what the plan writes."""
    again = Plan(plan.layouts, tuple(task for task in plan.tasks if not _is_pinned(task, manifest)))
    notes.observer.start(again.payload_bytes + plan.total_bytes, "Comparing")
    try:
        known = {name: (digest,) for name, digest in manifest["tensors"].items()}
        digests = {**known, **_converted_again(again, options, notes)}
        difference = first_difference(
            destination,
            plan,
            digests,
            workers=options.workers,
            block_size=options.block_size,
            progress=notes.observer.advance,
        )
    finally:
        notes.observer.finish()
    return ": ".join(difference) if difference else None


def _is_pinned(task: Task, manifest: Mapping[str, Any]) -> bool:
    """Whether the plan has checksums of all that the weight is read from, and the manifest of its bytes."""
    recorded = all(slab.storage.crc32 is not None for slab in task.source.slabs)
    return recorded and task.name in manifest["tensors"]


def _converted_again(plan: Plan, options: ConvertOptions, notes: Notes) -> Mapping[str, Sequence[str]]:
    """The hashes of what the weights of a plan become, at each of their places."""
    outputs = {file: Discarded(layout) for file, layout in plan.layouts.items()}
    record = Record()
    execute(
        plan,
        outputs,
        record,
        workers=options.workers,
        block_size=options.block_size,
        progress=notes.observer.advance,
    )
    return {name: entry.digests for name, entry in record.entries.items()}
