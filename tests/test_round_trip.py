"""There and back again: what leaves Meta's layout for Hugging Face's and returns is the same, bit by bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_convert.checkpoints.params import read_params
from llama_convert.conversion.convert import convert, shard
from llama_convert.conversion.options import ConvertOptions
from llama_convert.verification.options import VerifyOptions
from llama_convert.verification.report import Check
from llama_convert.verification.verify import verify
from tests import synthetic
from tests.synthetic import LLAMA2, LLAMA3, Shape, assert_ranks
from tests.test_convert import FIXTURES

ALL_PASS = {level.value: "pass" for level in Check}
each_fixture = pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small products are quickest so, and two test processes do not wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def back(shape: Shape, **options: int) -> ConvertOptions:
    """What it takes to have the ranks of a shape again."""
    return ConvertOptions(to="meta", mp=shape.ranks, embedding_axis=shape.embedding_cut, **options)


def there_and_back(folder: Path, shape: Shape) -> Path:
    convert(folder / "meta", folder / "hf", ConvertOptions(max_shard_size="30KB"))
    convert(folder / "hf", folder / "back", back(shape))
    return folder / "back"


# Weights.

MODELS = {
    "Llama 2": LLAMA2,
    "Llama 2 70B": LLAMA2.but(n_kv_heads=4),
    "Llama 3.1": LLAMA3,
    "Llama 3.2": LLAMA3.but(tied=True),
    "tied Llama 2": LLAMA2.but(tied=True),
}


def cut_into(shape: Shape, ranks: int) -> Shape:
    return shape.but(ranks=ranks, kv_repeats=max(1, ranks // shape.n_kv_heads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("model", MODELS)
def test_from_meta_and_back(tmp_path: Path, model: str, ranks: int, axis: int, dtype: torch.dtype) -> None:
    shape = cut_into(MODELS[model], ranks).but(embedding_cut=axis, dtype=dtype)
    synthetic.make(tmp_path / "meta", shape)
    result = there_and_back(tmp_path, shape)
    assert_ranks(synthetic.read(result), synthetic.read(tmp_path / "meta"))
    ours, theirs = (read_params(tmp_path / name / "params.json") for name in ("back", "meta"))
    assert (ours.n_kv_heads or ours.n_heads) == shape.n_kv_heads * shape.kv_repeats
    for value in ("dim", "n_layers", "n_heads", "norm_eps", "use_scaled_rope"):
        assert getattr(ours, value) == getattr(theirs, value)
    assert ours.ffn_dim == shape.ffn_dim
    assert ours.vocab_size == shape.vocab_size


@each_fixture
def test_fixtures_return(tmp_path: Path, fixture: Path) -> None:
    """With every file that Meta's folder has, the tokenizer and its numbers included."""
    ranks = synthetic.read(fixture)
    for rank in ranks:
        rank.pop("rope.freqs", None)  # a constant that no code reads
    shutil.copytree(fixture, tmp_path / "meta")
    result = there_and_back(tmp_path, Shape(ranks=len(ranks), embedding_cut=int("llama2" in fixture.name)))
    assert_ranks(synthetic.read(result), ranks)
    assert (result / "tokenizer.model").read_bytes() == (fixture / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("name", ["llama3.1-mp2", "llama3.2-tied"])
def test_params_return_as_they_were(tmp_path: Path, name: str) -> None:
    fixture = next(path for path in FIXTURES if path.name == name)
    shutil.copytree(fixture, tmp_path / "meta")
    result = there_and_back(tmp_path, Shape(ranks=len(synthetic.read(fixture)), embedding_cut=0))
    ours, theirs = (read_params(folder / "params.json") for folder in (result, fixture))
    assert ours.ffn_dim == theirs.ffn_dim  # of the many pairs of numbers that give it, ours may be another
    for params in (ours, theirs):
        params.raw.pop("multiple_of")
        params.raw.pop("ffn_dim_multiplier", None)
    assert list(ours.raw.items()) == list(theirs.raw.items())


@each_fixture
def test_from_hugging_face_and_back(tmp_path: Path, fixture: Path) -> None:
    """The whole folder is the same again, not its weights alone."""
    convert(fixture, tmp_path / "hf", ConvertOptions(llama_version=None))
    convert(tmp_path / "hf", tmp_path / "meta", ConvertOptions(to="meta", mp=4))
    convert(tmp_path / "meta", tmp_path / "again")
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    for name in names - {"llama-convert.json", "README.md"}:  # which tell what each was made from
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=synthetic.shapes_in_ranks(needless_copies=False),
    seed=st.integers(0, 99),
    block_size=st.integers(1, 5000),
    workers=st.integers(1, 5),
    sharded=st.integers(100, 90000),
)
def test_any_shape_returns(
    shape: Shape,
    seed: int,
    block_size: int,
    workers: int,
    sharded: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    state = synthetic.make(folder / "meta", shape, seed)
    convert(folder / "meta", folder / "hf", ConvertOptions(max_shard_size=str(sharded)))
    convert(folder / "hf", folder / "back", back(shape, block_size=block_size, workers=workers))
    assert_ranks(synthetic.read(folder / "back"), synthetic.cut(shape, state))
    convert(folder / "back", folder / "again", ConvertOptions(max_shard_size=str(sharded)))
    one, other = (json.loads((folder / name / "config.json").read_text()) for name in ("hf", "again"))
    assert one == other


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_cast_on_the_way_back(tmp_path: Path, dtype: str) -> None:
    shape = LLAMA3.but(ranks=2)
    state = synthetic.weights(shape)
    synthetic.write_huggingface(tmp_path / "hf", shape, state)
    convert(tmp_path / "hf", tmp_path / "meta", ConvertOptions(to="meta", mp=2, dtype=dtype))
    target = {"fp16": torch.float16, "fp32": torch.float32}[dtype]
    cast = {name: weight.to(target) for name, weight in state.items()}
    assert_ranks(synthetic.read(tmp_path / "meta"), synthetic.cut(shape, cast))


def test_weights_of_several_dtypes_keep_theirs(tmp_path: Path) -> None:
    shape = LLAMA3.but(ranks=2)
    state = synthetic.weights(shape)
    state |= {name: weight.float() for name, weight in state.items() if "norm" in name}
    synthetic.write_huggingface(tmp_path / "hf", shape, state)
    convert(tmp_path / "hf", tmp_path / "meta", ConvertOptions(to="meta", mp=2))
    assert_ranks(synthetic.read(tmp_path / "meta"), synthetic.cut(shape, state))


# Verification finds nothing, whichever way the checkpoint went.


def assert_verified(result: Path, source: Path) -> None:
    report = verify(result, source, VerifyOptions(device="cpu"))
    statuses = {level.check.value: level.status.value for level in report.checks}
    findings = [finding for level in report.checks for finding in level.findings]
    assert (statuses, findings) == (ALL_PASS, [])


@each_fixture
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_output_verifies(tmp_path: Path, fixture: Path, ranks: int) -> None:
    hf, meta = tmp_path / "hf", tmp_path / "meta"
    convert(fixture, hf)
    shard(fixture, tmp_path / "cut", mp=ranks)
    convert(hf, meta, ConvertOptions(to="meta", mp=ranks))
    shard(hf, tmp_path / "smaller", max_shard_size="100KB")
    assert_verified(tmp_path / "cut", fixture)
    assert_verified(meta, hf)
    if ranks == 2:
        assert_verified(meta, fixture)
        assert_verified(hf, meta)
        assert_verified(tmp_path / "smaller", hf)
        assert_verified(tmp_path / "smaller", fixture)
