"""Conversions of checkpoints that nobody thought of, and proof that the tests would notice a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.llama import rope
from llama_convert.llama.rope import RowTranspose
from llama_convert.verification.options import VerifyOptions
from llama_convert.verification.report import Check
from llama_convert.verification.verify import verify
from tests import synthetic
from tests.synthetic import Shape
from tests.test_convert import FIXTURES, assert_same, tensors


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=synthetic.shapes_in_ranks(needless_copies=True),
    seed=st.integers(0, 99),
    block_size=st.integers(1, 5000),
    shard=st.integers(100, 9000),
    workers=st.integers(1, 5),
)
def test_bit_exact(
    shape: Shape,
    seed: int,
    block_size: int,
    shard: int,
    workers: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    state = synthetic.make(folder / "meta", shape, seed)
    options = ConvertOptions(block_size=block_size, max_shard_size=str(shard), workers=workers)
    convert(folder / "meta", folder / "out", options)
    assert_same(tensors(folder / "out"), synthetic.huggingface(shape, state))
    config = json.loads((folder / "out/config.json").read_text())
    assert config["num_key_value_heads"] == shape.n_kv_heads


def unpermuted(head_dim: int) -> RowTranspose:
    return RowTranspose(head_dim, 1)


def permuted_backwards(head_dim: int) -> RowTranspose:
    return RowTranspose(2, head_dim // 2)


@pytest.mark.parametrize("fault", [unpermuted, permuted_backwards])
@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_a_wrong_row_order_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixture: Path, fault: Any
) -> None:
    """By the fixtures, which then babble; in the right order they speak."""
    convert(fixture, tmp_path / "right")
    monkeypatch.setitem(rope._PERMUTATIONS, ("meta", "huggingface"), fault)
    convert(fixture, tmp_path / "wrong")
    logits = VerifyOptions((Check.LOGITS,), device="cpu")
    assert verify(tmp_path / "right", None, logits).ok
    assert [finding.code for finding in verify(tmp_path / "wrong", None, logits).checks[0].findings] == [
        "HIGH_PERPLEXITY"
    ]
