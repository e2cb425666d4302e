"""Problems that `verify` and `inspect` find in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llama_convert.errors import LlamaConvertError

Severity = Literal["error", "warning"]
"""``error``: the checkpoint fails. ``warning``: it passes, but a person should look."""


def severity_of(*, warning: bool) -> Severity:
    """``warning`` or ``error``."""
    return "warning" if warning else "error"


@dataclass(frozen=True)
class RootCause:
    """The finding that explains another one."""

    check: str
    """The check that reported it, for example ``structure``."""
    code: str
    message: str
    tensor: str | None = None

    def __str__(self) -> str:
        what = f"error in {self.tensor}" if self.tensor else self.message.removesuffix(".")
        return f"{self.check}: {what}"


@dataclass(frozen=True)
class Finding:
    """One problem of a checkpoint."""

    code: str
    """A stable identifier, for example ``TENSOR_SHAPE``; `llama-convert explain` describes it."""
    message: str
    """What is wrong, as a sentence without the names of file and tensor."""
    file: str | None = None
    """The faulty file, relative to the folder of its checkpoint."""
    tensor: str | None = None
    expected: str | None = None
    found: str | None = None
    hint: str | None = None
    """The likely cause, or what to do, as a sentence."""
    severity: Severity = "error"
    explained_by: RootCause | None = None
    """The finding that has the same cause and should be read instead."""

    @property
    def is_warning(self) -> bool:
        """Whether the checkpoint passes despite this finding."""
        return self.severity == "warning"

    @classmethod
    def of(cls, error: LlamaConvertError, *, severity: Severity = "error") -> Finding:
        """The finding that an error describes."""
        return cls(
            code=error.code,
            message=error.message,
            file=error.file_name,
            tensor=error.tensor,
            expected=error.expected,
            found=error.found,
            hint=error.hint,
            severity=severity,
        )


SHOWN = 10
"""Max number of findings listed of one kind; the rest is counted."""


def at_most(findings: list[Finding]) -> list[Finding]:
    """The first `SHOWN` findings of each kind, followed by one that counts the rest of that kind.

    Findings with the same code, hint, severity and root cause are of one kind.
    """
    kinds: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(_kind(finding), []).append(finding)
    last = {id(members[SHOWN - 1]): members for members in kinds.values() if len(members) > SHOWN}
    listed = {id(finding) for members in kinds.values() for finding in members[:SHOWN]}
    result: list[Finding] = []
    for finding in findings:
        if id(finding) in listed:
            result.append(finding)
        if members := last.get(id(finding)):
            message = f"And {len(members) - SHOWN} more."
            result.append(
                replace(finding, message=message, file=None, tensor=None, expected=None, found=None)
            )
    return result


def _kind(finding: Finding) -> tuple[object, ...]:
    cause = finding.explained_by
    return finding.code, finding.hint, finding.severity, cause and (cause.check, cause.code)
