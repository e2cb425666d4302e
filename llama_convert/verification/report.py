"""What a verification says: levels that pass, fail or were not run, and what each found."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from llama_convert import json_output
from llama_convert.findings import Finding
from llama_convert.llama.releases import Identity


class Level(str, Enum):
    """What is looked at, the cheapest first."""

    STRUCTURE = "structure"
    VALUES = "values"
    WEIGHTS = "weights"
    TOKENIZER = "tokenizer"
    LOGITS = "logits"


class Status(str, Enum):
    """How a level ended."""

    PASS = "pass"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass
class LevelReport:
    """What one level says."""

    level: Level
    status: Status
    summary: str
    """What was looked at, or why nothing was."""
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    measures: dict[str, Any] = field(default_factory=dict)
    """Figures, by name, for programs and plots."""


@dataclass(frozen=True)
class FileIdentity:
    """Which official file a file is, by its published checksum."""

    file: str
    """Its name, relative to its checkpoint's folder."""
    size: int
    verdict: str
    """``official``; ``foreign``: the size is an official file's, the digest is not; ``size only``: the size
    is an official file's and no digest of that was published; ``unknown``."""
    message: str
    """The verdict in a sentence, the official file and the sources of its checksum named."""
    algorithm: str | None = None
    digest: str | None = None
    """What was computed, in lower-case hexadecimal; None where nothing was."""


@dataclass
class VerifyReport:
    """All that a verification says."""

    path: Path
    layout: str
    """``huggingface`` or ``meta``."""
    source: Path | None
    source_layout: str | None
    release: str | None
    levels: list[LevelReport]
    files: list[FileIdentity] = field(default_factory=list)
    completions: dict[str, str] = field(default_factory=dict)
    """What each side says after the prompt, by ``source`` and ``output``."""
    identity: Identity | None = None
    """The release in detail; None if no Meta checkpoint could be opened."""

    @property
    def ok(self) -> bool:
        """Nothing that was looked at is wrong."""
        return all(level.status is not Status.FAIL for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        """The keys that ``verify --json`` adds to those of every command."""
        return json_output.verification(self)

    @property
    def abstract(self) -> dict[str, Any]:
        """What is to be remembered of it: nothing of this machine, nor of this day."""
        return {
            "ok": self.ok,
            "against_source": self.source is not None,
            "levels": [
                {"level": level.level.value, "status": level.status.value, "summary": level.summary}
                for level in self.levels
            ],
        }
