"""A `tokenizer.model` that was read, and options for its conversion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from llama_convert.tokenizers.special_tokens import SpecialTokenNames
from llama_convert.tokenizers.tokenizer_json import TokenizerJson


@dataclass(frozen=True)
class TokenizerOptions:
    """Settings that a `tokenizer.model` does not contain."""

    special_names: SpecialTokenNames = "llama3.1"
    """Release whose names the 256 special tokens of a tiktoken vocabulary have."""
    special_tokens: tuple[str, ...] = ()
    """Names that replace those of `special_names`, from the first special id; reserved names follow."""
    instruct: bool = False
    """Use the end of a turn (``<|eot_id|>``, Code Llama 70B: ``<step>``) as the EOS token if there is one."""
    chat_template: str | None = None
    """Jinja template for `apply_chat_template`."""
    model_max_length: int | None = None
    """Tokens; None for no limit."""


@dataclass(frozen=True)
class Tokenizer(ABC):
    """A `tokenizer.model`, read and checked."""

    path: Path
    kind: ClassVar[Literal["sentencepiece", "tiktoken"]]
    n_special: ClassVar[int]
    """Special tokens that follow those of the file."""

    @property
    @abstractmethod
    def n_base(self) -> int:
        """Tokens in the file."""

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        return self.n_base + self.n_special

    @property
    def differing_text(self) -> str | None:
        """A text for which tokenizer.json has other ids than Meta's code; None if no such text is known."""
        return None

    @abstractmethod
    def has_token(self, name: str, number: int | None) -> bool:
        """Whether Meta's code has a token with this name and, unless it is None, this id."""

    @abstractmethod
    def tokenizer_json(self, options: TokenizerOptions) -> TokenizerJson:
        """The same tokenizer as a tokenizer.json."""
