"""A prepared conversion, and the hashes that identify its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from llama_convert import __version__
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.staging import Staging
from llama_convert.formats.files import read_small, remote_files
from llama_convert.stores.location import Location

MAX_AUXILIARY_SIZE = 64 << 20
"""Max bytes of an auxiliary file that is copied."""


@dataclass
class Job:
    """A conversion whose headers are read and whose plan is made."""

    source: Path
    """What the user passed."""
    folder: Path
    """The folder of the checkpoint: the source or a folder in or around it."""
    plan: Plan | None
    """None if there are no weights to write."""
    result: ConvertResult
    """Completed while the job runs."""
    source_files: Sequence[Path]
    """Files that the weights and settings are read from."""
    auxiliary_files: Sequence[Path]
    """Files that are copied or converted next to the weights."""
    write_small_files: Callable[[Staging], object]
    """Writes every file that does not depend on the weights."""
    small_files_size: int = 0
    """Approximate bytes of those files."""
    writes_checklist: bool = False
    """Whether ``checklist.chk`` is written once the other files are complete."""
    source_hashes: Mapping[str, str] = field(default_factory=dict)
    """XXH3-128 of weights by their source names, from a manifest next to the source."""

    @property
    def weight_files(self) -> list[str]:
        """Names of the output files that hold weights."""
        return list(self.plan.layouts) if self.plan else []

    def settings(self, options: ConvertOptions) -> str:
        """Return everything besides the plan that decides the output: options and auxiliary file contents.

        Raises:
            InputError, OutputError: an auxiliary file cannot be read.
        """
        files = [*self.auxiliary_files, *([options.chat_template] if options.chat_template else [])]
        contents = [
            (file.name, xxhash.xxh3_128_hexdigest(read_small(file, MAX_AUXILIARY_SIZE))) for file in files
        ]
        return repr((options.output_options, self.result.release, self.result.instruct, contents))


JobFactory = Callable[[Path, Path, ConvertOptions, Messages], Job]
"""Prepares a conversion from source, destination, options and the receiver of messages."""


@dataclass(frozen=True)
class OutputIdentity:
    """Hashes of everything that decides an output except the bytes of the source's weights."""

    plan: str
    """Of the whole output."""
    weights: str
    """Of the files that hold weights."""

    @classmethod
    def of(cls, plan: Plan | None, settings: str) -> OutputIdentity:
        """Return the identity of an output; ``settings`` decides it besides the plan."""
        return cls(plan_hash(plan, settings), plan_hash(plan, ""))


def plan_hash(plan: Plan | None, settings: str) -> str:
    """Return the XXH3-128 of everything that decides the output except the source's bytes and location.

    Args:
        plan: what is written of the weights.
        settings: everything else that makes a difference.
    """
    state = xxhash.xxh3_128(f"{__version__} {settings}".encode())
    for task in plan.tasks if plan else ():
        state.update(repr((task.name, task.dtype, task.places, task.permutation, task.source.shape)).encode())
        for slab in task.source.slabs:
            without_folder = replace(slab, storage=replace(slab.storage, file=Path(slab.file.name)))
            state.update(repr(without_folder).encode())
    state.update(repr(plan.sizes if plan else {}).encode())
    return state.hexdigest()


def fingerprint(identity: str, sources: Mapping[Path, tuple[object, ...]], location: Location) -> str:
    """Return the XXH3-128 of a `plan_hash` and the current states of the source files.

    Args:
        identity: the `plan_hash`.
        sources: size, time and version of each file.
        location: the source. A mounted one counts by its URLs, without the inodes of downloaded copies, which
            differ in the next run.
    """
    state = xxhash.xxh3_128(identity.encode())
    for file, (size, modified, version) in sorted(sources.items()):
        is_copy = location.contains(file) and file not in remote_files
        file_state = (location.display(str(file)), size, modified, "" if is_copy else version)
        state.update(" ".join(map(str, file_state)).encode())
    return state.hexdigest()
