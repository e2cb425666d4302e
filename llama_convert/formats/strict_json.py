"""Strict and bounded parser for JSON from untrusted files.

Python's parser accepts duplicate names, fails with three kinds of exceptions, and can need 100 times the
memory of the text.  The package reads all JSON with `parse_json`.
"""

from __future__ import annotations

import json
from typing import Any

from llama_convert.formats.file_kinds import DOWNLOAD_AGAIN, JSON, kind_of
from llama_convert.text import quoted

MAX_LISTS = 20_000
"""Lists and objects in settings, an index or a manifest; parsing one needs much more memory than its text."""
MAX_LISTS_OF_TOKENIZER = 1 << 20
"""Lists and objects in a tokenizer.json: one for each merge; Llama 3 has 280,147, Llama 4 439,802."""
_MAX_DEPTH = 100
_MAX_DIGITS = 40
"""Digits of an integer; transformers writes 31 for "no length limit".  A longer one is read as a float,
possibly infinity, because Python refuses to print or convert integers of thousands of digits."""


class JsonError(ValueError):
    """Invalid JSON, or JSON beyond the limits.

    Args:
        message: what is wrong, as a sentence.
        hint: what to do.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def parse_json(data: bytes, *, max_lists: int = MAX_LISTS) -> Any:
    """The value of a JSON text.

    Args:
        data: UTF-8 text; the caller limits its size.
        max_lists: limit for the number of lists and objects.

    Raises:
        JsonError: not JSON, a duplicate name in an object, nested too deeply, or too many lists.
    """
    kind = kind_of(data[:100])
    if kind not in (None, JSON):
        raise JsonError(f"Not JSON but {kind.name}.", kind.hint)
    if data.count(b"[") + data.count(b"{") > max_lists:
        raise JsonError(f"JSON is nested too deeply or has more than {max_lists:,} lists and objects.")
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
    except UnicodeDecodeError:
        raise JsonError("Not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        message = f"Invalid JSON at line {error.lineno} column {error.colno} ({error.msg})."
        raise JsonError(message, DOWNLOAD_AGAIN) from None
    except RecursionError:
        raise JsonError("JSON is nested too deeply.") from None
    if _is_deeper_than(content, _MAX_DEPTH):
        raise JsonError("JSON is nested too deeply.")
    return content


def shown(value: Any) -> str:
    """A JSON value for messages: a truncated string or number, "a list" or "an object"."""
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
                raise JsonError(f"Duplicate key {json.dumps(key[:60])} {both}.")
            seen[key] = value
    return result


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _is_deeper_than(content: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than ``depth`` levels."""
    level = [content]
    for _ in range(depth):
        nested = [value for value in level if isinstance(value, list | dict)]
        level = [v for value in nested for v in (value.values() if isinstance(value, dict) else value)]
    return bool(level)
