"""What lies at a path, opened as far as it can be: its tensors, as the files hold them, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama_convert.checkpoints.folders import RANK_FILE
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight, matrix_shape
from llama_convert.checkpoints.suggestions import no_checkpoint_at
from llama_convert.errors import LlamaConvertError
from llama_convert.formats.safetensors import read_safetensors_file
from llama_convert.formats.tensors import StoredTensor, contiguous_strides
from llama_convert.formats.torch_zip import read_torch_file
from llama_convert.llama.weights import LLAMA, RECOMPUTED, Weight, parse_huggingface_name, parse_meta_name
from llama_convert.verification.inputs import Input, open_input

_READERS: dict[str, Callable[[Path], dict[str, StoredTensor]]] = {
    ".pth": read_torch_file,
    ".pt": read_torch_file,
    ".safetensors": read_safetensors_file,
}
_PARSE = {"meta": parse_meta_name, "huggingface": parse_huggingface_name}


@dataclass(frozen=True)
class Entry:
    """One tensor: a whole weight where ranks fit together, else what each file holds of it."""

    stored: StoredWeight
    shape: tuple[int, ...]
    """Of the whole, or of one file's slice."""
    weight: Weight | None
    """None: it is no weight of a Llama."""
    slices: int = 1
    """Files that hold a slice of this shape; `stored` is all of them, one below the other."""

    @property
    def name(self) -> str:
        """What the files call it."""
        return self.stored.name

    @property
    def slabs(self) -> Iterator[Slab]:
        """Where its bytes are, copies and all."""
        return self.stored.slabs

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it lies in."""
        return tuple(dict.fromkeys(slab.file for slab in self.slabs))

    @property
    def recomputed(self) -> bool:
        """Whether it holds constants that every reader computes anew."""
        return self.weight is None and RECOMPUTED.fullmatch(self.name) is not None

    @property
    def numel(self) -> int:
        """Its elements; of slices that are not cut, those of one."""
        cut = self.slices if self.weight and self.weight.kind.cut else 1
        return math.prod(self.shape) * cut


@dataclass(frozen=True)
class Opened:
    """A folder or a file, and its tensors in the order of the model."""

    path: Path
    folder: Path
    """Where its files lie: it, or below it."""
    side: Input
    entries: list[Entry]
    single_file: bool = False
    problems: list[LlamaConvertError] = field(default_factory=list)

    @property
    def layout(self) -> str:
        """``meta`` or ``huggingface``."""
        return self.side.layout


def open_any(path: Path) -> Opened:
    """What lies at a path: a folder in either layout, or one of its files.

    Raises:
        InputError: there is no checkpoint, or the file cannot be read at all.
    """
    if path.is_file():
        return _open_file(path)
    side = open_input(path)
    problems = list(side.problems)
    folder = _folder(side)
    if isinstance(side.checkpoint, MetaCheckpoint):
        entries = [
            Entry(stored, stored.shape, weight) for weight, stored in side.checkpoint.weights.items()
        ] + list(_recomputed(side.checkpoint))
    else:
        entries = _entries(_read_all(weight_files(folder, side.layout)), side.layout)
    if not entries and not any((folder / name).exists() for name in ("params.json", "config.json")):
        raise problems[0]
    return Opened(path, folder, side, entries, problems=problems)


def _open_file(path: Path) -> Opened:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise no_checkpoint_at(path, None)
    layout = "huggingface" if path.suffix == ".safetensors" else "meta"
    entries = _entries([reader(path)], layout)
    return Opened(path, path.parent, Input(path.parent, layout, None), entries, single_file=True)


def _recomputed(checkpoint: MetaCheckpoint) -> Iterable[Entry]:
    """What the rank files hold besides weights; all ranks were found alike."""
    known = {stored.name for stored in checkpoint.weights.values()}
    first = read_torch_file(checkpoint.folder.rank_files[0])
    return [Entry(_whole(t), t.shape, None) for name, t in first.items() if name not in known]


def _folder(side: Input) -> Path:
    """Where a refused checkpoint lies is known from what it was refused for."""
    place = side.problems[0].file if side.checkpoint is None and side.problems else None
    if place is None:
        return side.folder
    return Path(place) if Path(place).is_dir() else Path(place).parent


def weight_files(folder: Path, layout: str) -> list[Path]:
    """The files of a folder that hold tensors."""
    entries = sorted(folder.iterdir())
    if layout == "huggingface":
        return [entry for entry in entries if entry.suffix == ".safetensors"]
    return [entry for entry in entries if RANK_FILE.fullmatch(entry.name)]


def _read_all(files: Iterable[Path]) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of each file that can be read; what is wrong with the others has been found already."""
    for file in files:
        try:
            yield _READERS[file.suffix](file)
        except LlamaConvertError:
            continue


def _entries(tables: Iterable[dict[str, StoredTensor]], layout: str) -> list[Entry]:
    """Tensors of one name, shape and dtype taken together, in the order of the model."""
    alike: dict[object, list[StoredTensor]] = {}
    for table in tables:
        for name, tensor in table.items():
            alike.setdefault((name, tensor.shape, tensor.dtype), []).append(tensor)
    entries = [
        Entry(_stacked(slices), slices[0].shape, _PARSE[layout](slices[0].name), len(slices))
        for slices in alike.values()
    ]
    return sorted(entries, key=_model_order)


def _model_order(entry: Entry) -> tuple[int, int, int, str]:
    if entry.weight is None:
        return 3, 0, 0, entry.name
    place = LLAMA.index(entry.weight.kind)
    section = 1 if entry.weight.layer is not None else 0 if place == 0 else 2
    return section, entry.weight.layer or 0, place, entry.name


def _stacked(slices: Sequence[StoredTensor]) -> StoredWeight:
    first = _whole(slices[0])
    if len(slices) == 1:
        return first
    rows, columns = matrix_shape(first.shape)
    pieces = [Piece(n * rows, 0, _whole(tensor).pieces[0].slab) for n, tensor in enumerate(slices)]
    return StoredWeight(first.name, (len(slices) * rows, columns), first.dtype, tuple(pieces))


def _whole(tensor: StoredTensor) -> StoredWeight:
    """A tensor of any number of axes as a weight; those beyond two are joined, as Llamas have none."""
    if len(tensor.shape) > 2:
        shape = matrix_shape(tensor.shape)
        strides = contiguous_strides(shape)
        tensor = StoredTensor(tensor.name, tensor.dtype, shape, strides, tensor.offset, tensor.storage)
    if not tensor.shape:
        tensor = StoredTensor(tensor.name, tensor.dtype, (1,), (1,), tensor.offset, tensor.storage)
    return StoredWeight(tensor.name, tensor.shape, tensor.dtype, (Piece(0, 0, Slab.of(tensor)),))
