"""Tied models whose rank files have no output.weight: the embedding is the output head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama_convert import convert, inspect, open_checkpoint, shard, verify
from llama_convert.conversion.options import ConvertOptions
from llama_convert.verification.options import VerifyOptions, parse_checks
from tests import synthetic
from tests.synthetic import LLAMA3, Shape, State

HEAD, EMBEDDING = "output.weight", "tok_embeddings.weight"
VALUES = VerifyOptions(checks=parse_checks(["structure,values,weights"]))
VALUES_AND_LOGITS = VerifyOptions(checks=parse_checks(["structure,values,weights,logits"]))
SHAPES = {
    "one rank": LLAMA3.but(tied=True),
    "two ranks": LLAMA3.but(tied=True, ranks=2),
    "two ranks, embedding split along dim 1": LLAMA3.but(tied=True, ranks=2, embedding_cut=1),
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture
def headless(shape: Shape, tmp_path: Path) -> Path:
    ranks = synthetic.cut(shape, synthetic.weights(shape))
    for rank in ranks:
        del rank[HEAD]
    return synthetic.write(tmp_path / "headless", shape, ranks)


def state_of(shape: Shape) -> State:
    return synthetic.weights(shape)


def test_convert_and_verify(shape: Shape, headless: Path, tmp_path: Path) -> None:
    convert(headless, tmp_path / "hf")
    expected = synthetic.huggingface(shape, state_of(shape))
    found = load_file(tmp_path / "hf/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert json.loads((tmp_path / "hf/config.json").read_text())["tie_word_embeddings"] is True
    report = verify(tmp_path / "hf", headless, VALUES_AND_LOGITS)
    assert report.ok, report


def test_shard_writes_the_head(shape: Shape, headless: Path, tmp_path: Path) -> None:
    shard(headless, tmp_path / "four", mp=4)
    state = state_of(shape)
    resharded = shape.but(ranks=4)
    synthetic.assert_ranks(synthetic.read(tmp_path / "four"), synthetic.cut(resharded, state))
    report = verify(tmp_path / "four", headless, VALUES)
    assert report.ok, report
    report = verify(headless, tmp_path / "four", VALUES_AND_LOGITS)
    assert report.ok, report


def test_inspect(shape: Shape, headless: Path, tmp_path: Path) -> None:
    synthetic.make(tmp_path / "whole", shape)
    found, whole = inspect(headless, tensors="*", stats=True), inspect(tmp_path / "whole")
    assert found.ok
    assert found.config == whole.config
    assert found.parameters == whole.parameters
    assert HEAD not in [tensor.name for tensor in found.tensors]


def test_open_checkpoint(shape: Shape, headless: Path) -> None:
    state = state_of(shape)
    with open_checkpoint(headless, layout="meta") as checkpoint:
        assert list(checkpoint) == list(state)
        assert torch.equal(checkpoint[HEAD].torch(), state[EMBEDDING])
    with open_checkpoint(headless) as checkpoint:
        assert "lm_head.weight" not in checkpoint


def test_a_vocabulary_that_contradicts_params(shape: Shape, headless: Path, tmp_path: Path) -> None:
    from llama_convert.errors import InputError

    params = json.loads((headless / "params.json").read_text())
    (headless / "params.json").write_text(json.dumps(params | {"vocab_size": 100}))
    with pytest.raises(InputError, match=r"tok_embeddings\.weight.* does not match vocab_size"):
        convert(headless, tmp_path / "out", ConvertOptions())
