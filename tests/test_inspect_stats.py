"""Figures of tensors against torch's and numpy's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llama_convert.checkpoints import row_reader
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.inspection.describe import inspect
from llama_convert.inspection.opened import open_any
from llama_convert.inspection.stats import Stats, tensor_stats
from tests import large, plant, synthetic
from tests.run import llama_convert, peak_memory
from tests.synthetic import LLAMA2
from tests.test_inspect import SHAPES

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def check(found: Stats, tensor: torch.Tensor) -> None:
    finite = tensor[tensor.isfinite()].double()
    assert found.elements == tensor.numel()
    assert found.nan == int(tensor.isnan().sum())
    assert found.inf == int(tensor.isinf().sum())
    assert found.zeros == int((tensor == 0).sum())
    if not len(finite):
        assert (found.min, found.max, found.mean, found.std, found.histogram) == (None,) * 5
        return
    assert (found.min, found.max) == (float(finite.min()), float(finite.max()))
    assert found.mean == pytest.approx(float(finite.mean()), rel=1e-9, abs=1e-12)
    assert found.std == pytest.approx(float(finite.std(correction=0)), rel=1e-9, abs=1e-12)
    assert found.histogram is not None
    assert sum(found.histogram.counts) == len(finite)
    edges = found.histogram.edges
    assert (edges[0], edges[-1]) == (found.min, found.max)
    if edges[0] < edges[-1]:
        counts = np.histogram(finite.numpy(), bins=np.array(edges))[0]
        assert found.histogram.counts == tuple(counts.tolist())


@pytest.mark.parametrize("name", SHAPES)
def test_a_meta_folder(tmp_path: Path, name: str) -> None:
    state = synthetic.make(tmp_path, SHAPES[name])
    found = {tensor.name: tensor.stats for tensor in inspect(tmp_path, stats=True).tensors}
    assert found.keys() == state.keys()
    for tensor, values in state.items():
        stats = found[tensor]
        assert stats is not None
        check(stats, values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hard_values(tmp_path: Path, dtype: torch.dtype) -> None:
    """NaN, infinities, both zeros, a large offset, one value, none that is finite."""
    noise = torch.randn(300, 70, generator=torch.Generator().manual_seed(0)) * 0.02
    bad = noise.clone()
    bad[3, 4], bad[5, 6], bad[7, 8], bad[9] = float("nan"), float("inf"), float("-inf"), -0.0
    state = {
        "noise": noise,
        "bad": bad,
        "offset": noise + 1000,
        "alike": torch.full((5, 5), 0.25),
        "nothing": torch.full((4,), float("nan")),
        "largest": torch.full((2, 2), 6e4),
    }
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    save_file(state, tmp_path / "x.safetensors")
    for tensor in inspect(tmp_path / "x.safetensors", stats=True).tensors:
        assert tensor.stats is not None
        check(tensor.stats, state[tensor.name])


def test_views_and_integers(tmp_path: Path) -> None:
    wide = torch.randn(64, 128).bfloat16()
    state: dict[str, Any] = {
        "a": wide[:, 64:],
        "b": wide.T,
        "n": torch.arange(-5, 20),
        "empty": torch.ones(0, 3),
    }
    torch.save(state, tmp_path / "x.pth")
    for tensor in inspect(tmp_path / "x.pth", stats=True).tensors:
        assert tensor.stats is not None
        check(tensor.stats, state[tensor.name])


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block_size=st.integers(1, 4000),
    dtype=st.sampled_from(DTYPES[:3]),
    seed=st.integers(0, 1000),
)
def test_block_sizes_do_not_matter(
    rows: int, columns: int, block_size: int, dtype: torch.dtype, seed: int
) -> None:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    values[values > 2] = float("inf")
    with tempfile.TemporaryDirectory() as folder, SourceFiles() as files:
        save_file({"x": values}, Path(folder) / "x.safetensors")
        (entry,) = open_any(Path(folder) / "x.safetensors").entries
        check(tensor_stats(entry.stored, files, block_size), values)


def test_damage_is_found_on_the_way(tmp_path: Path) -> None:
    synthetic.make(tmp_path, LLAMA2)
    file = tmp_path / "consolidated.00.pth"
    (place,) = [e.stored.pieces[0].slab.offset for e in open_any(tmp_path).entries if e.name == "norm.weight"]
    plant.flip_bit(file, place)
    result = inspect(tmp_path, stats=True)
    assert [(f.code, f.tensor) for f in result.findings if not f.is_warning] == [("INPUT_CRC", "norm.weight")]
    assert [tensor.name for tensor in result.tensors if tensor.stats is None] == ["norm.weight"]
    assert llama_convert("inspect", tmp_path, "--stats").exit_code == 1


def test_memory_is_that_of_blocks(tmp_path: Path) -> None:
    large.make(tmp_path, large.SHAPES["3.2-1B"].but(n_layers=1), fill=False)
    assert peak_memory("inspect", tmp_path, "--stats") < 128 << 20


def test_a_long_vector_is_read_in_blocks(tmp_path: Path) -> None:
    """Sizes of a file without a config are not bounded by any model's."""
    values = torch.arange(1000, dtype=torch.float32)
    save_file({"a": values}, tmp_path / "x.safetensors")
    sizes: list[int] = []
    with SourceFiles() as files:
        (entry,) = open_any(tmp_path / "x.safetensors").entries
        check(tensor_stats(entry.stored, files, 64, progress=sizes.append), values)
    assert max(sizes) == 64


@pytest.mark.parametrize("spanned", [1, 24, 1 << 20])
def test_elements_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spanned: int) -> None:
    monkeypatch.setattr(row_reader, "_MAX_SPAN", spanned)
    values = torch.arange(10_000, dtype=torch.float32).as_strided((7, 9), (1000, 111), 3)
    vector = torch.arange(10_000, dtype=torch.float32)[::999]
    torch.save({"a": values, "b": vector, "c": torch.ones(1).expand(33)}, tmp_path / "x.pth")
    with SourceFiles() as files:
        entries = {entry.name: entry.stored for entry in open_any(tmp_path / "x.pth").entries}
        for name, expected in {"a": values, "b": vector, "c": torch.ones(33)}.items():
            check(tensor_stats(entries[name], files), expected)
