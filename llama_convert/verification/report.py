"""The result of a verification: which checks passed, failed or were skipped, and what they found."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from llama_convert.findings import Finding
from llama_convert.llama.releases import DetectedRelease


class Check(str, Enum):
    """What can be verified, from the cheapest check to the most expensive one."""

    STRUCTURE = "structure"
    VALUES = "values"
    WEIGHTS = "weights"
    TOKENIZER = "tokenizer"
    LOGITS = "logits"


class Status(str, Enum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass
class Outcome:
    """What a check returns."""

    summary: str
    """The result or what was checked, in a few words."""
    findings: list[Finding] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)
    """Figures by name, for programs and plots."""
    details: str = ""
    """What else was checked and measured; shown with ``--verbose``."""


@dataclass
class CheckReport:
    """How one check ended."""

    check: Check
    status: Status
    summary: str
    """The result in a few words, or why the check was skipped."""
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    measures: dict[str, Any] = field(default_factory=dict)
    """Figures by name, for programs and plots."""
    details: str = ""
    """What else was checked and measured."""
    hint: str | None = None
    """How to run a check that was skipped, as an imperative sentence or ``Run: COMMAND``; None if unknown."""
    n_errors: int = 0
    """Number of errors that no other finding explains; `findings` lists the first of each kind."""

    @property
    def errors(self) -> list[Finding]:
        """Findings that fail the check."""
        return [finding for finding in self.findings if not finding.is_warning]

    @property
    def explanation(self) -> str | None:
        """The findings of other checks that explain all errors of this one; None if they do not."""
        causes = [finding.explained_by for finding in self.errors]
        if not causes or any(cause is None for cause in causes):
            return None
        texts = list(dict.fromkeys(map(str, causes)))
        return f"Explained by {texts[0]}" + (f" (and {len(texts) - 1} more)" if len(texts) > 1 else "")


@dataclass(frozen=True)
class FileIdentity:
    """Which official file a file is, by its published checksum."""

    file: str
    """Its name, relative to the folder of its checkpoint."""
    size: int
    verdict: str
    """``official``; ``unofficial``: the size is an official file's, the checksum differs; ``size only``: the
    size is an official file's, whose checksum was never published; ``unknown``."""
    message: str
    """The verdict as the rest of a sentence that begins with the file's name."""
    algorithm: str | None = None
    digest: str | None = None
    """The computed checksum in lower-case hexadecimal; None if the file was not read."""
    provenance: str | None = None
    """The official file with its repository, and who published its checksum."""


@dataclass
class VerifyReport:
    """The result of a verification."""

    path: Path | str
    """A folder, or a URL."""
    format: str
    """``huggingface`` or ``meta``."""
    source: Path | str | None
    source_format: str | None
    release: str | None
    checks: list[CheckReport]
    files: list[FileIdentity] = field(default_factory=list)
    completions: dict[str, str] = field(default_factory=dict)
    """Generated text after the prompt, by ``output`` and ``source``."""
    detected: DetectedRelease | None = None
    """The release in detail; None if no Meta checkpoint could be opened."""

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(report.status is not Status.FAIL for report in self.checks)

    @property
    def seconds(self) -> float:
        """Time that all checks took."""
        return sum(report.seconds for report in self.checks)

    @property
    def abstract(self) -> dict[str, Any]:
        """The part that a manifest records: no paths and no times."""
        return {
            "ok": self.ok,
            "against_source": self.source is not None,
            "levels": [
                {"level": report.check.value, "status": report.status.value, "summary": report.summary}
                for report in self.checks
            ],
        }
