"""Writer of pickles of protocol 2 with the same bytes as `pickle.Pickler`, but of names instead of objects.

`pickle.Pickler` imports the classes that it names: torch for a tensor.
Opcodes: ``pickletools`` of Python; their choice: ``Modules/_pickle.c`` of CPython.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_TUPLES = {1: (b"", pickle.TUPLE1), 2: (b"", pickle.TUPLE2), 3: (b"", pickle.TUPLE3)}
_INTEGERS = ((1 << 8, pickle.BININT1, "<B"), (1 << 16, pickle.BININT2, "<H"), (1 << 31, pickle.BININT, "<i"))
_BATCH = 1000
"""Items of a dict in one SETITEMS."""


@dataclass(frozen=True)
class Global:
    """The name of a class or function."""

    module: str
    name: str


@dataclass(frozen=True)
class Persistent:
    """Identifier of an object outside the pickle."""

    identifier: tuple[object, ...]


@dataclass(frozen=True)
class Call:
    """Result of a function call, on which ``items`` are then set like those of a dict."""

    function: Global
    arguments: tuple[object, ...] = ()
    items: tuple[tuple[str, object], ...] = ()


def write_pickle(value: object) -> bytes:
    """The pickle of a value made of the classes above, tuples, strings, False and integers from 0.

    Equal strings are pickled as one object.

    Raises:
        TypeError: the value contains something else.
    """
    return pickle.PROTO + b"\2" + b"".join(_Pickler().save(value)) + pickle.STOP


class _Pickler:
    def __init__(self) -> None:
        self.memo: dict[object, int] = {}

    def remember(self, value: object) -> bytes:
        index = self.memo[value] = len(self.memo)
        return _indexed(pickle.BINPUT, pickle.LONG_BINPUT, index)

    def save(self, value: object) -> Iterator[bytes]:
        match value:
            case str() | Global() if value in self.memo:
                yield _indexed(pickle.BINGET, pickle.LONG_BINGET, self.memo[value])
            case str():
                text = value.encode()
                yield pickle.BINUNICODE + struct.pack("<I", len(text)) + text + self.remember(value)
            case Global(module, name):
                yield pickle.GLOBAL + f"{module}\n{name}\n".encode() + self.remember(value)
            case False:
                yield pickle.NEWFALSE
            case int():
                yield _integer(value)
            case ():
                yield pickle.EMPTY_TUPLE
            case tuple():
                opening, closing = _TUPLES.get(len(value), (pickle.MARK, pickle.TUPLE))
                yield opening
                yield from self.save_all(value)
                yield closing + self.remember(object())
            case Persistent(identifier):
                yield from self.save(identifier)
                yield pickle.BINPERSID
            case Call(function, arguments, items):
                yield from self.save_all((function, arguments))
                yield pickle.REDUCE + self.remember(object())
                for first in range(0, len(items), _BATCH):
                    yield from self.save_items(items[first : first + _BATCH])
            case _:
                raise TypeError(value)

    def save_all(self, values: Iterable[object]) -> Iterator[bytes]:
        for value in values:
            yield from self.save(value)

    def save_items(self, items: tuple[tuple[str, object], ...]) -> Iterator[bytes]:
        opening, closing = (pickle.MARK, pickle.SETITEMS) if len(items) > 1 else (b"", pickle.SETITEM)
        yield opening
        for item in items:
            yield from self.save_all(item)
        yield closing


def _integer(value: int) -> bytes:
    for limit, opcode, layout in _INTEGERS:
        if value < limit:
            return opcode + struct.pack(layout, value)
    size = value.bit_length() // 8 + 1  # leaves room for the sign
    return pickle.LONG1 + bytes([size]) + value.to_bytes(size, "little")


def _indexed(short: bytes, long: bytes, index: int) -> bytes:
    return short + bytes([index]) if index < 256 else long + struct.pack("<I", index)
