"""What a `tokenizer.json` says, before it is text; and the parts that both kinds of tokenizer share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from llama_convert.tokenizers.options import TokenizerOptions

Json = dict[str, Any]
"""A JSON object whose keys are in the order of writing."""


@dataclass(frozen=True)
class Pipeline:
    """A tokenizer as the Rust library `tokenizers` (0.13 and later) understands it."""

    special: dict[str, int]
    """Text -> id of the tokens that are cut out of the raw text before anything else happens to it."""
    model: Json
    """The BPE model's options, without its vocabulary and merges."""
    vocab: Iterable[str]
    """The names of the ids 0, 1, 2, ..."""
    merges: Iterable[tuple[str, str]]
    """The pairs to join, best first."""
    bos: str
    eos: str
    decoder: Json
    post_processor: Json
    normalizer: Json | None = None
    pre_tokenizer: Json | None = None
    unk: str | None = None


@dataclass(frozen=True)
class Tokenizer(ABC):
    """A `tokenizer.model`, read and found whole."""

    path: Path
    kind: ClassVar[Literal["sentencepiece", "tiktoken"]]
    n_special: ClassVar[int]
    """Tokens that come after those of the file."""

    @property
    @abstractmethod
    def n_base(self) -> int:
        """Tokens that the file holds."""

    @property
    def vocab_size(self) -> int:
        """Tokens that a model can emit."""
        return self.n_base + self.n_special

    @property
    def differing(self) -> str | None:
        """A text to which tokenizer.json gives other ids than Meta's code; None: no such text is known."""
        return None

    @abstractmethod
    def holds(self, name: str, number: int | None) -> bool:
        """Whether Meta's code has a token with this name, at this id if one is given."""

    @abstractmethod
    def pipeline(self, options: TokenizerOptions) -> Pipeline:
        """The same tokenizer as the library `tokenizers` has to be told it."""


def sequence(kind: str, *steps: Json) -> Json:
    """Steps one after the other; `kind` is the word the library has for the list, such as ``decoders``."""
    return {"type": "Sequence", kind: list(steps)}


def bos_template(bos: str, bos_id: int) -> Json:
    """The step that puts `bos` in front of a text, and in front of both of a pair."""
    pieces = [
        [{"SpecialToken": {"id": bos, "type_id": side}}, {"Sequence": {"id": text, "type_id": side}}]
        for side, text in enumerate("AB")
    ]
    return {
        "type": "TemplateProcessing",
        "single": pieces[0],
        "pair": [*pieces[0], *pieces[1]],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def bpe(*, unk: str | None, fuse_unk: bool, byte_fallback: bool, ignore_merges: bool) -> Json:
    """Options of the BPE model.

    `ignore_merges` (a pre-token that is a word is taken whole) is left out when false, as by the versions
    before 0.19 that wrote the Hub's Llama 2 files; absent means false to all later ones.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        **({"ignore_merges": True} if ignore_merges else {}),
    }
