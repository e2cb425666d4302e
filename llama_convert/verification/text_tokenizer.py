"""Text to ids and back, as a checkpoint's own tokenizer has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_convert.verification.inputs import Input
from llama_convert.verification.sandbox import run_isolated


class Words(Protocol):
    """A tokenizer that knows where a text begins."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, BOS first; what looks like a special token is text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself."""


def open_text_tokenizer(side: Input) -> Words | None:
    """The tokenizer of a checkpoint, run in a child process; None if it has none."""
    return _Isolated(side.tokenizer) if side.tokenizer else None


@dataclass(frozen=True)
class _Isolated:
    """A tokenizer's file; each call raises an InputError if the file is damaged."""

    file: Path

    def encode(self, text: str) -> list[int]:
        ids: list[int] = run_isolated("encode", [self.file], text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = run_isolated("decode", [self.file], list(ids))
        return text

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        texts: list[str] = run_isolated("decode_each", [self.file], list(ids))
        return texts
