"""A checkpoint as a mapping of weights that are read when they are asked for.

Whichever layout and however many ranks the files have, the mapping is one: whole weights, by the names and in
the row order of the layout asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llama_convert.checkpoints.checkpoint import Checkpoint
from llama_convert.checkpoints.folders import is_huggingface
from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.meta_folder import find_meta_folder
from llama_convert.checkpoints.row_reader import Bytes, as_float32, rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight
from llama_convert.dtypes import BFLOAT16, Dtype
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.rope import RowTranspose, rope_permutation
from llama_convert.llama.weights import (
    EMBEDDING,
    HEAD,
    CheckpointFormat,
    Weight,
    huggingface_weights,
    model_weights,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LazyWeight:
    """One weight, whole, none of it read yet.  Indexing reads the rows it needs."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    _files: SourceFiles
    _stored: StoredWeight
    _reorder: RowTranspose | None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight."""
        return self._stored.nbytes

    def numpy(self, rows: slice = slice(None)) -> npt.NDArray[Any]:
        """Some of the first axis, as float32 or float16; bfloat16, which numpy lacks, widened to float32.

        Raises:
            InputError: the file is damaged, or ranks' copies differ.
            OutputError: the machine could not read.
        """
        block, shape = self._read(rows)
        if self.dtype == BFLOAT16:
            return as_float32(block, self.dtype).reshape(shape)
        return block.reshape(-1).view(np.dtype(self.dtype.name)).reshape(shape)

    def torch(self, rows: slice = slice(None)) -> torch.Tensor:
        """Some of the first axis, as a tensor of the weight's own dtype.

        Raises:
            InputError: the file is damaged, or ranks' copies differ.
            OutputError: the machine could not read.
        """
        import torch

        block, shape = self._read(rows)
        dtype: torch.dtype = getattr(torch, self.dtype.name)
        return torch.from_numpy(block.reshape(-1)).view(dtype).reshape(shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole weight, as `numpy` returns it; converted to ``dtype`` if that is given.

        Raises:
            ValueError: ``copy`` is False, but the weight is not in memory.
        """
        if copy is False:
            raise ValueError(f"{self.name} is read from a file, so it cannot be an array without a copy")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Along the first axis, as numpy iterates; one row is read at a time."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """As numpy indexes; only the rows that the first index spans are read."""
        first, *rest = index if isinstance(index, tuple) and index else (index,)
        if isinstance(first, slice) and first.step in (None, 1):
            index = (slice(None), *rest)
            return self.numpy(first)[index]  # type: ignore[no-any-return]
        if isinstance(first, int | np.integer) and not isinstance(first, bool):
            place, index = range(self.shape[0])[first], (0, *rest)
            return self.numpy(slice(place, place + 1))[index]  # type: ignore[no-any-return]
        return self.numpy()[index]  # type: ignore[no-any-return]

    def _read(self, rows: slice) -> tuple[Bytes, tuple[int, ...]]:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise IndexError("rows are read in steps of 1")
        stop = max(start, stop)
        itemsize = self.dtype.itemsize
        if len(self.shape) < 2:
            block = rows_of(self._files, self._stored, 0, 1)
            return block[:, start * itemsize : stop * itemsize].copy(), (stop - start,)
        run = self._reorder.run if self._reorder else 1
        first, last = start // run * run, -(-stop // run) * run
        block = rows_of(self._files, self._stored, first, last)
        if self._reorder:
            block = self._reorder(block)
        return np.ascontiguousarray(block[start - first : stop - first]), (stop - start, *self.shape[1:])


class OpenCheckpoint(Mapping[str, LazyWeight]):
    """A checkpoint's weights by name, in the order of the model, and what its headers say."""

    def __init__(self, checkpoint: Checkpoint, layout: CheckpointFormat) -> None:
        self._checkpoint = checkpoint
        self._files = SourceFiles()
        reorder = rope_permutation(checkpoint.format, layout, checkpoint.config.head_dim)
        weights = model_weights if layout == "meta" else huggingface_weights
        self._weights = {
            weight.meta_name if layout == "meta" else weight.huggingface_name: (
                self._stored(weight),
                reorder if weight.kind.permuted else None,
            )
            for weight in weights(checkpoint.config)
        }

    def _stored(self, weight: Weight) -> StoredWeight:
        stored = self._checkpoint.weights
        return stored[weight] if weight in stored or weight.kind != HEAD else stored[Weight(EMBEDDING)]

    @property
    def config(self) -> LlamaConfig:
        """The hyper-parameters."""
        return self._checkpoint.config

    @property
    def dtype(self) -> Dtype:
        """What most of the weights are stored in."""
        return self._checkpoint.dtype

    @property
    def layout(self) -> CheckpointFormat:
        """The layout of the files: ``meta`` or ``huggingface``."""
        return self._checkpoint.format

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was decided although the files contradict each other or say something unknown."""
        return tuple(map(str, self._checkpoint.warnings))

    @property
    def release(self) -> str:
        """The release that the files are taken for, such as ``Llama 3.1 8B``."""
        return self._checkpoint.detected.title

    def __getitem__(self, name: str) -> LazyWeight:
        stored, reorder = self._weights[name]
        return LazyWeight(name, stored.shape, stored.dtype, self._files, stored, reorder)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def close(self) -> None:
        """Close the files."""
        self._files.__exit__()

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: Path | str, *, layout: CheckpointFormat = "huggingface") -> OpenCheckpoint:
    """Open a checkpoint in either layout; its headers are read and checked, its weights when asked for.

    Args:
        path: a folder of Meta's or of Hugging Face's layout.
        layout: whose names, and whose order of rotary rows, the mapping has.

    Raises:
        InputError: there is no checkpoint, or a file is missing, damaged, or at odds with another.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() and is_huggingface(folder):
        return OpenCheckpoint(open_huggingface(folder), layout)
    return OpenCheckpoint(open_meta(find_meta_folder(folder)), layout)
