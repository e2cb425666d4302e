"""JSON from files that are not trusted: one reader, strict and bounded.

Python's own reader accepts a name twice, fails with three kinds of exception, and can need a hundred times
the memory of its text.  All JSON that the package reads goes through `parse_json`.
"""

from __future__ import annotations

import json
from typing import Any

from llama_convert.formats.files import other_kind, quoted

MOST_LISTS = 20_000
"""Lists and objects in settings, an index or a manifest; parsing one costs far more than its two bytes."""
MOST_LISTS_OF_TOKENIZER = 1 << 20
"""In a tokenizer.json, which may hold a list for each merge: Llama 3's has 280,147, Llama 4's 439,802."""
_MAX_DEPTH = 100
_MAX_DIGITS = 40
"""Of an integer: transformers writes 31 where a tokenizer has no limit of length.  A longer one is read as a
float, possibly infinite: thousands of digits fail later, where they are printed or converted."""


class JsonError(ValueError):
    """Why a text is not JSON, or not JSON that a checkpoint can need; ``hint`` says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def parse_json(data: bytes, *, most_lists: int = MOST_LISTS) -> Any:
    """The value that a JSON text holds.

    Args:
        data: UTF-8 text, whose size is bounded already.
        most_lists: lists and objects that it may hold.

    Raises:
        JsonError: not JSON; a name twice in an object; nested too deeply, or of too many lists.
    """
    if other := other_kind(data[:100]):
        raise JsonError(f"{other[0]}, not JSON", other[1])
    if data.count(b"[") + data.count(b"{") > most_lists:
        few = f"the {most_lists:,} that settings or a weight_map may have"
        raise JsonError(f"JSON nested deeply, or of more lists than {few}")
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
    except UnicodeDecodeError:
        raise JsonError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise JsonError(f"not valid JSON at {where}: {error.msg}", "download it again") from None
    except RecursionError:
        raise JsonError("not valid JSON: nested too deeply") from None
    if _nested_deeper(content, _MAX_DEPTH):
        raise JsonError("not valid JSON: nested too deeply")
    return content


def shown(value: Any) -> str:
    """A JSON value for messages: a string or number cut short, or that it is a list or an object."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"{value!r:.40}"


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(items)
    if len(result) < len(items):
        seen: dict[str, Any] = {}
        for key, value in items:
            if key in seen:
                both = f"({shown(seen[key])} and {shown(value)})"
                raise JsonError(f"{json.dumps(key[:60])} appears twice {both}")
            seen[key] = value
    return result


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _nested_deeper(content: Any, most: int) -> bool:
    """Whether lists and objects are nested more than ``most`` deep."""
    level = [content]
    for _ in range(most):
        within = [value for value in level if isinstance(value, list | dict)]
        level = [v for value in within for v in (value.values() if isinstance(value, dict) else value)]
    return bool(level)
