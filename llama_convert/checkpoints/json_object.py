"""A JSON file that a checkpoint is described by, read strictly: no value is believed before it is checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.files import other_kind, quoted, read_small

MAX_LAYERS = 10_000
MAX_WIDTH = 1 << 24
MAX_SETTINGS = 1 << 20
"""Bytes of a file of hyper-parameters."""
_MAX_DEPTH = 100
_MOST_BRACKETS = 20_000
"""Each costs far more to parse than its byte."""
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


def shown(value: Any) -> str:
    """A value of a JSON file for messages: a word or number cut short, or that it is a list or an object."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"{value!r:.40}"


def read_json_object(file: Path, kind: str, *, belongs: str, max_bytes: int = MAX_SETTINGS) -> JsonObject:
    """The JSON object in ``file``.

    Args:
        file: what to read.
        kind: begins the codes of errors, as in ``PARAMS_MISSING``.
        belongs: said of a file that is missing.
        max_bytes: more than any such file has.

    Raises:
        InputError: missing, too large, not JSON, or no object.
    """

    def refuse(code: str, message: str, hint: str | None = None) -> InputError:
        return InputError(f"{kind}_{code}", message, file=file, hint=hint)

    try:
        text = read_small(file, max_bytes)
    except InputError as error:
        if error.code == "INPUT_NOT_FOUND":
            raise refuse("MISSING", error.message, belongs) from None
        raise
    if other := other_kind(text[:100]):
        raise refuse("JSON", f"{other[0]}, not JSON", other[1])

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in items:
            if key in result:
                raise refuse(
                    "JSON", f"{json.dumps(key[:60])} appears twice ({shown(result[key])} and {shown(value)})"
                )
            result[key] = value
        return result

    if text.count(b"[") + text.count(b"{") > _MOST_BRACKETS:
        raise refuse("JSON", "JSON nested deeply, or of more lists than any settings or weight_map")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except UnicodeDecodeError:
        raise refuse("JSON", "not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise refuse("JSON", f"not valid JSON at {where}: {error.msg}", "download it again") from None
    except (RecursionError, ValueError):
        raise refuse("JSON", "not valid JSON: nested too deeply, or a number too long") from None
    if _nested_deeper(content, _MAX_DEPTH):
        raise refuse("JSON", "not valid JSON: nested too deeply")
    if not isinstance(content, dict):
        raise refuse("JSON", f"expected a JSON object, found a {type(content).__name__}")
    return JsonObject(file, kind, content)


def _nested_deeper(content: Any, most: int) -> bool:
    """Whether lists and objects stand in each other more than so many times."""
    level = [content]
    for _ in range(most):
        within = [value for value in level if isinstance(value, list | dict)]
        level = [v for value in within for v in (value.values() if isinstance(value, dict) else value)]
    return bool(level)


def to_json(content: dict[str, Any], *, sort_keys: bool = True) -> bytes:
    """JSON as transformers writes its configs."""
    return (json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n").encode()
