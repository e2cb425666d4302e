"""Options of a verification."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_convert.errors import UsageError
from llama_convert.verification.report import Check


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification."""

    checks: tuple[Check, ...] | None = None
    """Checks that must run; None: every check that can."""
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
    config_from: Path | None = None
    """Folder with settings and tokenizer of the source, or of the output without a source."""
    tokenizer: Path | None = None
    """The ``tokenizer.model`` of the source, if it is in another folder."""

    @property
    def selected(self) -> tuple[Check, ...]:
        """The checks to run, the cheapest first."""
        return tuple(check for check in Check if self.checks is None or check in self.checks)

    @property
    def of_forward_passes(self) -> list[str]:
        """Options of the forward passes that differ from their defaults, as flags."""
        flags = {
            "device": "--device",
            "dtype": "--dtype",
            "n_positions": "--positions",
            "prompt": "--prompt",
            "max_new_tokens": "--max-new-tokens",
        }
        return [flag for name, flag in flags.items() if getattr(self, name) != getattr(VerifyOptions, name)]


def parse_checks(texts: Iterable[str] | None) -> tuple[Check, ...] | None:
    """The checks named in texts, each a name or a comma-separated list; None if none is named.

    Raises:
        UsageError: a name is unknown.
    """
    names = [name.strip() for text in texts or [] for name in text.split(",") if name.strip()]
    known = [check.value for check in Check]
    for name in names:
        if name not in known:
            hint = f"Choose among {', '.join(known)}."
            raise UsageError("BAD_CHECK", f"--check {name}: No such check.", hint=hint)
    return tuple(check for check in Check if check.value in names) or None
