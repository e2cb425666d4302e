"""Options of a verification."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_convert.errors import UsageError
from llama_convert.verification.report import Check


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification; by default every check runs that can."""

    checks: tuple[Check, ...] = tuple(Check)
    device: str = "auto"
    dtype: str = "fp32"
    """Dtype of the arithmetic in the forward passes: fp32 or bf16."""
    n_positions: int = 64
    """Number of tokens that source and output run."""
    checksums: bool | None = None
    """Whether to compare files with published checksums; None: only those of an official file's size."""
    prompt: str | None = None
    max_new_tokens: int = 16
    llama_version: str | None = None
    tokenizer: Path | None = None
    """The ``tokenizer.model`` of the source, if it is in another folder."""


def parse_checks(texts: Iterable[str] | None) -> tuple[Check, ...]:
    """The checks named in texts, each a name or a comma-separated list; all checks if none is named.

    Raises:
        UsageError: a name is unknown.
    """
    names = [name.strip() for text in texts or [] for name in text.split(",") if name.strip()]
    known = [check.value for check in Check]
    for name in names:
        if name not in known:
            hint = f"Choose among {', '.join(known)}."
            raise UsageError("BAD_CHECK", f"--check {name}: No such check.", hint=hint)
    return tuple(check for check in Check if not names or check.value in names)
