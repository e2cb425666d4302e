"""Compares what the reader of PyTorch files finds with what torch loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llama_convert.checkpoints.row_reader import read_rows
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight, matrix_shape
from llama_convert.errors import InputError
from llama_convert.formats.tensors import StoredTensor
from llama_convert.formats.torch_reader import read_torch_file


def read(tensor: StoredTensor) -> torch.Tensor:
    """The tensor's values, read through our own gather."""
    rows, columns = matrix_shape(tensor.shape)
    block = np.empty((rows, columns * tensor.dtype.itemsize), np.uint8)
    weight = StoredWeight(tensor.name, tensor.shape, tensor.dtype, (Piece(0, 0, Slab.of(tensor)),))
    with SourceFiles() as files:
        read_rows(files, weight, 0, rows, block)
    dtype = getattr(torch, tensor.dtype.name)
    return torch.from_numpy(block.reshape(-1)).view(dtype).reshape(tensor.shape)


def as_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def assert_as_torch(path: Path) -> None:
    """Every tensor has the name, shape, strides and bytes that torch loads."""
    expected = torch.load(path, weights_only=True)
    found = read_torch_file(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape), name
        assert found[name].strides == tensor.stride(), name
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert as_bytes(read(found[name])) == as_bytes(tensor), name


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value
