"""JSON lines with a checksum, and their conversion to typed dataclasses.

Files in the staging folder may be torn by a crash or edited: a line that fails its checksum or does not match
the dataclass exactly is ignored by its reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import xxhash

from llama_convert.formats.strict_json import parse_json


def sealed(content: object) -> bytes:
    """Return a line of JSON, prefixed with the XXH3-64 of its text."""
    text = json.dumps(content, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def unsealed(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the objects of all intact lines. A killed run tears the last line, a lost page any line."""
    for line in content.splitlines():
        checksum, _, text = line.partition(b" ")
        if checksum == xxhash.xxh3_64_hexdigest(text).encode():
            with suppress(ValueError):
                value = parse_json(text)
                if isinstance(value, dict):
                    yield value


def from_json(kind: Any, value: Any) -> Any:
    """Return a value of type ``kind`` from the JSON that `dataclasses.asdict` produces for it.

    Args:
        kind: int, float, str, bool, a tuple, a `Mapping` with string keys, a union of these, or a dataclass
            with such fields.
        value: the parsed JSON.

    Raises:
        ValueError: ``value`` is not exactly such a value.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (int, str, bool, NoneType) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float):
        return value
    if origin in (Union, UnionType):
        return _first_match(arguments, value)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return tuple(from_json(kind, item) for kind, item in zip(kinds, value, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return {name: from_json(arguments[1], item) for name, item in value.items()}
    if (
        is_dataclass(kind)
        and isinstance(value, dict)
        and value.keys() == {field.name for field in fields(kind)}
    ):
        hints, make = get_type_hints(kind), cast(type[Any], kind)
        return make(**{name: from_json(hints[name], item) for name, item in value.items()})
    raise ValueError(f"{value!r:.60} is not of type {kind}")


def _first_match(kinds: tuple[Any, ...], value: Any) -> Any:
    """Return the value as the first of several types that it matches."""
    for kind in kinds:
        try:
            return from_json(kind, value)
        except ValueError:
            continue
    raise ValueError(f"{value!r:.60} is not of any type in {kinds}")
