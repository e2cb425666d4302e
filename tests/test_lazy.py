"""Lazily read weights behave as numpy arrays do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llama_convert import LazyWeight, OpenCheckpoint, open_checkpoint
from tests import synthetic
from tests.synthetic import LLAMA3

SHAPE = LLAMA3.but(ranks=2)
NAMES = ["model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.norm.weight"]


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OpenCheckpoint, dict[str, np.ndarray[Any, Any]]]]:
    """A checkpoint, and its weights as numpy arrays: bfloat16 as float32."""
    folder = tmp_path_factory.mktemp("meta")
    shape = SHAPE.but(dtype=request.param)
    state = synthetic.huggingface(shape, synthetic.make(folder, shape))
    widened = {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in state.items()
    }
    with open_checkpoint(folder) as checkpoint:
        yield checkpoint, widened


@pytest.fixture(params=NAMES)
def pair(
    request: pytest.FixtureRequest, opened: tuple[OpenCheckpoint, dict[str, np.ndarray[Any, Any]]]
) -> tuple[LazyWeight, np.ndarray[Any, Any]]:
    return opened[0][request.param], opened[1][request.param]


Pair = tuple[LazyWeight, np.ndarray[Any, Any]]


def test_asarray(pair: Pair) -> None:
    weight, expected = pair
    for found in (np.asarray(weight), np.array(weight), weight.__array__()):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    for dtype in (np.float64, "float16", np.dtype("int32")):
        for found in (np.asarray(weight, dtype=dtype), np.array(weight, dtype), weight.__array__(dtype)):
            assert found.dtype == np.dtype(dtype)
            assert np.array_equal(found, expected.astype(dtype))
    assert np.array_equal(weight + np.float32(1), expected + np.float32(1))
    assert np.array_equal(np.abs(weight), np.abs(expected))


def test_the_copy_argument(pair: Pair) -> None:
    weight, expected = pair
    for copy in (None, True):
        found = weight.__array__(copy=copy)
        assert np.array_equal(found, expected)
        found[...] = 0  # an array of the caller's
    assert np.array_equal(np.asarray(weight), expected)
    with pytest.raises(ValueError, match="without a copy"):
        weight.__array__(copy=False)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="without a copy"):
            np.asarray(weight, copy=False)


def test_torch(pair: Pair) -> None:
    weight, expected = pair
    assert torch.equal(torch.as_tensor(np.asarray(weight)), torch.from_numpy(expected))


def test_sequence(pair: Pair) -> None:
    weight, expected = pair
    assert len(weight) == len(expected)
    assert (weight.ndim, weight.size) == (expected.ndim, expected.size)
    assert bool(weight) is True
    rows = list(weight)
    assert len(rows) == len(expected)
    assert all(np.array_equal(row, other) for row, other in zip(rows, expected, strict=True))
    assert np.array_equal(next(reversed(weight)), expected[-1])  # type: ignore[call-overload]


INDICES: list[Any] = [
    0, -1, -64, np.int64(-2), slice(None), slice(-3, None), slice(5, 2), slice(None, None, -1),
    slice(1, 9, 3), slice(-1000, 1000), ..., (), None, True, False, [0, -1], np.array([3, 1]),
    (slice(2, 4), ...), (-1, ...), (..., 0), (..., slice(-2, None)), (0, None), np.arange(64) % 2 == 0,
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_indices(pair: Pair, index: Any) -> None:
    weight, expected = pair
    found = weight[index]
    assert np.shape(found) == expected[index].shape
    assert np.array_equal(found, expected[index])


@pytest.mark.parametrize("index", [64, -65, (0, 0, 0), 1.0, "a"], ids=repr)
def test_no_such_index(pair: Pair, index: Any) -> None:
    weight, expected = pair
    with pytest.raises(IndexError):
        expected[index]
    with pytest.raises(IndexError):
        weight[index]


def test_a_row_of_a_folder_is_all_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterating over a weight does not read all of it for each row."""
    synthetic.make(tmp_path, SHAPE)
    with open_checkpoint(tmp_path, layout="meta") as checkpoint:
        weight = checkpoint["layers.0.feed_forward.w1.weight"]
        sizes: list[int] = []
        read = type(checkpoint._files).read_into
        monkeypatch.setattr(
            type(checkpoint._files),
            "read_into",
            lambda self, file, offset, target: (sizes.append(len(target)), read(self, file, offset, target)),
        )
        list(weight)
    assert sum(sizes) == weight.nbytes
