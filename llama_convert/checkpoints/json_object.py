"""A JSON file that a checkpoint is described by, read strictly: no value is believed before it is checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.files import read_small
from llama_convert.formats.strict_json import MOST_LISTS, JsonError, parse_json, shown

MAX_LAYERS = 10_000
MAX_WIDTH = 1 << 24
MAX_SETTINGS = 1 << 20
"""Bytes of settings such as config.json and params.json."""
_MAX_NUMBER = 1e18


@dataclass(frozen=True)
class JsonObject:
    """A JSON object and the file it came from; `kind` begins the codes of what is wrong with it."""

    file: Path
    kind: str
    content: dict[str, Any]

    def refuse(self, message: str) -> InputError:
        """The error that a value is not what it must be."""
        return InputError(f"{self.kind}_VALUE", message, file=self.file)

    def integer(self, key: str, most: int) -> int:
        """A whole number from 1 to ``most``.

        Raises:
            InputError: it is missing, or something else.
        """
        value = self.optional_integer(key, most)
        if value is None:
            raise self.refuse(f'"{key}" is missing')
        return value

    def optional_integer(self, key: str, most: int) -> int | None:
        """As `integer`; None where it is missing or null."""
        value = self.content.get(key)
        if value is None:
            return None
        if type(value) is not int:
            raise self.refuse(
                f'"{key}" must be a whole number, found {shown(value)} ({type(value).__name__})'
            )
        if not 1 <= value <= most:
            raise self.refuse(f'"{key}" must be from 1 to {most:,}, found {shown(value)}')
        return value

    def optional_number(self, key: str) -> float | None:
        """A positive number; None where it is missing or null."""
        value = self.content.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value < _MAX_NUMBER:
            raise self.refuse(f'"{key}" must be a positive number, found {shown(value)}')
        return float(value)

    def flag(self, key: str) -> bool:
        """A truth value; False where it is missing or null."""
        value = self.content.get(key)
        if value not in (None, True, False):
            raise self.refuse(f'"{key}" must be true or false, found {shown(value)}')
        return bool(value)

    def below(self, key: str) -> JsonObject | None:
        """The object that stands under a key; None where there is none."""
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(f'"{key}" must be an object, found {shown(value)}')
        return JsonObject(self.file, self.kind, value)


def read_json_object(
    file: Path, kind: str, *, belongs: str, max_bytes: int = MAX_SETTINGS, most_lists: int = MOST_LISTS
) -> JsonObject:
    """The JSON object in ``file``.

    Args:
        file: what to read.
        kind: begins the codes of errors, as in ``PARAMS_MISSING``.
        belongs: said of a file that is missing.
        max_bytes: more than any such file has.
        most_lists: lists and objects that it may hold.

    Raises:
        InputError: missing, too large, not JSON, or no object.
    """

    def refuse(code: str, message: str, hint: str | None = None) -> InputError:
        return InputError(f"{kind}_{code}", message, file=file, hint=hint)

    try:
        content = parse_json(read_small(file, max_bytes), most_lists=most_lists)
    except InputError as error:
        if error.code == "INPUT_NOT_FOUND":
            raise refuse("MISSING", error.message, belongs) from None
        raise
    except JsonError as error:
        raise refuse("JSON", str(error), error.hint) from None
    if not isinstance(content, dict):
        raise refuse("JSON", f"expected a JSON object, found a {type(content).__name__}")
    return JsonObject(file, kind, content)


def to_json(content: dict[str, Any], *, sort_keys: bool = True) -> bytes:
    """JSON as transformers writes its configs."""
    return (json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n").encode()
