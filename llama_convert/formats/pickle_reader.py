"""Restricted reader of the pickles in PyTorch files: it builds only records and imports nothing.

A pickle is a program.  This reader implements the opcodes that `torch.save` uses and resolves class names
only from an allow-list; any other class is refused and never constructed.  It does not subclass
`pickle.Unpickler`, which allocates gigabytes for a large memo index and does not report the byte of an error.

Opcodes: ``pickletools`` of Python.  Tensor records: ``torch/_utils.py: _rebuild_tensor_v2`` and
``torch/serialization.py: persistent_id``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llama_convert.dtypes import BY_NAME, BY_STORAGE, Dtype
from llama_convert.text import quoted

MAX_PICKLE = 2 << 20
"""Limit for the pickles of a file in bytes; 405B has 0.4 MB in each file.

A byte of a pickle can need 100 bytes of memory."""
_MAX_DEPTH = 64
"""Open MARKs; torch.save nests five."""
_MAX_ARGUMENTS = 16
"""Arguments of a function; `_rebuild_tensor_v3` has eight.  A longer tuple could be used many times."""
_MAX_DIMS = 64
"""Dimensions of a tensor, the limit of torch."""
_MAX_KEY = 40
"""Characters of a storage key; torch writes a number of up to 20 digits."""


class PickleRefusedError(Exception):
    """The pickle is damaged or contains something besides tensors.

    Args:
        code: error code, for example ``INPUT_PICKLE``.
        message: what is wrong, as a sentence.
        hint: what to do, if the class of the object tells.
    """

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        self.code = code
        self.hint = hint
        super().__init__(message)


class PickleTruncatedError(PickleRefusedError):
    """The data ends before the pickle does."""


@dataclass(frozen=True)
class StorageRecord:
    """A storage of ``numel`` elements, or a view of one."""

    key: str
    """Name of the storage in the file; views of a storage have its key."""
    dtype: Dtype | None
    """None: untyped bytes; each tensor has its own dtype."""
    numel: int
    """Elements of the whole storage."""
    view: tuple[int, int] | None = None
    """First element and number of elements of a view, as old versions of torch wrote; None: no view."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        return self.numel * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True)
class TensorRecord:
    """A strided view of a storage; offset, shape and strides are in elements."""

    storage: StorageRecord
    dtype: Dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """The name of a class or function in the pickle, never resolved."""

    name: str


def global_name(value: Any) -> str | None:
    """Qualified name of a class, function or dtype that a pickle only mentions; None for other values."""
    return value.name if isinstance(value, _Global) else None


class _Mark:
    """The MARK that opens a tuple, list or dict on the stack."""


@dataclass(eq=False, slots=True)
class Record:
    """The state of an object of an allowed class; the object is not constructed."""

    class_name: str
    """Qualified name of its class, or of the function that returns it."""
    state: Any = None
    """Argument of ``__setstate__``: usually its attributes as `Pairs`."""


class Pairs(list[tuple[Any, Any]]):
    """A dict as pairs in the order of the pickle, so that duplicate keys can be detected."""


@dataclass(frozen=True)
class Unpickled:
    """Content of a pickle."""

    value: Any
    """Made only of tuples, lists, `Pairs`, scalars, and what the allow-list builds."""
    storages: dict[str, StorageRecord]
    """Every storage that the pickle references, by key."""
    end: int
    """Offset of the byte after the pickle."""


def _integers(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MAX_DIMS or any(type(item) is not int for item in value):
        message = f"The {what} of a tensor is not a tuple of at most {_MAX_DIMS} integers."
        raise PickleRefusedError("INPUT_PICKLE", message)
    if any(item < 0 for item in value):
        raise PickleRefusedError(
            "TENSOR_INVALID", f"Negative number in the {what} of a tensor: {min(value)}."
        )
    if any(item >= 1 << 63 for item in value):
        raise PickleRefusedError("TENSOR_INVALID", f"Number of 64 bits or more in the {what} of a tensor.")
    return value


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Dtype | None) -> TensorRecord:
    if not isinstance(storage, StorageRecord) or type(offset) is not int:
        raise PickleRefusedError("INPUT_PICKLE", "A tensor is not built from a storage.")
    if dtype is None:
        raise PickleRefusedError("INPUT_PICKLE", "A tensor of an untyped storage has no dtype.")
    shape, strides = _integers(shape, "shape"), _integers(strides, "strides")
    if len(shape) != len(strides):
        message = f"A tensor has {len(shape)} dimensions, but {len(strides)} strides."
        raise PickleRefusedError("TENSOR_INVALID", message)
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
        raise PickleRefusedError("INPUT_PICKLE", "A Parameter does not contain a tensor.")
    return tensor


def _ordered_dict() -> Pairs:
    """An empty OrderedDict, as Python 3 creates it; copying a list is refused: it could be repeated."""
    return Pairs()


def _first_argument(argument: Any, *_rest: Any) -> Any:
    """A plain value instead of an object that training checkpoints contain next to the state dict."""
    return argument


_CALLABLES: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _first_argument,
    "torch.device": _first_argument,
    "builtins.set": _first_argument,
    "__builtin__.set": _first_argument,
}
_STORAGES = {f"torch.{storage}": dtype for storage, dtype in BY_STORAGE.items()}
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._utils._rebuild_nested_tensor": "nested",
}
_SUBCLASSES = ("torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_wrapper_subclass")
"""Functions that build an object of a subclass of Tensor, which the pickle names next."""
_MERGE_RANKS = (
    "Merge the shards of all ranks first, with a tool of the program that saved them. "
    "For verl: python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUT"
)
_ZERO_TO_FP32 = "Run zero_to_fp32.py, which DeepSpeed saves next to its folders global_step*."
_UNQUANTIZED = "Convert the unquantized release."
_OTHER_OBJECTS: tuple[tuple[str, str, str], ...] = (
    ("torch.distributed.tensor.", "shards of distributed tensors", _MERGE_RANKS),
    ("torch.distributed._tensor.", "shards of distributed tensors", _MERGE_RANKS),  # before torch 2.5
    ("torch.distributed._shard.", "shards of distributed tensors", _MERGE_RANKS),
    ("deepspeed.", "objects of DeepSpeed", _ZERO_TO_FP32),
    ("megatron.", "objects of Megatron", "Export it in Hugging Face format with Megatron Bridge first."),
    ("torchao.", "quantized tensors", _UNQUANTIZED),
    ("bitsandbytes.", "quantized tensors", _UNQUANTIZED),
)
"""Package, what its objects are, and how the weights become dense tensors."""


@dataclass(frozen=True)
class AllowList:
    """Classes and functions that a pickle may name, by qualified name."""

    callables: Mapping[str, Callable[..., Any]]
    """For each that may be called, what is called in its place."""
    mentioned: Collection[str] = ()
    """Those that may only be mentioned, for example dtypes."""
    records: Collection[str] = ()
    """Those whose results are read as `Record`, whatever their arguments."""


TENSORS = AllowList(_CALLABLES, {*_STORAGES, *_UNTYPED, *_SUBCLASSES, *(f"torch.{name}" for name in BY_NAME)})
"""What `torch.save` writes for tensors in dicts and lists."""


def _find_global(allowed: AllowList, module: Any, name: Any) -> _Global:
    if type(module) is not str or type(name) is not str:  # formatting shared lists can take exponential time
        raise TypeError
    qualified = f"{module}.{name}"
    if qualified in allowed.callables or qualified in allowed.mentioned or qualified in allowed.records:
        return _Global(qualified)
    if kind := _OTHER_TENSORS.get(qualified):
        message = f"Contains a {kind} tensor. Only dense tensors are supported."
        raise PickleRefusedError("TENSOR_UNSUPPORTED", message)
    for package, objects, hint in _OTHER_OBJECTS:
        if qualified.startswith(package):
            message = f"Contains {objects} ({quoted(qualified)}). Only dense tensors are supported."
            raise PickleRefusedError("TENSOR_UNSUPPORTED", message, hint)
    raise PickleRefusedError(
        "INPUT_PICKLE_OBJECT",
        f"Contains an object of {quoted(qualified)}, which was not constructed. Only tensors are supported.",
    )


def _storage_record(reference: Any) -> tuple[StorageRecord, str | None]:
    """The storage of a persistent id, and the key of its view if it is one."""
    match reference:
        case ("storage", _Global(name), str(key), str(), int(numel), *view) if (
            name in _STORAGES or name in _UNTYPED
        ):
            _check_key(key)
            if numel < 0:
                raise PickleRefusedError("TENSOR_INVALID", f"Storage {quoted(key)} has {numel} elements.")
            storage = StorageRecord(key, _STORAGES.get(name), numel)
            match view:
                case [] | [None]:
                    return storage, None
                case [(str(view_key), int(start), int(length))]:
                    _check_key(view_key)
                    if not 0 <= start <= start + length <= numel:
                        message = f"A view of storage {quoted(key)} is outside its {numel:,} elements."
                        raise PickleRefusedError("TENSOR_INVALID", message)
                    return replace(storage, view=(start, length)), view_key
    raise PickleRefusedError("INPUT_PICKLE", "A persistent reference is not a storage of a tensor.")


def _check_key(key: str) -> None:
    if not 0 < len(key) <= _MAX_KEY or not key.isascii() or not key.replace("_", "").isalnum():
        raise PickleRefusedError("INPUT_PICKLE", f"Invalid storage key {quoted(key)}.")


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
        if isinstance(self.stack[-2], _Global) and self.stack[-2].name in self.allowed.records:
            self.new_object()
            return
        arguments, function = self.stack.pop(), self.stack.pop()
        if (
            not isinstance(function, _Global)
            or function.name not in self.allowed.callables
            or type(arguments) is not tuple
            or len(arguments) > _MAX_ARGUMENTS
        ):
            message = "The pickle calls a function that does not build a tensor."
            raise PickleRefusedError("INPUT_PICKLE", message)
        self.stack.append(self.allowed.callables[function.name](*arguments))

    def new_object(self) -> None:
        _arguments, created = self.stack.pop(), self.stack.pop()
        if not isinstance(created, _Global) or created.name not in self.allowed.records:
            message = "The pickle creates an object that is not a tensor."
            raise PickleRefusedError("INPUT_PICKLE", message)
        self.stack.append(Record(created.name))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_find_global(self.allowed, module, name))

    def persistent(self) -> None:
        record, view_key = _storage_record(self.stack.pop())
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
        "c": lambda m: m.stack.append(_find_global(m.allowed, m.line(), m.line())),
        "\x93": _Machine.stack_global,
        "Q": _Machine.persistent,
        "R": _Machine.reduce,
        "\x81": _Machine.new_object,
        "b": _Machine.build,
    }
    table = {ord(opcode): handler for opcode, handler in by_name.items()}
    return table | {opcode: integer(layout) for opcode, layout in _INTEGERS.items()}


_HANDLERS = _handlers()
