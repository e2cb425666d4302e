"""What a tokenizer.json says."""

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
from llama_convert.verification.tokenizer.original import original_in

T = TypeVar("T")
Json = dict[str, Any]
_MAX_IDS = 1 << 32
"""The library counts ids in 32 bits."""


@dataclass(frozen=True)
class Written:
    """The parts of a tokenizer.json."""

    path: Path
    vocab: dict[str, int]
    added: dict[str, Json]
    """The added tokens by their names."""
    options: Json
    """Of the BPE model."""
    merges: list[tuple[str, str]]
    """Best first."""
    limits: list[str]
    """Those set on the length of texts."""

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Every token's id by its name; what is said of an added token counts."""
        return self.vocab | {name: token["id"] for name, token in self.added.items()}

    def load(self) -> Tokenizer:
        """Open the file with the library that transformers opens it with, without limits.

        Raises:
            InputError: the library refuses it.
        """
        library = attempt(lambda: Tokenizer.from_buffer(read_small(self.path, MAX_TOKENIZER_JSON)))
        if library is None:
            raise InputError("TOKENIZER_UNREADABLE", "the library `tokenizers` refuses it", file=self.path)
        library.no_truncation()
        library.no_padding()
        return library


def attempt(call: Callable[[], T]) -> T | None:
    """What the library answers, or None where it fails: it raises no type of its own, and may panic."""
    try:
        return call()
    except MemoryError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise


def read_written(path: Path) -> Written:
    """Read a tokenizer.json of the kind that all Llamas have.

    Raises:
        InputError: there is none, or it is none.
    """
    try:
        content = parse_json(read_small(path, MAX_TOKENIZER_JSON), max_lists=MAX_LISTS_OF_TOKENIZER)
    except InputError as error:
        if error.code != "INPUT_NOT_FOUND":
            raise InputError("TOKENIZER_UNREADABLE", error.message, file=path) from None
        other = original_in(path.parent)
        message = "there is no tokenizer.json" + (f", only {other.name}" if other else "")
        raise InputError("TOKENIZER_MISSING", message, file=path) from None
    except JsonError as error:
        raise InputError("TOKENIZER_UNREADABLE", str(error), file=path, hint=error.hint) from None
    try:
        model = content["model"]
        written = Written(
            path=path,
            vocab=model.pop("vocab"),
            added={token["content"]: token for token in content["added_tokens"]},
            merges=list(_pairs(model.pop("merges"))),
            options=model,
            limits=[name for name in ("truncation", "padding") if content.get(name) is not None],
        )
        if _is_bpe(written):
            return written
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise InputError("TOKENIZER_FORM", "is not a BPE tokenizer with a vocabulary and merges", file=path)


def _is_bpe(written: Written) -> bool:
    names = {type(name) for name in chain(written.ids, chain.from_iterable(written.merges))}
    numbers = written.ids.values()
    is_integer = {type(number) for number in numbers} == {int}
    is_numbered = is_integer and min(numbers) >= 0 and max(numbers) < _MAX_IDS
    return written.options.get("type", "BPE") == "BPE" and names == {str} and is_numbered


def _pairs(merges: list[Any]) -> Iterator[tuple[str, str]]:
    """There are two spellings: ``"a b"``, and from `tokenizers` 0.20 on ``["a", "b"]``."""
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right
