"""Encodes and decodes texts with a tokenizer file; called through `sandbox.run_isolated`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small
from llama_convert.verification.tokenizer.tokenizer_json import attempt
from llama_convert.verification.tokenizer.tokenizer_model import open_original

T = TypeVar("T")


def encode(file: Path, text: str) -> list[int]:
    """Token ids of a text, BOS first; names of special tokens are encoded as text.

    Raises:
        InputError: the file is damaged, or the tokenizer returns no ids.
    """
    ids = _open(file).encode(text)
    if not ids or min(ids) < 0:
        raise InputError(
            "TOKENIZER_IDS", "The tokenizer returns no ids or a negative id for a text.", file=file
        )
    return ids


def decode(file: Path, ids: Sequence[int]) -> str:
    """The text of token ids.

    Raises:
        InputError: the file is damaged.
    """
    return _open(file).decode(ids)


def decode_each(file: Path, ids: Sequence[int]) -> list[str]:
    """The text of each id by itself; raises as `encode`."""
    tokenizer = _open(file)
    return [tokenizer.decode([number]) for number in ids]


def _open(file: Path) -> _JsonCodec | _ModelCodec:
    return _JsonCodec(file) if file.suffix == ".json" else _ModelCodec(file)


class _JsonCodec:
    """A tokenizer.json, run by the library `tokenizers`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        content = read_small(file, MAX_TOKENIZER_JSON)
        self._tokenizer = self._attempt("read it", lambda: Tokenizer.from_buffer(content))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._attempt("encode a text", lambda: self._tokenizer.encode(text).ids)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._attempt(
            "decode ids", lambda: self._tokenizer.decode(list(ids), skip_special_tokens=True)
        )
        return text

    def _attempt(self, what: str, call: Callable[[], T]) -> T:
        result = attempt(call)
        if result is None:
            raise InputError("TOKENIZER_JSON", f"The library `tokenizers` cannot {what}.", file=self._file)
        return result


class _ModelCodec:
    """A tokenizer.model; special tokens and ids outside of it are left out of a text."""

    def __init__(self, file: Path) -> None:
        self._original = open_original(file)

    def encode(self, text: str) -> list[int]:
        return [self._original.bos, *self._original.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        original = self._original
        known = (number for number in ids if number < len(original.names))
        return original.decode([number for number in known if number not in original.special])
