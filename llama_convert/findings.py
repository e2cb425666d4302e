"""Problems that `verify` and `inspect` find in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llama_convert.errors import LlamaConvertError

Severity = Literal["error", "warning"]
"""``error``: the checkpoint fails. ``warning``: it passes, but a person should look."""


def severity_of(*, warning: bool) -> Severity:
    """``warning`` or ``error``."""
    return "warning" if warning else "error"


@dataclass(frozen=True)
class Finding:
    """One problem of a checkpoint."""

    code: str
    """A stable identifier, for example ``TENSOR_SHAPE``; `llama-convert explain` has its page."""
    message: str
    """What is wrong, in a sentence that needs no context except file and tensor."""
    file: str | None = None
    """The file at fault, relative to the folder of its checkpoint."""
    tensor: str | None = None
    expected: str | None = None
    found: str | None = None
    hint: str | None = None
    """The likely cause, or what to do."""
    severity: Severity = "error"

    @property
    def is_warning(self) -> bool:
        """Whether the checkpoint passes all the same."""
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
            message = f"and {count - SHOWN} more"
            result.insert(result.index(last) + 1, Finding(code, message, hint=hint, severity=last.severity))
    return result
