"""Reads the pickle inside a ``.pth`` without running it: a small machine that can build tensor records only.

A pickle is a program.  This machine knows the instructions `torch.save` uses, answers every class name from
the table below and imports nothing; what is not in the table is refused by name and never constructed.  It
is written out here, instead of subclassing `pickle.Unpickler`, because that one allocates gigabytes for a
memo index of the file's choosing and cannot say where in the file it stopped.

Instructions: Python's ``pickletools``; the tensor records: ``torch/_utils.py: _rebuild_tensor_v2`` and
``torch/serialization.py: persistent_id``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llama_convert.dtypes import BY_NAME, BY_STORAGE, Dtype
from llama_convert.formats.files import quoted

_MAX_DEPTH = 64  # open MARKs; torch.save nests five deep


class PickleRefusedError(Exception):
    """The pickle asks for something a checkpoint of tensors has no use for.  Carries a stable `code`."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True)
class StorageRecord:
    """A run of ``numel`` elements, kept in the archive entry ``data/<key>``."""

    key: str
    dtype: Dtype | None  # None: untyped bytes, each tensor says its own
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A strided view into a storage; offset, shape and strides count elements."""

    storage: StorageRecord
    dtype: Dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A class or function the pickle names, as the inert name itself."""

    name: str


class _Mark:
    """The MARK that opens a tuple, list or dict on the stack."""


class Pairs(list[tuple[Any, Any]]):
    """A dict as the pickle wrote it: pairs in order, doubled keys still visible."""


def _integers(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(item) is int for item in value):
        raise PickleRefusedError("INPUT_PICKLE", f"a tensor's {what} is not a tuple of integers")
    if any(item < 0 for item in value):
        raise PickleRefusedError("INPUT_VIEW", f"a tensor's {what} holds a negative number: {min(value)}")
    if any(item >= 1 << 63 for item in value):
        raise PickleRefusedError("INPUT_VIEW", f"a tensor's {what} holds a number of 64 bits or more")
    return value


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Dtype | None) -> TensorRecord:
    if not isinstance(storage, StorageRecord) or type(offset) is not int:
        raise PickleRefusedError("INPUT_PICKLE", "a tensor is built from something that is not a storage")
    if dtype is None:
        raise PickleRefusedError("INPUT_PICKLE", "a tensor on an untyped storage does not say its dtype")
    shape, strides = _integers(shape, "shape"), _integers(strides, "strides")
    if len(shape) != len(strides):
        raise PickleRefusedError("INPUT_VIEW", f"a tensor has {len(shape)} axes but {len(strides)} strides")
    (offset,) = _integers((offset,), "offset")
    return TensorRecord(storage, dtype, offset, shape, strides)


def _rebuild_tensor_v2(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> TensorRecord:
    return _rebuild(storage, offset, shape, strides, getattr(storage, "dtype", None))


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_rest: Any
) -> TensorRecord:
    named = BY_NAME.get(dtype.name.removeprefix("torch.")) if isinstance(dtype, _Global) else None
    return _rebuild(storage, offset, shape, strides, named)


def _rebuild_parameter(tensor: Any, *_rest: Any) -> TensorRecord:
    if not isinstance(tensor, TensorRecord):
        raise PickleRefusedError("INPUT_PICKLE", "a Parameter wraps something that is not a tensor")
    return tensor


def _ordered_dict() -> Pairs:
    """An empty one; that is how Python 3 begins it.  Copies of a list could be asked for without end."""
    return Pairs()


_CALLABLES: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "collections.OrderedDict": _ordered_dict,
}
_STORAGES = {f"torch.{storage}": dtype for storage, dtype in BY_STORAGE.items()}
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
_ALLOWED = {*_CALLABLES, *_STORAGES, *_UNTYPED, *(f"torch.{name}" for name in BY_NAME)}
_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._utils._rebuild_nested_tensor": "nested",
}


def _find_global(module: str, name: str) -> _Global:
    qualified = f"{module}.{name}"
    if qualified in _ALLOWED:
        return _Global(qualified)
    if kind := _OTHER_TENSORS.get(qualified):
        raise PickleRefusedError("TENSOR_LAYOUT", f"holds a {kind} tensor; only dense tensors are converted")
    raise PickleRefusedError(
        "INPUT_FOREIGN_OBJECT",
        f"holds an object of {quoted(qualified)}; only tensors are read, and it was not constructed",
    )


def _persistent_storage(reference: Any) -> StorageRecord:
    match reference:
        case ("storage", _Global(name), str(key), str(), int(numel)) if name in _STORAGES or name in _UNTYPED:
            if not key or not key.isascii() or not key.replace("_", "").isalnum():
                raise PickleRefusedError("INPUT_PICKLE", f"storage key {quoted(key)} is not a plain name")
            if numel < 0:
                raise PickleRefusedError("INPUT_VIEW", f"storage {quoted(key)} has {numel} elements")
            return StorageRecord(key, _STORAGES.get(name), numel)
    raise PickleRefusedError("INPUT_PICKLE", "a reference is not one to a tensor's storage")


def read_pickle(data: bytes) -> Any:
    """What the pickle describes, made of tuples, lists, `Pairs`, scalars and `TensorRecord` only.

    Time and memory are proportional to ``len(data)``, whatever it says.

    Raises:
        PickleRefusedError: it is damaged, or asks for anything outside the allow-list.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except PickleRefusedError:
        raise
    except RecursionError:
        raise PickleRefusedError("INPUT_PICKLE", "nested too deeply") from None
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        reason = "ends" if machine.position >= len(data) else "is damaged"
        raise PickleRefusedError(
            "INPUT_PICKLE", f"data.pkl {reason} at byte {machine.position} ({type(error).__name__})"
        ) from None


_INTEGERS = {ord("J"): struct.Struct("<i"), ord("K"): struct.Struct("<B"), ord("M"): struct.Struct("<H")}
_FLOAT = struct.Struct(">d")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")


class _Machine:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        data, handlers = self.data, _HANDLERS
        while True:
            opcode = data[self.position]
            self.position += 1
            if opcode == ord("."):
                break
            handler = handlers.get(opcode)
            if handler is None:
                if not data.startswith(b"\x80"):
                    message = (
                        "data.pkl is of pickle protocol 0 or 1; save the file again with torch.save's default"
                    )
                    raise PickleRefusedError("INPUT_PICKLE", message)
                raise PickleRefusedError(
                    "INPUT_PICKLE",
                    f"data.pkl: unexpected instruction {opcode:#04x} at byte {self.position - 1}",
                )
            handler(self)
        if len(self.stack) != 1 or self.marks:
            raise PickleRefusedError("INPUT_PICKLE", f"data.pkl ends early, at byte {self.position}")
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
            raise PickleRefusedError("INPUT_PICKLE", "nested too deeply")
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
        arguments, function = self.stack.pop(), self.stack.pop()
        if (
            not isinstance(function, _Global)
            or function.name not in _CALLABLES
            or type(arguments) is not tuple
        ):
            raise PickleRefusedError("INPUT_PICKLE", "calls something that does not build a tensor")
        self.stack.append(_CALLABLES[function.name](*arguments))

    def build(self) -> None:
        """Attributes set on an object after it is made: torch keeps `_metadata` on a state dict; dropped."""
        self.stack.pop()
        if not isinstance(self.stack[-1], Pairs):
            raise PickleRefusedError("INPUT_PICKLE", "sets attributes on something that is not a state dict")


def _handlers() -> dict[int, Callable[[_Machine], None]]:
    """One function an instruction, by its byte."""

    def skip(count: int) -> Callable[[_Machine], None]:
        return lambda m: void(m.take(count))

    def void(_: bytes) -> None:
        """Take no notice."""

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
        "c": lambda m: m.stack.append(_find_global(m.line(), m.line())),
        "\x93": lambda m: m.stack.append(_find_global(*reversed([m.stack.pop(), m.stack.pop()]))),
        "Q": lambda m: m.stack.append(_persistent_storage(m.stack.pop())),
        "R": _Machine.reduce,
        "b": _Machine.build,
    }
    table = {ord(opcode): handler for opcode, handler in by_name.items()}
    return table | {opcode: integer(layout) for opcode, layout in _INTEGERS.items()}


_HANDLERS = _handlers()
