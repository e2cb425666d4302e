"""What a manifest next to the source says of the weights that are read, and whether it is true."""

from __future__ import annotations

from collections.abc import Mapping

from llama_convert.checkpoints.manifest import MANIFEST, read_manifest
from llama_convert.checkpoints.manifest_check import STALE, match_manifest, sample_checksums
from llama_convert.conversion.job import Job
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.write_report import Report
from llama_convert.errors import InputError


def read_source_digests(job: Job, notes: Notes) -> dict[str, str]:
    """The checksums of the source's weights by name, as its manifest has them; warns if a sample differs.

    Returns:
        Nothing if there is no manifest, or it has been warned of.

    Raises:
        InputError: a source file is not what it was.
        OutputError: the machine cannot read.
    """
    if job.plan is None:
        return {}
    try:
        manifest = read_manifest(job.folder)
    except InputError as error:
        notes.note(f"{error}; it is not used")
        return {}
    if manifest is None:
        return {}
    found = match_manifest(job.folder, manifest, sample_checksums(task.source for task in job.plan.tasks))
    if found.is_stale:
        notes.warn(f"{job.folder / MANIFEST}: {STALE} Neither is used.")
    elif found.differing:
        _warn(job, notes, list(found.differing), len(found.differing) + len(found.matching))
    else:
        tensors: dict[str, str] = manifest["tensors"]
        return tensors
    return {}


def compare_digests(job: Job, report: Report, notes: Notes) -> None:
    """Warn of weights that were copied unchanged, but whose checksum differs from the source's manifest."""
    if job.plan:
        copied = _copied(job.plan, report)
        said = {name: job.source_digests[name] for name in copied if name in job.source_digests}
        differing = [name for name in said if said[name] != copied[name]]
        if differing:
            _warn(job, notes, differing, len(said))


def _copied(plan: Plan, report: Report) -> Mapping[str, str]:
    """Checksums of the weights that have the same bytes in the source, by the name they have there."""
    return {
        task.source.name: report.digests[task.name]
        for task in plan.tasks
        if task.name in report.digests and not (task.is_cast or task.reorder)
    }


def _warn(job: Job, notes: Notes, differing: list[str], n_checked: int) -> None:
    more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    notes.warn(
        f"{job.folder / MANIFEST}: Checksums do not match for {len(differing)} of {n_checked} checked "
        f"({differing[0]}{more}): damaged, or changed after the manifest and the model card were written."
    )
