"""Values read from JSON as the types that wrote them: what is not exactly such a value is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints


def from_json(kind: Any, value: Any) -> Any:
    """A value of a type, from the JSON that `dataclasses.asdict` gives of it.

    Args:
        kind: int, float, str, bool, a tuple, a `Mapping` whose keys are strings, a union of these, or a
            dataclass with such fields.
        value: what the JSON text holds.

    Raises:
        ValueError: it is no such value.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (int, str, bool, NoneType) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float):
        return value
    if origin in (Union, UnionType):
        return _first(arguments, value)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return tuple(from_json(kind, item) for kind, item in zip(kinds, value, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return {name: from_json(arguments[1], item) for name, item in value.items()}
    if (
        is_dataclass(kind)
        and isinstance(value, dict)
        and value.keys() == {each.name for each in fields(kind)}
    ):
        hints, make = get_type_hints(kind), cast(type[Any], kind)
        return make(**{name: from_json(hints[name], item) for name, item in value.items()})
    raise ValueError(f"{value!r:.60} is no {kind}")


def _first(kinds: tuple[Any, ...], value: Any) -> Any:
    """The value as the first of several types that it can be."""
    for kind in kinds:
        try:
            return from_json(kind, value)
        except ValueError:
            continue
    raise ValueError(f"{value!r:.60} is none of {kinds}")
