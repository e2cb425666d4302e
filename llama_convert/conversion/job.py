"""What all conversions are, whatever their ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.staging import Staging
from llama_convert.formats.files import read_small

LARGEST_CARRIED = 64 << 20
"""Bytes of a file that is carried along; larger ones are left behind."""


@dataclass
class Job:
    """A conversion that has been thought through, and only needs doing."""

    source: Path
    plan: Plan | None
    """None: there are no weights to write."""
    result: ConvertResult
    """To be filled in."""
    read: Sequence[Path]
    """The files that the weights and settings come from."""
    carried: Sequence[Path]
    """The files that go along."""
    write_small_files: Callable[[Staging], object]
    """Writes everything but the weights and what belongs to them."""
    small_bytes: int = 0
    """About what those take."""
    checklist: bool = False
    """Whether ``checklist.chk`` is written, which needs the finished files."""
    source_digests: Mapping[str, str] = field(default_factory=dict)
    """XXH3-128 of weights by the names that the source has for them, as a manifest next to it says."""

    @property
    def folder(self) -> Path:
        """Where the checkpoint was found: the source, or a folder in it."""
        return self.read[0].parent if self.read else self.source

    @property
    def files(self) -> list[str]:
        """The files that hold weights."""
        return list(self.plan.layouts) if self.plan else []

    def settings(self, options: ConvertOptions) -> str:
        """All that decides the output besides the plan: options, and files that are carried along by content.

        Raises:
            InputError, OutputError: one of these files cannot be read.
        """
        files = [*self.carried, *([options.chat_template] if options.chat_template else [])]
        contents = [
            (file.name, xxhash.xxh3_128_hexdigest(read_small(file, LARGEST_CARRIED))) for file in files
        ]
        return repr((options.decisive, self.result.release, self.result.instruct, contents))


Prepare = Callable[[Path, Path, ConvertOptions, Notes], Job]
"""Thinks a conversion through: source, destination, options, whom to tell."""
