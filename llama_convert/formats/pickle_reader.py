"""Restricted reader of the pickles in PyTorch files: it builds only records and imports nothing.

A pickle is a program.  This reader implements the opcodes that `torch.save` uses and resolves class names
only from an allow-list; any other class is refused and never constructed.  It does not subclass
`pickle.Unpickler`, which allocates gigabytes for a large memo index and does not report the byte of an error.

Opcodes: ``pickletools`` of Python.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llama_convert.formats.pickle_objects import (
    TENSORS,
    AllowList,
    Global,
    Pairs,
    PickleRefusedError,
    Record,
    StorageRecord,
    find_global,
    storage_record,
)
from llama_convert.text import quoted

MAX_PICKLE = 2 << 20
"""Limit for the pickles of a file in bytes; 405B has 0.4 MB in each file.

A byte of a pickle can need 100 bytes of memory."""
_MAX_DEPTH = 64
"""Open MARKs; torch.save nests five."""
_MAX_ARGUMENTS = 16
"""Arguments of a function; `_rebuild_tensor_v3` has eight.  A longer tuple could be used many times."""


class PickleTruncatedError(PickleRefusedError):
    """The data ends before the pickle does."""


@dataclass(frozen=True)
class Unpickled:
    """Content of a pickle."""

    value: Any
    """Made only of tuples, lists, `Pairs`, scalars, and what the allow-list builds."""
    storages: dict[str, StorageRecord]
    """Every storage that the pickle references, by key."""
    end: int
    """Offset of the byte after the pickle."""


def read_pickle(data: bytes, start: int = 0, allowed: AllowList = TENSORS) -> Unpickled:
    """The content of the pickle that begins at ``data[start]``.

    Time and memory are proportional to ``len(data)``.

    Raises:
        PickleTruncatedError: the data ends before the pickle does.
        PickleRefusedError: the pickle is damaged, or contains something outside the allow-list.
    """
    machine = _Machine(data, start, allowed)
    try:
        value = machine.run()
    except PickleRefusedError:
        raise
    except RecursionError:
        raise PickleRefusedError("INPUT_PICKLE", "The pickle is nested too deeply.") from None
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        is_truncated = machine.position >= len(data)
        refused = PickleTruncatedError if is_truncated else PickleRefusedError
        reason = "truncated" if is_truncated else "damaged"
        position = min(machine.position, len(data))
        message = f"The pickle is {reason} at byte {position} ({type(error).__name__})."
        raise refused("INPUT_PICKLE", message) from None
    storages = {key: record for key, record in machine.storages.items() if record.view is None}
    return Unpickled(value, storages, machine.position)


_INTEGERS = {ord("J"): struct.Struct("<i"), ord("K"): struct.Struct("<B"), ord("M"): struct.Struct("<H")}
_FLOAT = struct.Struct(">d")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")


class _Machine:
    def __init__(self, data: bytes, start: int, allowed: AllowList) -> None:
        self.data = data
        self.allowed = allowed
        self.start = start
        self.position = start
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRecord] = {}
        """Storages by key, and views by the key of the view."""

    def run(self) -> Any:
        data, handlers = self.data, _HANDLERS
        while True:
            opcode = data[self.position]
            self.position += 1
            if opcode == ord("."):
                break
            handler = handlers.get(opcode)
            if handler is None:
                if not data.startswith(b"\x80", self.start):
                    message = "The file has pickle protocol 0 or 1. Save it with the default of torch.save."
                    raise PickleRefusedError("INPUT_PICKLE", message)
                message = f"Unexpected opcode {opcode:#04x} at byte {self.position - 1} of the pickle."
                raise PickleRefusedError("INPUT_PICKLE", message)
            handler(self)
        if len(self.stack) != 1 or self.marks:
            raise PickleRefusedError("INPUT_PICKLE", f"The pickle ends early at byte {self.position}.")
        return self.stack[0]

    def take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise IndexError
        return self.data[start : self.position]

    def line(self) -> str:
        end = self.data.index(b"\n", self.position)
        return self.take(end + 1 - self.position)[:-1].decode("utf-8")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self) -> None:
        if len(self.marks) >= _MAX_DEPTH:
            raise PickleRefusedError("INPUT_PICKLE", "The pickle is nested too deeply.")
        self.marks.append(len(self.stack))

    def pop_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Pairs) or len(items) % 2:
            raise ValueError
        target.extend(zip(items[::2], items[1::2], strict=True))

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError
        target.extend(items)

    def reduce(self) -> None:
        if isinstance(self.stack[-2], Global) and self.stack[-2].name in self.allowed.records:
            self.new_object()
            return
        arguments, function = self.stack.pop(), self.stack.pop()
        if (
            not isinstance(function, Global)
            or function.name not in self.allowed.callables
            or type(arguments) is not tuple
            or len(arguments) > _MAX_ARGUMENTS
        ):
            message = "The pickle calls a function that does not build a tensor."
            raise PickleRefusedError("INPUT_PICKLE", message)
        self.stack.append(self.allowed.callables[function.name](*arguments))

    def new_object(self) -> None:
        _arguments, created = self.stack.pop(), self.stack.pop()
        if not isinstance(created, Global) or created.name not in self.allowed.records:
            message = "The pickle creates an object that is not a tensor."
            raise PickleRefusedError("INPUT_PICKLE", message)
        self.stack.append(Record(created.name))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(find_global(self.allowed, module, name))

    def persistent(self) -> None:
        record, view_key = storage_record(self.stack.pop())
        self.register(record.key, replace(record, view=None))
        if view_key is not None:
            self.register(view_key, record)
        self.stack.append(record)

    def register(self, key: str, record: StorageRecord) -> None:
        """Refuse a storage with two sizes or dtypes: readers could differ in which one they use."""
        known = self.storages.setdefault(key, record)
        if known != record and (known.numel or record.numel):
            raise PickleRefusedError("TENSOR_INVALID", f"Storage {quoted(key)} has two sizes or dtypes.")

    def build(self) -> None:
        """Keep the attributes of a record; discard those of a state dict: torch sets `_metadata`."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], Pairs):
            message = "The pickle sets attributes of an object that is not a state dict."
            raise PickleRefusedError("INPUT_PICKLE", message)


def _handlers() -> dict[int, Callable[[_Machine], None]]:
    """The handler of each opcode."""

    def skip(count: int) -> Callable[[_Machine], None]:
        return lambda m: void(m.take(count))

    def void(_: bytes) -> None:
        """Discard the argument."""

    def push(value: Any) -> Callable[[_Machine], None]:
        return lambda m: m.stack.append(value)

    def integer(layout: struct.Struct) -> Callable[[_Machine], None]:
        return lambda m: m.stack.append(layout.unpack(m.take(layout.size))[0])

    def text(length: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
        return lambda m: m.stack.append(m.take(length(m)).decode("utf-8"))

    def uint8(m: _Machine) -> int:
        return m.take(1)[0]

    def uint32(m: _Machine) -> int:
        return int(_UINT32.unpack(m.take(4))[0])

    def uint64(m: _Machine) -> int:
        return int(_UINT64.unpack(m.take(8))[0])

    def put(index: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
        return lambda m: m.memo.__setitem__(index(m), m.stack[-1])

    def get(index: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
        return lambda m: m.stack.append(m.memo[index(m)])

    def small_tuple(count: int) -> Callable[[_Machine], None]:
        return lambda m: m.pop_tuple(count)

    def pop_pair(m: _Machine) -> list[Any]:
        value, key = m.stack.pop(), m.stack.pop()
        return [key, value]

    by_name: dict[str, Callable[[_Machine], None]] = {
        "\x80": skip(1),  # PROTO
        "\x95": skip(8),  # FRAME
        "(": _Machine.mark,
        "N": push(None),
        "\x88": push(True),
        "\x89": push(False),
        "\x8a": lambda m: m.stack.append(int.from_bytes(m.take(uint8(m)), "little", signed=True)),  # LONG1
        "G": lambda m: m.stack.append(_FLOAT.unpack(m.take(8))[0]),
        "X": text(uint32),
        "\x8c": text(uint8),
        "\x8d": text(uint64),
        ")": lambda m: m.stack.append(()),
        "\x85": small_tuple(1),
        "\x86": small_tuple(2),
        "\x87": small_tuple(3),
        "t": lambda m: m.stack.append(tuple(m.since_mark())),
        "]": lambda m: m.stack.append([]),
        "}": lambda m: m.stack.append(Pairs()),
        "l": lambda m: m.stack.append(m.since_mark()),
        "a": lambda m: m.append_items([m.stack.pop()]),
        "e": lambda m: m.append_items(m.since_mark()),
        "s": lambda m: m.set_items(pop_pair(m)),
        "u": lambda m: m.set_items(m.since_mark()),
        "q": put(uint8),
        "r": put(uint32),
        "\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),  # MEMOIZE
        "h": get(uint8),
        "j": get(uint32),
        "c": lambda m: m.stack.append(find_global(m.allowed, m.line(), m.line())),
        "\x93": _Machine.stack_global,
        "Q": _Machine.persistent,
        "R": _Machine.reduce,
        "\x81": _Machine.new_object,
        "b": _Machine.build,
    }
    table = {ord(opcode): handler for opcode, handler in by_name.items()}
    return table | {opcode: integer(layout) for opcode, layout in _INTEGERS.items()}


_HANDLERS = _handlers()
