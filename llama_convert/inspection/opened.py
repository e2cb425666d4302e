"""Open a folder or a single file: its tensors as stored, and the errors in its headers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama_convert.checkpoints.folders import RANK_FILE
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.source import tensors_at
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight, matrix_shape
from llama_convert.checkpoints.suggestions import no_checkpoint_at
from llama_convert.checkpoints.tensor_names import resolve_tensor_names
from llama_convert.checkpoints.tensor_set import Tensor
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats.file_kinds import HEAD_SIZE, LEGACY_TORCH, SAFETENSORS, TORCH, Kind, kind_of
from llama_convert.formats.files import read_at, reading
from llama_convert.formats.safetensors import read_safetensors_file
from llama_convert.formats.tensors import StoredTensor, contiguous_strides
from llama_convert.formats.torch_reader import read_torch_file
from llama_convert.llama.weights import LLAMA, RECOMPUTED, Weight
from llama_convert.text import natural_key
from llama_convert.verification.inputs import Input, open_input

_READERS: dict[Kind | None, Callable[[Path], Mapping[str, Tensor]]] = {
    TORCH: read_torch_file,
    LEGACY_TORCH: read_torch_file,
    SAFETENSORS: read_safetensors_file,
}


@dataclass(frozen=True)
class Entry:
    """One tensor: the whole weight if the shards fit together, otherwise the slices of equal shape."""

    stored: StoredWeight
    shape: tuple[int, ...]
    """Shape of the whole weight, or of one slice."""
    weight: Weight | None
    """None if the name is not a Llama tensor."""
    slices: int = 1
    """Number of files with a slice of this shape; `stored` concatenates them along dim 0."""

    @property
    def name(self) -> str:
        """Name in the files."""
        return self.stored.name

    @property
    def slabs(self) -> Iterator[Slab]:
        """Location of its bytes, replicas included."""
        return self.stored.slabs

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that contain a part of it."""
        return tuple(dict.fromkeys(slab.file for slab in self.slabs))

    @property
    def recomputed(self) -> bool:
        """Whether it is a constant that loaders recompute, for example ``rope.freqs``."""
        return self.weight is None and RECOMPUTED.fullmatch(self.name) is not None

    @property
    def numel(self) -> int:
        """Number of elements; replicated slices count once."""
        distinct = self.slices if self.weight and self.weight.kind.sharded_dims else 1
        return math.prod(self.shape) * distinct


@dataclass(frozen=True)
class Opened:
    """A folder or a single file with its tensors in model order."""

    path: Path
    folder: Path
    """Folder of the weight files: `path`, a folder below it, or the folder of a single file."""
    input: Input
    weight_files: tuple[Path, ...]
    """Files with the tensors."""
    entries: list[Entry]
    single_file: bool = False
    problems: list[LlamaConvertError] = field(default_factory=list)

    @property
    def format(self) -> str:
        """``meta`` or ``huggingface``."""
        return self.input.format


def open_any(path: Path, config_from: Path | None = None) -> Opened:
    """Open a folder of any format, or one file with tensors.

    Args:
        path: the folder or file.
        config_from: the folder with the settings, if it is another one.

    Raises:
        InputError: there is no checkpoint, or the single file cannot be read.
    """
    if path.is_file() and config_from is None:
        return _open_file(path)
    try:
        found = open_input(path, config_from=config_from)
    except InputError as error:
        if error.code == "CONFIG_MISSING" and config_from is None:
            return _without_settings(path, error)
        raise
    problems = list(found.problems)
    folder = _weights_folder(found)
    checkpoint = found.checkpoint
    if isinstance(checkpoint, MetaCheckpoint):
        files = checkpoint.folder.files
        entries = [Entry(stored, stored.shape, weight) for weight, stored in checkpoint.weights.items()]
        entries += [Entry(_as_weight(each), each.shape, None) for each in checkpoint.constants]
    elif checkpoint:
        files = checkpoint.files
        entries = _entries([checkpoint.tensors], path)
    else:
        files = tuple(weight_files(folder, found.format))
        entries = _entries(_readable_files(files), path)
    if not entries and not any((folder / name).exists() for name in ("params.json", "config.json")):
        raise problems[0]
    return Opened(path, folder, found, files, entries, problems=problems)


def _open_file(path: Path) -> Opened:
    with reading(path) as reader:
        kind = kind_of(read_at(reader, HEAD_SIZE, 0))
    if kind not in _READERS:
        raise no_checkpoint_at(path, None)
    tensors = _READERS[kind](path)
    name_format = resolve_tensor_names(tensors, path).format
    is_huggingface = name_format == "huggingface" or (name_format is None and kind == SAFETENSORS)
    found = Input(path.parent, "huggingface" if is_huggingface else "meta", None)
    return Opened(path, path.parent, found, (path,), _entries([tensors], path), single_file=True)


def _without_settings(folder: Path, error: InputError) -> Opened:
    """The tensors of a folder without ``config.json`` and ``params.json``."""
    tensors = tensors_at(folder)
    if tensors is None:
        raise error
    is_huggingface = resolve_tensor_names(tensors.tensors, folder).format == "huggingface"
    found = Input(folder, "huggingface" if is_huggingface else "meta", None, [error])
    entries = _entries([tensors.tensors], folder)
    return Opened(folder, folder, found, tensors.files, entries, problems=[error])


def _weights_folder(found: Input) -> Path:
    """Folder of the weight files; for a checkpoint that cannot be opened, the folder that its error names."""
    place = found.problems[0].file if found.checkpoint is None and found.problems else None
    if place is None:
        return found.folder
    return Path(place) if Path(place).is_dir() else Path(place).parent


def weight_files(folder: Path, checkpoint_format: str) -> list[Path]:
    """Files of a folder that contain tensors by their names, in natural order."""
    entries = sorted(folder.iterdir(), key=lambda entry: natural_key(entry.name))
    if checkpoint_format == "huggingface":
        return [entry for entry in entries if entry.suffix == ".safetensors"]
    return [entry for entry in entries if RANK_FILE.fullmatch(entry.name)]


def _readable_files(files: Iterable[Path]) -> Iterator[Mapping[str, Tensor]]:
    """Tensors of each readable file; `open_input` has reported the unreadable ones."""
    for file in files:
        try:
            yield read_safetensors_file(file) if file.suffix == ".safetensors" else read_torch_file(file)
        except LlamaConvertError:
            continue


def _entries(tables: Iterable[Mapping[str, Tensor]], file: Path) -> list[Entry]:
    """One entry per name, shape and dtype, in model order."""
    groups: dict[object, list[Tensor]] = {}
    for table in tables:
        for name, tensor in table.items():
            groups.setdefault((name, tensor.shape, tensor.dtype), []).append(tensor)
    names = dict.fromkeys(slices[0].name for slices in groups.values())
    try:
        weights = resolve_tensor_names(names, file).weights
    except InputError:  # two names of one weight
        weights = {}
    entries = [
        Entry(_stacked(slices), slices[0].shape, weights.get(slices[0].name), len(slices))
        for slices in groups.values()
    ]
    return sorted(entries, key=_model_order)


def _model_order(entry: Entry) -> tuple[int, int, int, list[tuple[int, str]]]:
    """Sort key: embedding, layers, norm and head, then everything else by name."""
    name = natural_key(entry.name)
    if entry.weight is None:
        return 3, 0, 0, name
    place = LLAMA.index(entry.weight.kind)
    section = 1 if entry.weight.layer is not None else 0 if place == 0 else 2
    return section, entry.weight.layer or 0, place, name


def _stacked(slices: Sequence[Tensor]) -> StoredWeight:
    """Slices of equal shape concatenated along dim 0."""
    first = _as_weight(slices[0])
    if len(slices) == 1:
        return first
    rows, columns = matrix_shape(first.shape)
    pieces = [Piece(n * rows, 0, _as_weight(tensor).pieces[0].slab) for n, tensor in enumerate(slices)]
    return StoredWeight(first.name, (len(slices) * rows, columns), first.dtype, tuple(pieces))


def _as_weight(tensor: Tensor) -> StoredWeight:
    """A tensor of any rank as a vector or matrix; dims after the first are flattened."""
    if isinstance(tensor, StoredWeight):
        return tensor
    if len(tensor.shape) > 2:
        shape = matrix_shape(tensor.shape)
        strides = contiguous_strides(shape)
        tensor = StoredTensor(tensor.name, tensor.dtype, shape, strides, tensor.offset, tensor.storage)
    if not tensor.shape:
        tensor = StoredTensor(tensor.name, tensor.dtype, (1,), (1,), tensor.offset, tensor.storage)
    return StoredWeight(tensor.name, tensor.shape, tensor.dtype, (Piece(0, 0, Slab.of(tensor)),))
