"""Reads a tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small
from llama_convert.formats.strict_json import MAX_LISTS_OF_TOKENIZER, JsonError, parse_json
from llama_convert.verification.tokenizer.tokenizer_model import original_in

T = TypeVar("T")
Json = dict[str, Any]
_MAX_IDS = 1 << 32
"""The library `tokenizers` stores ids in 32 bits."""


@dataclass(frozen=True)
class TokenizerJson:
    """The parts of a tokenizer.json."""

    path: Path
    vocab: dict[str, int]
    added: dict[str, Json]
    """Added tokens by name."""
    options: Json
    """Options of the BPE model."""
    merges: list[tuple[str, str]]
    """In order of priority."""
    limits: list[str]
    """Sections that limit the length of texts."""

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Ids of all tokens by name; the entry of an added token takes precedence."""
        return self.vocab | {name: token["id"] for name, token in self.added.items()}

    def load(self) -> Tokenizer:
        """Open the file with the library `tokenizers`, as transformers does, without limits on texts.

        Raises:
            InputError: the library rejects it.
        """
        library = attempt(lambda: Tokenizer.from_buffer(read_small(self.path, MAX_TOKENIZER_JSON)))
        if library is None:
            raise InputError(
                "TOKENIZER_UNREADABLE", "The library `tokenizers` rejects this file.", file=self.path
            )
        library.no_truncation()
        library.no_padding()
        return library


def attempt(call: Callable[[], T]) -> T | None:
    """The result of a call of the library; None if it fails, with any exception or a panic."""
    try:
        return call()
    except MemoryError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Read the tokenizer.json of a Llama.

    Raises:
        InputError: the file is missing or damaged, or is not a BPE tokenizer.
    """
    try:
        content = parse_json(read_small(path, MAX_TOKENIZER_JSON), max_lists=MAX_LISTS_OF_TOKENIZER)
    except InputError as error:
        if error.code != "INPUT_NOT_FOUND":
            raise InputError("TOKENIZER_UNREADABLE", error.message, file=path) from None
        other = original_in(path.parent)
        message = "There is no tokenizer.json" + (f", only {other.name}." if other else ".")
        raise InputError("TOKENIZER_MISSING", message, file=path) from None
    except JsonError as error:
        raise InputError("TOKENIZER_UNREADABLE", str(error), file=path, hint=error.hint) from None
    try:
        model = content["model"]
        tokenizer = TokenizerJson(
            path=path,
            vocab=model.pop("vocab"),
            added={token["content"]: token for token in content["added_tokens"]},
            merges=list(_pairs(model.pop("merges"))),
            options=model,
            limits=[name for name in ("truncation", "padding") if content.get(name) is not None],
        )
        if _is_bpe(tokenizer):
            return tokenizer
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise InputError("TOKENIZER_UNSUPPORTED", "Not a BPE tokenizer with a vocabulary and merges.", file=path)


def _is_bpe(tokenizer: TokenizerJson) -> bool:
    names = {type(name) for name in chain(tokenizer.ids, chain.from_iterable(tokenizer.merges))}
    numbers = tokenizer.ids.values()
    is_integer = {type(number) for number in numbers} == {int}
    is_numbered = is_integer and min(numbers) >= 0 and max(numbers) < _MAX_IDS
    return tokenizer.options.get("type", "BPE") == "BPE" and names == {str} and is_numbered


def _pairs(merges: list[Any]) -> Iterator[tuple[str, str]]:
    """Merges as pairs, from ``"a b"`` or, as `tokenizers` 0.20 and later write, from ``["a", "b"]``."""
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right
