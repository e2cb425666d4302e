"""The table of weights is total and invertible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.rope import half_split_to_interleaved, interleaved_to_half_split
from llama_convert.llama.weights import LLAMA, model_weights, parse_meta_name
from tests import synthetic

CONFIG = LlamaConfig(64, 12, 8, 4, 8, 96, 80, 1e-5, 1e4, None, 4096, False)


def test_total_and_invertible() -> None:
    weights = list(model_weights(CONFIG))
    assert len(weights) == 9 * CONFIG.n_layers + 3
    for names in ([w.meta_name for w in weights], [w.huggingface_name for w in weights]):
        assert len(set(names)) == len(weights)
    assert [parse_meta_name(weight.meta_name) for weight in weights] == weights


def test_every_name_and_shape_as_an_independent_hand_writes_them() -> None:
    shape = synthetic.Shape(n_layers=12, n_kv_heads=4)
    meta = synthetic.weights(shape)
    huggingface = synthetic.huggingface(shape, meta)
    assert {w.meta_name: w.shape(CONFIG) for w in model_weights(CONFIG)} == {
        name: tuple(weight.shape) for name, weight in meta.items()
    }
    assert {w.huggingface_name: w.shape(CONFIG) for w in model_weights(CONFIG)} == {
        name: tuple(weight.shape) for name, weight in huggingface.items()
    }


@pytest.mark.parametrize(
    "name",
    ["", "norm", "norm.weight ", "layers.1.attention.wq", "layers.01.attention.wq.weight",
     "layers.-1.attention.wq.weight", "layers.x.attention.wq.weight", "layers.1xattention.wq.weight",
     "rope.freqs", "layers.1.attention.wq.bias", "model.norm.weight"],
)  # fmt: skip
def test_no_other_name_is_a_weight(name: str) -> None:
    assert parse_meta_name(name) is None


def test_only_queries_and_keys_are_rotated() -> None:
    assert [kind.meta.split(".")[-2] for kind in LLAMA if kind.permuted] == ["wq", "wk"]


@given(heads=st.integers(1, 5), half=st.integers(1, 40), width=st.integers(1, 9))
def test_row_orders_invert_each_other(heads: int, half: int, width: int) -> None:
    head_dim = 2 * half
    rows = np.arange(heads * head_dim * width, dtype=np.uint32).astype(np.uint8).reshape(-1, width)
    forward, back = interleaved_to_half_split(head_dim), half_split_to_interleaved(head_dim)
    assert np.array_equal(back(forward(rows)), rows)
    assert np.array_equal(forward(back(rows)), rows)


@given(half=st.integers(1, 60))
def test_row_order_by_its_definition(half: int) -> None:
    """Half-split row j is interleaved row 2j, and row j + half is 2j + 1."""
    rows = np.arange(2 * half, dtype=np.uint8)[:, None]
    reordered = interleaved_to_half_split(2 * half)(rows)[:, 0]
    assert [int(row) for row in reordered] == [*range(0, 2 * half, 2), *range(1, 2 * half, 2)]
