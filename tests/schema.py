"""The schema of the JSON output, and validation against it with no other fields allowed."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from llama_convert.json_output import schema_text


@cache
def schema() -> dict[str, Any]:
    """The published schema."""
    content: dict[str, Any] = json.loads(schema_text())
    return content


def definition(name: str) -> dict[str, Any]:
    """One of its definitions."""
    found: dict[str, Any] = schema()["$defs"][name]
    return found


def closed(part: Any, *, is_branch: bool = False) -> Any:
    """The schema without unknown fields: those of `allOf` are joined first."""
    if isinstance(part, list):
        return [closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    result = {
        key: {name: closed(each, is_branch=key == "$defs") for name, each in value.items()}
        if key in ("properties", "$defs")
        else [closed(each, is_branch=key == "allOf") for each in value]
        if key in ("allOf", "anyOf", "oneOf")
        else closed(value)
        for key, value in part.items()
    }
    if not is_branch and {"$ref", "properties"} & set(part):
        result["unevaluatedProperties"] = False
    return result


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(closed(schema()))


def check_output(content: Any) -> None:
    """Fail unless the content is an output as the schema describes it, and has no other fields."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(content))
    assert error is None, f"{error.json_path}: {error.message[:600]}"


def type_of(value: Any) -> str | None:
    """The type of a JSON value, with that of its items; None for null."""
    if value is None:
        return None
    if isinstance(value, list):
        items = {type_of(each) for each in value} - {None}
        return f"array of {' or '.join(sorted(map(str, items)))}" if items else "array"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object"}
    return names[type(value)]
