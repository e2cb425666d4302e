"""JSON files of a checkpoint, and checks of their values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.files import read_small
from llama_convert.formats.strict_json import MAX_LISTS, JsonError, parse_json, shown

MAX_LAYERS = 10_000
MAX_WIDTH = 1 << 24
MAX_SETTINGS = 1 << 20
"""Bytes of config.json, params.json and similar files."""
_MAX_NUMBER = 1e18


@dataclass(frozen=True)
class JsonObject:
    """A JSON object of a file.  Its methods raise `InputError` for invalid values."""

    file: Path
    kind: str
    """Prefix of error codes, for example ``PARAMS`` for ``PARAMS_VALUE``."""
    content: dict[str, Any]

    def refuse(self, message: str, *, expected: object = None, found: object = None) -> InputError:
        """The error for an invalid value."""
        code = f"{self.kind}_VALUE"
        return InputError(code, message, file=self.file, expected=expected, found=found)

    def integer(self, key: str, maximum: int) -> int:
        """An integer from 1 to ``maximum``.

        Raises:
            InputError: it is missing or invalid.
        """
        value = self.optional_integer(key, maximum)
        if value is None:
            raise self.refuse(f'Missing "{key}".')
        return value

    def optional_integer(self, key: str, maximum: int) -> int | None:
        """As `integer`; None if the key is missing or null."""
        value = self.content.get(key)
        if value is None:
            return None
        if type(value) is not int:
            found = f"{shown(value)} ({type(value).__name__})"
            raise self.refuse(f'"{key}" is not an integer.', expected="an integer", found=found)
        if not 1 <= value <= maximum:
            raise self.refuse(f'"{key}" is out of range.', expected=f"1 to {maximum:,}", found=shown(value))
        return value

    def optional_number(self, key: str) -> float | None:
        """A positive number; None if the key is missing or null."""
        value = self.content.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value < _MAX_NUMBER:
            message = f'"{key}" is not a positive number.'
            raise self.refuse(message, expected="a positive number", found=shown(value))
        return float(value)

    def flag(self, key: str) -> bool:
        """A Boolean; False if the key is missing or null."""
        value = self.content.get(key)
        if value not in (None, True, False):
            message = f'"{key}" is not a Boolean.'
            raise self.refuse(message, expected="true or false", found=shown(value))
        return bool(value)

    def child(self, key: str) -> JsonObject | None:
        """The object at a key; None if the key is missing or null."""
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(f'"{key}" is not an object.', expected="an object", found=shown(value))
        return JsonObject(self.file, self.kind, value)


def read_json_object(
    file: Path,
    kind: str,
    *,
    missing_hint: str | None = None,
    max_bytes: int = MAX_SETTINGS,
    max_lists: int = MAX_LISTS,
) -> JsonObject:
    """Read a file that contains a JSON object.

    Args:
        file: the file.
        kind: prefix of error codes, for example ``PARAMS`` for ``PARAMS_MISSING``.
        missing_hint: hint of the error if the file is missing.
        max_bytes: limit for its size.
        max_lists: limit for its number of lists and objects.

    Raises:
        InputError: the file is missing, too large, not JSON, or not an object.
    """

    def refuse(code: str, message: str, hint: str | None = None) -> InputError:
        return InputError(f"{kind}_{code}", message, file=file, hint=hint)

    try:
        content = parse_json(read_small(file, max_bytes), max_lists=max_lists)
    except InputError as error:
        if error.code == "INPUT_NOT_FOUND":
            raise refuse("MISSING", error.message, missing_hint) from None
        raise
    except JsonError as error:
        raise refuse("JSON", str(error), error.hint) from None
    if not isinstance(content, dict):
        raise refuse("JSON", f"Not a JSON object but a {type(content).__name__}.")
    return JsonObject(file, kind, content)


def to_json(content: dict[str, Any], *, sort_keys: bool = True) -> bytes:
    """JSON formatted like the configs that transformers writes."""
    return (json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n").encode()
