"""`inspect A B`: what differs, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from llama_convert.inspection.compare import compare
from llama_convert.verification import tensor_pairs
from tests import plant, synthetic
from tests.run import llama_convert
from tests.synthetic import LLAMA2, LLAMA3
from tests.test_inspect import FIXTURES, converted


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_equal_across_layouts(tmp_path: Path, fixture: Path) -> None:
    folder = converted(tmp_path, source=fixture)
    for a, b in ((fixture, folder), (folder, fixture), (folder, folder)):
        comparison = compare(a, b, stats=True)
        assert comparison.same
        assert comparison.ok
        assert comparison.compared in (20, 21, 30)
        assert llama_convert("inspect", a, b).exit_code == 0


def test_ranks_do_not_matter(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "one", LLAMA3)
    synthetic.make(tmp_path / "four", LLAMA3.but(ranks=4))
    assert compare(tmp_path / "one", tmp_path / "four", stats=True).same


def test_one_value(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    other = shutil.copytree(folder, tmp_path / "other")
    plant.rewrite(
        other, lambda state: state.update({plant.q(1): plant.with_value(state[plant.q(1)], 9, 3, 4)})
    )
    assert compare(folder, other).same
    for a in (folder, FIXTURES[1]):
        comparison = compare(a, other, stats=True)
        (value,) = comparison.values
        assert (value.name, value.different) == (plant.q(1), 1)
        assert 8 < value.max_difference < 10
        assert not comparison.config
    assert llama_convert("inspect", folder, other, "--stats").exit_code == 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_measures(tmp_path: Path, dtype: str) -> None:
    """Of values against torch's, in several blocks of which some are equal."""
    folder = converted(tmp_path, "--dtype", dtype)
    other = shutil.copytree(folder, tmp_path / "other")
    name, generator = plant.q(1), torch.Generator().manual_seed(0)
    state = plant.tensors(folder)
    changed = state[name].clone()
    changed[:50] += torch.randn(50, changed.shape[1], generator=generator).to(changed.dtype) * 0.1
    plant.rewrite(other, lambda state: state.update({name: changed}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_pairs, "BLOCK_SIZE", 2048)
        (value,) = compare(folder, other, stats=True).values
    a, b = state[name].double(), changed.double()
    assert value.max_difference == float((a - b).abs().max())
    assert value.mean_difference == pytest.approx(float((a - b).abs().mean()), rel=1e-12)
    assert value.relative_difference == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-12)
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    assert value.cosine_similarity == pytest.approx(float(cosine), rel=1e-12)
    text = llama_convert("inspect", folder, other, "--stats").stdout
    assert f"{float(cosine):.6f}" in text
    assert text.splitlines()[-1] == "The checkpoints differ: values (1)"


def test_no_cosine_with_zero(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    other = shutil.copytree(folder, tmp_path / "other")
    plant.rewrite(other, lambda state: state.update({plant.q(1): torch.zeros_like(state[plant.q(1)])}))
    run = llama_convert("diff", folder, other, "--stats", "--json")
    (value,) = run.json["value_differences"]
    assert (value["cosine_similarity"], value["relative_difference"]) == (None, 1.0)


def test_diff_is_inspect_of_two(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    plant.edit_config(folder, rope_theta=123.0)
    for options in ((), ("-v",), ("--stats",), ("--json",), ("--stats", "--json")):
        diff, inspected = (
            llama_convert(command, FIXTURES[1], folder, *options) for command in ("diff", "inspect")
        )
        assert diff.exit_code == inspected.exit_code == 1
        assert diff.stdout == inspected.stdout
    for arguments in ((), (folder,)):
        run = llama_convert("diff", *arguments)
        assert run.exit_code == 2
        assert "llama-convert diff A B" in run.stderr
    assert llama_convert("diff", folder, folder, "--tensors").exit_code == 2


def test_long_lists_end_in_a_count(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "a", LLAMA2.but(n_layers=2))
    synthetic.make(tmp_path / "b", LLAMA2.but(n_layers=5))
    text = llama_convert("diff", tmp_path / "a", tmp_path / "b").stdout
    assert text.count("only in B  layers.") == 20
    assert "only in B  and 7 more" in text
    assert "more" not in llama_convert("diff", tmp_path / "a", tmp_path / "b", "-v").stdout


def test_nan_is_an_infinite_difference(tmp_path: Path) -> None:
    """And null in JSON, which has neither infinities nor NaN."""
    folder = converted(tmp_path)
    other = shutil.copytree(folder, tmp_path / "other")
    broken = plant.with_value(plant.tensors(folder)[plant.v(0)], float("nan"), 3, 4)
    plant.rewrite(other, lambda state: state.update({plant.v(0): broken}))
    (difference,) = compare(folder, other, stats=True).values
    assert (difference.different, difference.max_difference) == (1, float("inf"))
    run = llama_convert("inspect", folder, other, "--stats", "--json")
    (found,) = json.loads(run.stdout, parse_constant=pytest.fail)["value_differences"]
    assert found["different_elements"] == 1
    assert found["max_difference"] is found["relative_difference"] is None


def test_one_key_of_the_config(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    plant.edit_config(folder, rope_theta=123.0)
    comparison = compare(FIXTURES[1], folder, stats=True)
    assert [(one.name, one.a, one.b) for one in comparison.config] == [("rope_theta", 500000.0, 123.0)]
    assert not comparison.values
    run = llama_convert("inspect", FIXTURES[1], folder, "--json")
    assert run.exit_code == 1
    theta = {"kind": "config", "name": "rope_theta", "a": "500000.0", "b": "123.0"}
    assert run.json["differences"] == [theta]


def test_another_dtype(tmp_path: Path) -> None:
    folder = converted(tmp_path, "--dtype", "fp32")
    comparison = compare(FIXTURES[1], folder, stats=True)
    assert len(comparison.dtypes) == 30
    assert {(one.a, one.b) for one in comparison.dtypes} == {("bfloat16", "float32")}
    assert not comparison.values
    assert not comparison.ok
    text = llama_convert("diff", FIXTURES[1], folder).stdout
    assert re.search(r"^dtype +30 tensors +bf16 +fp32$", text, re.MULTILINE)
    assert llama_convert("diff", FIXTURES[1], folder, "-v").stdout.count("bf16") == 30


def test_names_shapes_and_tokenizer(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "a", LLAMA2)
    synthetic.make(tmp_path / "b", LLAMA2.but(n_layers=3, vocab_size=96))
    shutil.copy(FIXTURES[0] / "tokenizer.model", tmp_path / "b")
    comparison = compare(tmp_path / "a", tmp_path / "b")
    assert len(comparison.only_in_b) == 9
    assert comparison.only_in_a == ()
    assert [one.name for one in comparison.shapes] == ["tok_embeddings.weight", "output.weight"]
    assert [one.name for one in comparison.tokenizer] == ["file"]
    assert {one.name for one in comparison.config} == {"n_layers", "vocab_size"}


def test_single_files(tmp_path: Path) -> None:
    one, other = (FIXTURES[1] / f"consolidated.0{rank}.pth" for rank in (0, 1))
    assert compare(one, one, stats=True).ok
    comparison = compare(one, other, stats=True)
    assert {value.name for value in comparison.values}.isdisjoint({"norm.weight"})
    assert comparison.values
    folder = converted(tmp_path)
    comparison = compare(one, folder / "model.safetensors", stats=True)
    assert [finding.code for finding in comparison.findings] == ["VALUES_NOT_COMPARED"]


def test_a_broken_side(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES[1], tmp_path / "meta")
    plant.edit_json(folder / "params.json", lambda params: params.update(n_layers=9))
    comparison = compare(FIXTURES[1], folder)
    assert comparison.same
    assert not comparison.ok
    assert llama_convert("inspect", FIXTURES[1], folder).exit_code == 1
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    assert "only in B" in llama_convert("inspect", FIXTURES[1], tmp_path / "x.pth").stdout
