"""Writes pickles in protocol 2, byte for byte as `pickle.Pickler` does, but of names instead of objects.

The pickler itself imports what it names: for a tensor, torch.
Instructions: Python's ``pickletools``; when each is chosen: CPython's ``Modules/_pickle.c``.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_TUPLES = {1: (b"", pickle.TUPLE1), 2: (b"", pickle.TUPLE2), 3: (b"", pickle.TUPLE3)}
_INTEGERS = ((1 << 8, pickle.BININT1, "<B"), (1 << 16, pickle.BININT2, "<H"), (1 << 31, pickle.BININT, "<i"))
_BATCH = 1000
"""As many items of a dict as the pickler puts on the stack at once."""


@dataclass(frozen=True)
class Global:
    """A class or function, by its name."""

    module: str
    name: str


@dataclass(frozen=True)
class Persistent:
    """An object kept outside the pickle, by what its reader finds it with."""

    identifier: tuple[object, ...]


@dataclass(frozen=True)
class Call:
    """What a function returns, with ``items`` set on it afterwards as on a dict."""

    function: Global
    arguments: tuple[object, ...] = ()
    items: tuple[tuple[str, object], ...] = ()


def write_pickle(value: object) -> bytes:
    """The pickle of a value made of the classes above, tuples, strings, False and integers from 0 on.

    Equal strings are taken to be one object.

    Raises:
        TypeError: it is made of something else.
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
