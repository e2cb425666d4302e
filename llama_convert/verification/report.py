"""What a verification says: levels that pass, fail or were not run, and what each found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from llama_convert.errors import LlamaConvertError


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
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or with `warning` one that should be looked at."""

    code: str
    """A stable word for programs."""
    message: str
    """What is wrong, in a sentence that needs no context but file and tensor."""
    file: str | None = None
    """The name of the file at fault, relative to its checkpoint's folder."""
    tensor: str | None = None
    expected: str | None = None
    found: str | None = None
    hint: str | None = None
    """The likely cause, or what to do."""
    warning: bool = False

    @classmethod
    def of(cls, error: LlamaConvertError, *, warning: bool = False) -> Finding:
        """What an error says that was raised while looking."""
        return cls(
            code=error.code,
            message=error.message,
            file=error.file.name if error.file else None,
            tensor=error.tensor,
            expected=error.expected,
            found=error.found,
            hint=error.hint,
            warning=warning,
        )


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
    continuations: dict[str, str] = field(default_factory=dict)
    """What each side says after the prompt, by ``source`` and ``output``."""

    @property
    def ok(self) -> bool:
        """Nothing that was looked at is wrong."""
        return all(level.status is not Status.FAIL for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **asdict(self),
            "ok": self.ok,
            "path": str(self.path),
            "source": str(self.source) if self.source else None,
        }

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


SHOWN = 10
"""Findings of one kind that are listed; the rest are counted."""


def at_most(findings: list[Finding]) -> list[Finding]:
    """The first findings of each kind, and a count of the rest."""
    result: list[Finding] = []
    seen: dict[tuple[str, str | None], int] = {}
    for finding in findings:
        kind = (finding.code, finding.hint)
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= SHOWN:
            result.append(finding)
    for (code, hint), count in seen.items():
        if count > SHOWN:
            last = next(f for f in reversed(result) if (f.code, f.hint) == (code, hint))
            message = f"and {count - SHOWN} more alike"
            result.insert(result.index(last) + 1, Finding(code, message, hint=hint, warning=last.warning))
    return result
