"""Text to ids and back, by the library each tokenizer was made for."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_convert.errors import InputError
from llama_convert.tokenizers import open_tokenizer
from llama_convert.tokenizers.tiktoken_ranks import SPLIT_PATTERN
from llama_convert.verify.sides import Side


class Words(Protocol):
    """A tokenizer that knows where a text begins."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, BOS first; what looks like a special token is text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


def open_words(side: Side) -> Words | None:
    """The tokenizer of a checkpoint; None if it has none.

    Raises:
        InputError: it is damaged.
    """
    if side.tokenizer is None:
        return None
    if side.layout == "huggingface":
        return _TokenizerJson(side.tokenizer)
    kind = open_tokenizer(side.tokenizer).kind
    return _Sentencepiece(side.tokenizer) if kind == "sentencepiece" else _Tiktoken(side.tokenizer)


class _TokenizerJson:
    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            message = f"the tokenizers library cannot read it: {error}"
            raise InputError("TOKENIZER_JSON", message, file=file) from None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


class _Sentencepiece:
    def __init__(self, file: Path) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(file))

    def encode(self, text: str) -> list[int]:
        return [self._processor.bos_id(), *self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        n_words = len(self._processor)
        text: str = self._processor.decode([number for number in ids if number < n_words])
        return text


@dataclass
class _Tiktoken:
    file: Path

    def __post_init__(self) -> None:
        import tiktoken

        lines = (line.split() for line in self.file.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        self.bos = len(ranks)
        special = {f"<|special_{number}|>": len(ranks) + number for number in range(256)}
        self._encoding = tiktoken.Encoding(
            "llama", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: str) -> list[int]:
        return [self.bos, *self._encoding.encode_ordinary(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode(list(ids))
