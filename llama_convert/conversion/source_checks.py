"""Checks of the source files: not in the output folder, unchanged while read, matching their checksums."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from llama_convert.checkpoints.checklist import CHECKLIST, md5_of_all, read_checklist
from llama_convert.checkpoints.manifest import MANIFEST, read_manifest
from llama_convert.checkpoints.manifest_check import STALE, match_manifest, sample_checksums
from llama_convert.conversion.job import Job
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.staging import STAGING
from llama_convert.conversion.write_report import WriteReport
from llama_convert.errors import InputError, LlamaConvertError, UsageError
from llama_convert.formats.files import remote_files
from llama_convert.text import listed


def check_separate(destination: Path, folders: Iterable[Path], files: Iterable[Path]) -> None:
    """Check that the output folder is not an input folder and holds no input file.

    Paths are compared by inode, so hard links, symbolic links and bind mounts count. Files in folders below
    the output folder do not count, except in the staging folder: nothing else is written or removed there.

    Args:
        destination: the output folder; it may not exist.
        folders: the input folders.
        files: all files that are read or copied.

    Raises:
        UsageError: the output folder is or holds an input.
    """
    inputs = {_inode(path) for path in (*folders, *files)} - {None}
    for path in (destination, *_files_in(destination), *_everything_below(destination / STAGING)):
        if _inode(path) in inputs:
            message = (
                f"Holds {path.name}, which is an input." if path != destination else "Is the input folder."
            )
            hint = "Choose another output folder."
            raise UsageError("OUTPUT_IS_INPUT", message, file=destination, hint=hint)


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files directly in a folder. Folders of the source may be below the output folder."""
    if folder.is_dir():
        yield from (entry for entry in folder.iterdir() if not entry.is_dir())


def _everything_below(folder: Path) -> Iterator[Path]:
    """Yield a folder and everything below it, without following links."""
    for path, folders, files in os.walk(folder):
        yield Path(path)
        yield from (Path(path, name) for name in (*folders, *files))


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


class FileState(NamedTuple):
    """What changes when a file does."""

    size: int
    mtime_ns: int
    version: str
    """The inode; for a remote file, the version that the store reports."""


FileStates = Mapping[Path, FileState]


def file_states(files: set[Path]) -> FileStates:
    """Return the current state of each file.

    Raises:
        InputError: a file is gone.
    """
    try:
        return {file: _file_state(file) for file in files}
    except OSError as error:
        message = f"Cannot be read ({error.strerror})."
        raise InputError("INPUT_CHANGED", message, file=error.filename) from None


def _file_state(file: Path) -> FileState:
    status = file.stat()
    version = remote_files[file].version() if file in remote_files else str(status.st_ino)
    return FileState(status.st_size, status.st_mtime_ns, version)


def check_unchanged(before: FileStates) -> None:
    """Check that files have not changed.

    Raises:
        InputError: a file has changed or is gone.
    """
    for file, state in before.items():
        try:
            current = _file_state(file)
        except OSError:
            raise InputError("INPUT_CHANGED", "Disappeared while it was read.", file=file) from None
        if state != current:
            raise InputError("INPUT_CHANGED", "Changed while it was read.", file=file)


def compare_with_checklist(folder: Path, workers: int, messages: Messages) -> None:
    """Verify the MD5 of every file in the folder's ``checklist.chk``.

    Raises:
        InputError: the checklist is missing or malformed, or a file is missing or does not match.
    """
    checklist = read_checklist(folder)
    file = folder / CHECKLIST
    if checklist is None:
        hint = "Leave out --compare-checklist."
        raise InputError("INPUT_CHECKLIST", "Not found.", file=file, hint=hint)
    if checklist.missing:
        message = f"Missing file, listed in {CHECKLIST}."
        raise InputError("INPUT_CHECKLIST", message, file=folder / checklist.missing[0])
    if not checklist.md5s:
        raise InputError("INPUT_CHECKLIST", "Not a list of MD5 checksums.", file=file)
    for line in checklist.malformed:
        messages.warn(f"{file}: {line}")
    files = list(checklist.md5s)
    messages.observer.start(sum(file.stat().st_size for file in files), f"Comparing with {CHECKLIST}")
    try:
        checksums = md5_of_all(files, workers=workers, progress=messages.observer.advance)
    finally:
        messages.observer.finish()
    for (file, expected), found in zip(checklist.md5s.items(), checksums, strict=True):
        if found != expected:
            other = checklist.file_with(found)
            raise InputError(
                "INPUT_CHECKLIST",
                f"MD5 does not match {CHECKLIST}" + (f"; it is that of {other}." if other else "."),
                file=file,
                expected=expected,
                found=found,
                hint="Download the file again.",
            )
    messages.note(f"All {len(files)} files match {CHECKLIST}.")


def checklist_md5s(folder: Path) -> Mapping[Path, str]:
    """Return the MD5s in the folder's ``checklist.chk``; empty if it cannot be read."""
    try:
        checklist = read_checklist(folder)
    except LlamaConvertError:
        return {}
    return checklist.md5s if checklist else {}


def read_source_hashes(job: Job, messages: Messages) -> dict[str, str]:
    """Return the XXH3-128 of the source's weights from its manifest, after comparing a sample of them.

    Returns:
        Hashes by weight name; empty if there is no manifest or if it does not match.

    Raises:
        InputError: a source file is damaged.
        OutputError: a file cannot be read.
    """
    if job.plan is None:
        return {}
    try:
        manifest = read_manifest(job.folder)
    except InputError as error:
        messages.note(f"{error} The manifest is not used.")
        return {}
    if manifest is None:
        return {}
    found = match_manifest(job.folder, manifest, sample_checksums(task.source for task in job.plan.tasks))
    if found.is_stale:
        messages.warn(f"{job.folder / MANIFEST}: {STALE} Neither is used.")
    elif found.differing:
        _warn_of_mismatches(job, messages, found.differing, len(found.differing) + len(found.matching))
    else:
        tensors: dict[str, str] = manifest["tensors"]
        return tensors
    return {}


def compare_source_hashes(job: Job, report: WriteReport, messages: Messages) -> None:
    """Warn of weights that were copied unchanged but whose hash differs from the source's manifest."""
    if job.plan:
        copied = _copied_hashes(job.plan, report)
        expected = {name: job.source_hashes[name] for name in copied if name in job.source_hashes}
        differing = [name for name in expected if expected[name] != copied[name]]
        if differing:
            _warn_of_mismatches(job, messages, differing, len(expected))


def _copied_hashes(plan: Plan, report: WriteReport) -> Mapping[str, str]:
    """Return the hashes of weights with the same bytes in source and output, by source name."""
    return {
        task.source.name: report.hashes[task.name]
        for task in plan.tasks
        if task.name in report.hashes and not (task.is_cast or task.permutation)
    }


def _warn_of_mismatches(job: Job, messages: Messages, differing: Iterable[str], n_checked: int) -> None:
    names = list(differing)
    messages.warn(
        f"{job.folder / MANIFEST}: Checksums do not match for {len(names)} of {n_checked} weights "
        f"({listed(names)}). "
        "The weights are damaged, or changed after the manifest and the model card were written."
    )
