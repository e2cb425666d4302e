"""Opens a checkpoint as a mapping of names to weights, which are read when they are indexed.

The mapping is the same for every format and number of ranks: whole weights, with the names and the row order
of the requested format.
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

from llama_convert.checkpoints.row_reader import Bytes, as_float32, rows_of
from llama_convert.checkpoints.source import Checkpoint, find_checkpoint, open_source
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


@dataclass(frozen=True, repr=False)
class LazyWeight:
    """A weight that is not read until it is indexed; then only the rows that are needed are read.

    It implements numpy's array protocol, so that ``numpy.asarray(weight)`` reads it.

    Example:
        >>> weight = open_checkpoint("Llama-2-7B")["model.embed_tokens.weight"]
        >>> print(weight)  # doctest: +ELLIPSIS
        LazyWeight(model.embed_tokens.weight, [..., ...], bfloat16)
        >>> weight[:2, :4].shape
        (2, 4)
    """

    name: str
    """Name of the weight in the requested format."""
    shape: tuple[int, ...]
    """Shape of the whole weight, with all ranks joined."""
    dtype: Dtype
    """The stored dtype."""
    _files: SourceFiles
    _stored: StoredWeight
    _reorder: RowTranspose | None

    def __repr__(self) -> str:
        return f"LazyWeight({self.name}, {list(self.shape)}, {self.dtype.name})"

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight, as stored."""
        return self._stored.nbytes

    def numpy(self, rows: slice = slice(None)) -> npt.NDArray[Any]:
        """Read rows as a numpy array.

        Args:
            rows: slice of the first dimension, in steps of 1.

        Returns:
            Array of shape ``[rows, ...]``, in the stored dtype. bfloat16, which numpy lacks, becomes float32.

        Raises:
            InputError: the file is damaged, or the replicas of several ranks differ.
            OutputError: the file cannot be read.
        """
        block, shape = self._read(rows)
        if self.dtype == BFLOAT16:
            return as_float32(block, self.dtype).reshape(shape)
        return block.reshape(-1).view(np.dtype(self.dtype.name)).reshape(shape)

    def torch(self, rows: slice = slice(None)) -> torch.Tensor:
        """Read rows as a torch tensor.

        Args:
            rows: slice of the first dimension, in steps of 1.

        Returns:
            Tensor of shape ``[rows, ...]``, in the stored dtype, on the CPU.

        Raises:
            InputError: the file is damaged, or the replicas of several ranks differ.
            OutputError: the file cannot be read.
        """
        import torch

        block, shape = self._read(rows)
        dtype: torch.dtype = getattr(torch, self.dtype.name)
        return torch.from_numpy(block.reshape(-1)).view(dtype).reshape(shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Read the whole weight, for ``numpy.asarray``.

        Args:
            dtype: convert to this dtype; by default that of `numpy`, which is float32 for bfloat16.
            copy: False is refused.

        Raises:
            ValueError: ``copy`` is False: the weight is in a file, not in memory.
            InputError: as `numpy`.
            OutputError: as `numpy`.
        """
        if copy is False:
            raise ValueError(f"{self.name} is in a file: it cannot become an array without a copy.")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Iterate over the first dimension, reading one row at a time."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """Index as numpy does, reading only the rows that the first index spans."""
        first, *rest = index if isinstance(index, tuple) and index else (index,)
        if isinstance(first, slice) and first.step in (None, 1):
            index = (slice(None), *rest)
            return self.numpy(first)[index]  # type: ignore[no-any-return]
        if isinstance(first, int | np.integer) and not isinstance(first, bool):
            row, index = range(self.shape[0])[first], (0, *rest)
            return self.numpy(slice(row, row + 1))[index]  # type: ignore[no-any-return]
        return self.numpy()[index]  # type: ignore[no-any-return]

    def _read(self, rows: slice) -> tuple[Bytes, tuple[int, ...]]:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise IndexError("Rows can be read in steps of 1 only.")
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
    """A mapping of names to `LazyWeight`, in the order of the model. Use it as a context manager."""

    def __init__(self, checkpoint: Checkpoint, layout: CheckpointFormat) -> None:
        self._checkpoint = checkpoint
        self._files = SourceFiles()
        reorder = rope_permutation(checkpoint.row_order, layout, checkpoint.config.head_dim)
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
        """Hyper-parameters of the model."""
        return self._checkpoint.config

    @property
    def dtype(self) -> Dtype:
        """Dtype of most of the weights."""
        return self._checkpoint.dtype

    @property
    def layout(self) -> CheckpointFormat:
        """The layout of the files: ``meta`` or ``huggingface``."""
        return self._checkpoint.format

    @property
    def warnings(self) -> tuple[str, ...]:
        """Contradictions and unknown settings that were found in the files."""
        return tuple(map(str, self._checkpoint.warnings))

    @property
    def release(self) -> str:
        """The detected release, for example ``Llama 3.1 8B``."""
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


def open_checkpoint(
    path: Path | str, *, layout: CheckpointFormat = "huggingface", config_from: Path | str | None = None
) -> OpenCheckpoint:
    """Open a checkpoint of any format. Its headers are read and checked.

    Args:
        path: the checkpoint's folder or file.
        layout: ``huggingface`` or ``meta``: the format whose names and order of Q/K rows the mapping has.
        config_from: the folder with ``config.json`` or ``params.json``, if it is another one.

    Raises:
        InputError: the folder holds no checkpoint, or a file is missing, damaged or contradicts another.

    Example:
        >>> with open_checkpoint("Llama-2-7B") as checkpoint:
        ...     q = checkpoint["model.layers.0.self_attn.q_proj.weight"][:8]
        >>> len(q)
        8
    """
    settings = Path(config_from).expanduser() if config_from is not None else None
    found = find_checkpoint(Path(path).expanduser(), config_from=settings)
    return OpenCheckpoint(open_source(found), layout)
