"""Text to ids and back, as a checkpoint's own tokenizer has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small
from llama_convert.verification.isolated import run_isolated
from llama_convert.verification.sides import Side
from llama_convert.verification.tokenizer.original import open_original


class Words(Protocol):
    """A tokenizer that knows where a text begins."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, BOS first; what looks like a special token is text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


def open_words(side: Side) -> Words | None:
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


def encode(file: Path, text: str) -> list[int]:
    """As `Words.encode`, in this process."""
    return _open(file).encode(text)


def decode(file: Path, ids: Sequence[int]) -> str:
    """As `Words.decode`, in this process."""
    return _open(file).decode(ids)


def _open(file: Path) -> Words:
    return _TokenizerJson(file) if file.suffix == ".json" else _Original(file)


class _TokenizerJson:
    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_buffer(read_small(file, MAX_TOKENIZER_JSON))
        except InputError:
            raise
        except Exception as error:  # the library raises nothing narrower
            message = f"the tokenizers library cannot read it: {error}"
            raise InputError("TOKENIZER_JSON", message, file=file) from None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class _Original:
    """Meta's own; ids that are no words are left out of a text."""

    def __init__(self, file: Path) -> None:
        self._original = open_original(file)

    def encode(self, text: str) -> list[int]:
        return [self._original.bos, *self._original.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        original = self._original
        words = (number for number in ids if number < len(original.names))
        return original.decode([number for number in words if number not in original.special])
