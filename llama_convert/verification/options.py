"""What may be asked of a verification."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_convert.errors import UsageError
from llama_convert.verification.report import Level


@dataclass(frozen=True)
class VerifyOptions:
    """What may be asked of a verification; by default everything that can be looked at is."""

    levels: tuple[Level, ...] = tuple(Level)
    device: str = "auto"
    dtype: str = "fp32"
    """The dtype of the forward passes' arithmetic: fp32 or bf16."""
    n_positions: int = 64
    """Tokens that run through both sides."""
    checksums: bool | None = None
    """Whether to hold files against published checksums; None: those whose size is an official file's."""
    prompt: str | None = None
    max_new_tokens: int = 16
    llama_version: str | None = None
    tokenizer: Path | None = None
    """The source's ``tokenizer.model``, where it is not beside it."""


def parse_levels(texts: Iterable[str] | None) -> tuple[Level, ...]:
    """The levels that words, or lists of words with commas, name; all of them for none.

    Raises:
        UsageError: there is no such level.
    """
    words = [word.strip() for text in texts or [] for word in text.split(",") if word.strip()]
    names = [level.value for level in Level]
    for word in words:
        if word not in names:
            raise UsageError("BAD_LEVEL", f"--level {word}: choose among {', '.join(names)}")
    return tuple(level for level in Level if not words or level.value in words)
