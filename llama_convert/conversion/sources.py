"""Whether the source files are what they were: while they are read, and since they were published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llama_convert.checkpoints.checklist import CHECKLIST, md5_of_all, read_checklist
from llama_convert.conversion.notes import Notes
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats.files import remote_files


class State(NamedTuple):
    """What tells a file from what it was, or will be."""

    size: int
    mtime_ns: int
    version: str
    """The inode; of a file elsewhere, what its store says."""


States = Mapping[Path, State]


def states_of(files: set[Path]) -> States:
    """The files as they are now.

    Raises:
        InputError: one of them is gone.
    """
    try:
        return {file: _state(file) for file in files}
    except OSError as error:
        message = f"cannot be looked at again: {error.strerror}"
        raise InputError("INPUT_CHANGED", message, file=error.filename) from None


def _state(file: Path) -> State:
    status = file.stat()
    version = remote_files[file].version() if file in remote_files else str(status.st_ino)
    return State(status.st_size, status.st_mtime_ns, version)


def check_unchanged(before: States) -> None:
    """See whether the files still are what they were.

    Raises:
        InputError: one of them is not.
    """
    for file, old in before.items():
        try:
            new = _state(file)
        except OSError:
            raise InputError("INPUT_CHANGED", "is gone; it was read a moment ago", file=file) from None
        if old != new:
            raise InputError("INPUT_CHANGED", "changed while it was read", file=file)


def compare_with_checklist(folder: Path, workers: int, notes: Notes) -> None:
    """Hold all files that the folder's ``checklist.chk`` names against their MD5s there.

    Raises:
        InputError: there is no checklist, it names nothing that is here, or one file is another.
    """
    checklist = read_checklist(folder)
    file = folder / CHECKLIST
    if checklist is None:
        raise InputError("INPUT_CHECKLIST", "not found, so there is nothing to compare with", file=file)
    if checklist.absent:
        message = f"{CHECKLIST} names it, and it is not here"
        raise InputError("INPUT_CHECKLIST", message, file=folder / checklist.absent[0])
    if not checklist.said:
        raise InputError("INPUT_CHECKLIST", "is no list of checksums", file=file)
    for line in checklist.malformed:
        notes.warn(f"{file}: {line}")
    files = list(checklist.said)
    notes.observer.start(sum(file.stat().st_size for file in files), f"Comparing with {CHECKLIST}")
    try:
        digests = md5_of_all(files, workers=workers, progress=notes.observer.advance)
    finally:
        notes.observer.finish()
    for (file, said), digest in zip(checklist.said.items(), digests, strict=True):
        if digest != said:
            other = checklist.named(digest)
            found = f"{digest}, that of {other}" if other else digest
            message = f"its MD5 is {found}; {CHECKLIST} says {said}"
            raise InputError("INPUT_CHECKLIST", message, file=file, hint="download it again")
    notes.note(f"{len(files)} files have the MD5s of {CHECKLIST}")


def listed_in_checklist(folder: Path) -> Mapping[Path, str]:
    """The MD5 of each file as the folder's ``checklist.chk`` has it; nothing where that cannot be read."""
    try:
        checklist = read_checklist(folder)
    except LlamaConvertError:
        return {}
    return checklist.said if checklist else {}
