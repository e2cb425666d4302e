"""Metadata of torch.distributed.checkpoint (DCP): the tensors of a checkpoint, and where their chunks are.

A DCP folder has one or more files ``__{rank}_{n}.distcp`` per rank and ``.metadata``, which is saved last: a
pickle of the dataclasses in ``torch/distributed/checkpoint/metadata.py``.  They are read as records by an
allow-list; nothing is imported or constructed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llama_convert.dtypes import BY_NAME
from llama_convert.errors import InputError
from llama_convert.formats.files import is_file_name, read_small
from llama_convert.formats.pickle_objects import AllowList, Pairs, PickleRefusedError, Record, global_name
from llama_convert.formats.pickle_reader import read_pickle
from llama_convert.text import is_printable_name, quoted

METADATA = ".metadata"
_MAX_METADATA = 128 << 20
"""Bytes.  A chunk takes 180 bytes and its name: 32 MB for 70B with the state of AdamW (three tensors for each
of 723 weights) on 64 ranks, 100 MB for 405B on 128.  Reading needs 20 times that in memory."""
_MIN_CHUNK = 32
"""Bytes of a chunk in ``.metadata``; more chunks than that are one chunk used repeatedly."""
_MAX_DIMS = 5
"""The weight of a convolution over videos has five."""
_MAX_PATH = 64
_MAX_ATTRIBUTES = 64
_MAX_NUMBER = 1 << 62

_CHECKPOINT = "torch.distributed.checkpoint.metadata."
_SHARDED_TENSOR = "torch.distributed._shard.sharded_tensor.metadata."  # before torch 2.3
_STORAGE_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
_TENSOR, _OBJECT = f"{_CHECKPOINT}TensorStorageMetadata", f"{_CHECKPOINT}BytesStorageMetadata"
_CHUNK, _INDEX = f"{_CHECKPOINT}ChunkStorageMetadata", f"{_CHECKPOINT}MetadataIndex"
_PROPERTIES = (f"{_CHECKPOINT}TensorProperties", f"{_SHARDED_TENSOR}TensorProperties")
_UNSUPPORTED_DTYPES = (
    "uint16", "uint32", "uint64", "complex32", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2", "qint8", "quint8", "qint32",
)  # fmt: skip


def _size(sizes: Any) -> Any:
    return sizes


_ALLOWED = AllowList(
    callables={"torch.Size": _size},
    mentioned={f"torch.{name}" for name in (*BY_NAME, *_UNSUPPORTED_DTYPES)},
    records={
        f"{_CHECKPOINT}Metadata",
        f"{_CHECKPOINT}StorageMeta",
        f"{_CHECKPOINT}_MEM_FORMAT_ENCODING",
        _TENSOR,
        _OBJECT,
        _CHUNK,
        _INDEX,
        *_PROPERTIES,
        "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
        _STORAGE_INFO,
        "torch.serialization._get_layout",
        "builtins.getattr",  # a member of an enum in Python 3.11.0 to 3.11.4
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",  # Python 3.13
        "pathlib._local.WindowsPath",
    },
)


class DcpChunk(NamedTuple):
    """A rectangle of a tensor, stored as a torch archive in a range of a file."""

    offsets: tuple[int, ...]
    """First index in each dimension of the tensor."""
    sizes: tuple[int, ...]
    file: str
    """Name of the file in the folder."""
    start: int
    """Bytes from the start of the file."""
    length: int
    """Bytes of the archive."""
    is_transformed: bool
    """Whether an extension of the writer compressed or encrypted the archive."""


@dataclass(frozen=True)
class DcpTensor:
    """A tensor as declared; whether its chunks tile it is not checked."""

    name: str
    """Its path joined by dots."""
    path: tuple[str | int, ...]
    """Its keys in the nested state dict; in a list, its index."""
    dtype: str
    """Name of the dtype in torch."""
    shape: tuple[int, ...]
    chunks: tuple[DcpChunk, ...]
    """Without chunks that have no elements: more ranks than rows are normal."""


@dataclass(frozen=True)
class DcpMetadata:
    """Content of ``.metadata``."""

    folder: Path
    tensors: dict[str, DcpTensor]
    """By name, in the order of the state dict."""
    objects: dict[str, tuple[str | int, ...]]
    """Paths of pickled objects that are not tensors, for example the step, by name."""

    @property
    def file(self) -> Path:
        """The metadata file."""
        return self.folder / METADATA


def read_dcp(folder: Path) -> DcpMetadata:
    """The metadata of a DCP folder; opens no other file.

    Raises:
        InputError: ``.metadata`` is missing, too large or damaged, or contains what DCP does not write.
        OutputError: a read error.
    """
    file = folder / METADATA
    data = read_small(file, _MAX_METADATA)
    try:
        pickled = read_pickle(data, allowed=_ALLOWED)
        if pickled.end != len(data):
            raise _MalformedError(f"Has {len(data) - pickled.end:,} bytes after the pickle.")
        return _Parser(len(data)).metadata(folder, pickled.value)
    except PickleRefusedError as error:
        raise InputError(error.code, str(error), file=file) from None
    except _MalformedError as error:
        raise InputError("INPUT_DCP", str(error), file=file, tensor=error.tensor) from None


class _MalformedError(Exception):
    """The records are not what DCP writes."""

    def __init__(self, message: str, tensor: str | None = None) -> None:
        self.tensor = tensor
        super().__init__(message)


class _Parser:
    """Interprets the records of a pickle of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self._chunks_left = size // _MIN_CHUNK
        self._file_names: set[str] = set()

    def metadata(self, folder: Path, content: Any) -> DcpMetadata:
        attributes = _attributes(content, f"{_CHECKPOINT}Metadata")
        places = _places(attributes.get("storage_data"))
        paths = _paths(attributes.get("planner_data"))
        tensors: dict[str, DcpTensor] = {}
        objects: dict[str, tuple[str | int, ...]] = {}
        for name, item in _pairs(attributes.get("state_dict_metadata"), "state_dict_metadata"):
            if type(name) is not str or not is_printable_name(name):
                shown = quoted(name) if type(name) is str else f"a {type(name).__name__}"
                raise _MalformedError(f"Invalid name in the state dict: {shown}.")
            if name in tensors or name in objects:
                raise _MalformedError("Duplicate name in the state dict.", name)
            path = paths.get(name, (name,))
            if isinstance(item, Record) and item.class_name == _OBJECT:
                objects[name] = path
                continue
            try:
                tensors[name] = self._tensor(name, path, _attributes(item, _TENSOR), places)
            except _MalformedError as error:
                raise _MalformedError(str(error), name) from None
        return DcpMetadata(folder, tensors, objects)

    def _tensor(
        self, name: str, path: tuple[str | int, ...], attributes: dict[str, Any], places: _Places
    ) -> DcpTensor:
        dtype, shape = _dtype(attributes.get("properties")), _integers(attributes.get("size"), "shape")
        declared = attributes.get("chunks")
        if type(declared) is not list:
            raise _MalformedError("Its chunks are not a list.")
        self._chunks_left -= len(declared)
        if self._chunks_left < 0:
            raise _MalformedError("Its chunks are used repeatedly.")
        chunks = []
        for each in declared:
            chunk = _attributes(each, _CHUNK)
            offsets = _integers(chunk.get("offsets"), "offsets of a chunk")
            sizes = _integers(chunk.get("sizes"), "sizes of a chunk")
            if not len(offsets) == len(sizes) == len(shape):
                raise _MalformedError("The number of dimensions of a chunk differs from that of the tensor.")
            if 0 in sizes:
                continue
            place = places.get((name, offsets))
            if place is None:
                raise _MalformedError(f"The file of the chunk at {list(offsets)} is not recorded.")
            chunks.append(self._chunk(offsets, sizes, _attributes(place, _STORAGE_INFO)))
        return DcpTensor(name, path, dtype, shape, tuple(chunks))

    def _chunk(self, offsets: tuple[int, ...], sizes: tuple[int, ...], place: dict[str, Any]) -> DcpChunk:
        file = place.get("relative_path")
        if type(file) is not str:
            raise _MalformedError("The file of a chunk has no name.")
        if file not in self._file_names:
            if not is_file_name(file):
                raise _MalformedError(f"The file of a chunk is not in the folder: {quoted(file)}.")
            self._file_names.add(file)
        start, length = _integers((place.get("offset"), place.get("length")), "range of a chunk")
        return DcpChunk(offsets, sizes, file, start, length, bool(place.get("transform_descriptors")))


_Places = dict[tuple[str, tuple[int, ...] | None], Any]
"""For the name of an item and the offsets of a chunk, where it is stored."""


def _attributes(value: Any, class_name: str) -> dict[str, Any]:
    """The attributes of an object of a class: its ``__dict__``, or a pair of that and its slots."""
    if not isinstance(value, Record) or value.class_name != class_name:
        found = value.class_name if isinstance(value, Record) else type(value).__name__
        raise _MalformedError(f"Contains a {found} in place of a {class_name.rpartition('.')[2]}.")
    attributes: dict[str, Any] = {}
    for state in value.state if type(value.state) is tuple else (value.state,):
        if isinstance(state, Pairs) and len(state) <= _MAX_ATTRIBUTES:
            attributes.update((key, attribute) for key, attribute in state if type(key) is str)
    return attributes


def _pairs(value: Any, what: str) -> Pairs:
    if not isinstance(value, Pairs):
        raise _MalformedError(f"{what} is not a dict.")
    return value


def _integers(value: Any, what: str) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > _MAX_DIMS:
        raise _MalformedError(f"The {what} is not a tuple of at most {_MAX_DIMS} integers.")
    if any(type(number) is not int or not 0 <= number < _MAX_NUMBER for number in value):
        raise _MalformedError(f"The {what} has a number that is not an integer from 0 to 2^62.")
    return value


def _places(storage_data: Any) -> _Places:
    places: _Places = {}
    for key, place in _pairs(storage_data, "storage_data"):
        index = _attributes(key, _INDEX)
        name, offsets = index.get("fqn"), index.get("offset")
        if type(name) is not str:
            raise _MalformedError("A key of storage_data has no name.")
        places[name, None if offsets is None else _integers(offsets, "offset of a chunk")] = place
    return places


def _paths(planner_data: Any) -> dict[str, tuple[str | int, ...]]:
    """Keys in the nested state dict by name; empty if the state dict was not flattened."""
    paths: dict[str, tuple[str | int, ...]] = {}
    for name, path in planner_data if isinstance(planner_data, Pairs) else ():
        if type(name) is not str or type(path) is not tuple or len(path) > _MAX_PATH:
            raise _MalformedError("planner_data does not map names to paths.")
        if any(type(key) not in (str, int) for key in path):
            raise _MalformedError("A path in planner_data has a key that is neither text nor an integer.")
        paths[name] = path
    return paths


def _dtype(properties: Any) -> str:
    state = properties.state if isinstance(properties, Record) else None
    if not isinstance(properties, Record) or properties.class_name not in _PROPERTIES:
        raise _MalformedError("It has no properties.")
    name = global_name(state[0]) if type(state) is tuple and state else None
    if name is None:
        raise _MalformedError("It has no dtype.")
    return name.removeprefix("torch.")
