"""What a pickle may contain: records of tensors and other objects, and the allow-list of the names in it.

Tensor records: ``torch/_utils.py: _rebuild_tensor_v2`` and ``torch/serialization.py: persistent_id``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llama_convert.dtypes import BY_NAME, BY_STORAGE, Dtype
from llama_convert.text import quoted

_MAX_DIMS = 64
"""Dimensions of a tensor, the limit of torch."""
_MAX_KEY = 40
"""Characters of a storage key; torch writes a number of up to 20 digits."""


class PickleRefusedError(Exception):
    """The pickle is damaged or contains something besides tensors.

    Args:
        code: error code, for example ``INPUT_PICKLE``.
        message: what is wrong, as a sentence.
        hint: what to do, if that follows from the class of the object.
    """

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        self.code = code
        self.hint = hint
        super().__init__(message)


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
class Global:
    """The name of a class or function in the pickle, never resolved."""

    name: str


def global_name(value: Any) -> str | None:
    """Qualified name of a class, function or dtype that a pickle only mentions; None for other values."""
    return value.name if isinstance(value, Global) else None


@dataclass(eq=False, slots=True)
class Record:
    """The state of an object of an allowed class; the object is not constructed."""

    class_name: str
    """Qualified name of its class, or of the function that returns it."""
    state: Any = None
    """Argument of ``__setstate__``: usually its attributes as `Pairs`."""


class Pairs(list[tuple[Any, Any]]):
    """A dict as pairs in the order of the pickle, so that duplicate keys can be detected."""


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
    named = BY_NAME.get(dtype.name.removeprefix("torch.")) if isinstance(dtype, Global) else None
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


def find_global(allowed: AllowList, module: Any, name: Any) -> Global:
    """The class or function that a pickle names.

    Raises:
        PickleRefusedError: it is not in the allow-list.
        TypeError: module or name is not a string.
    """
    if type(module) is not str or type(name) is not str:  # formatting shared lists can take exponential time
        raise TypeError
    qualified = f"{module}.{name}"
    if qualified in allowed.callables or qualified in allowed.mentioned or qualified in allowed.records:
        return Global(qualified)
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


def storage_record(reference: Any) -> tuple[StorageRecord, str | None]:
    """The storage of a persistent id, and the key of its view if it is one.

    Raises:
        PickleRefusedError: it is not a storage of a tensor.
    """
    match reference:
        case ("storage", Global(name), str(key), str(), int(numel), *view) if (
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
