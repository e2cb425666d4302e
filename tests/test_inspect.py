"""What `inspect` says of a checkpoint, against what torch and safetensors say of its files."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llama_convert.errors import InputError
from llama_convert.inspection.inspect import inspect
from llama_convert.inspection.records import Inspection
from tests import large, plant, synthetic
from tests.peers import ROOT
from tests.run import llama_convert, measured, peak_memory
from tests.synthetic import LLAMA2, LLAMA3, Shape
from tests.test_real_shapes import official

FIXTURES = [ROOT / "fixtures" / name for name in ("llama2-mp2", "llama3.1-mp2", "llama3.2-tied")]
SHAPES = {
    "1 rank": LLAMA2,
    "2 ranks, embedding cut on axis 1": LLAMA2.but(ranks=2),
    "4 ranks, embedding cut on axis 0": LLAMA3.but(ranks=4),
    "repeated KV heads": LLAMA3.but(ranks=4, n_kv_heads=2, kv_repeats=2),
    "tied": LLAMA3.but(tied=True),
    "float16": LLAMA2.but(dtype=torch.float16),
}


@pytest.fixture(params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


def converted(tmp_path: Path, *options: str, source: Path = FIXTURES[1]) -> Path:
    assert llama_convert("convert", source, tmp_path / "hf", "--quiet", *options).exit_code == 0
    return tmp_path / "hf"


def codes(result: Inspection, *, warnings: bool = False) -> set[str]:
    return {finding.code for finding in result.findings if finding.is_warning == warnings}


def test_counts_of_a_meta_folder(tmp_path: Path, shape: Shape) -> None:
    state = synthetic.make(tmp_path / "meta", shape)
    result = inspect(tmp_path / "meta", tensors="*")
    assert result.ok
    distinct = {name: t for name, t in state.items() if not (shape.tied and name == "output.weight")}
    parameters = result.parameters
    assert parameters.total == sum(tensor.numel() for tensor in distinct.values())
    assert parameters.whole
    assert parameters.embedding == shape.vocab_size * shape.dim
    assert parameters.head == (0 if shape.tied else shape.vocab_size * shape.dim)
    assert parameters.per_layer == sum(t.numel() for n, t in state.items() if n.startswith("layers.0."))
    assert {t.name: (t.shape, f"torch.{t.dtype}") for t in result.tensors} == {
        name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()
    }
    assert all(len(tensor.files) == shape.ranks for tensor in result.tensors)
    assert (result.ranks, result.kv_repeats) == (shape.ranks, shape.kv_repeats)
    assert sum(count.tensors for count in result.dtypes) == len(state)
    assert result.bytes == sum(file.stat().st_size for file in (tmp_path / "meta").iterdir())


def test_sharding(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "meta", SHAPES["repeated KV heads"])
    kinds = {
        kind.name.split(".")[-2]: (kind.sharded_dim, kind.copies) for kind in inspect(tmp_path / "meta").kinds
    }
    assert kinds["tok_embeddings"] == (0, 1)
    assert kinds["wq"] == (0, 1)
    assert kinds["wk"] == kinds["wv"] == (0, 2)
    assert kinds["wo"] == kinds["w2"] == (1, 1)
    assert kinds["norm"] == kinds["attention_norm"] == (None, 4)


def test_what_a_conversion_would_write(tmp_path: Path) -> None:
    planned = inspect(FIXTURES[1]).conversion
    assert planned is not None
    written = converted(tmp_path)
    assert planned.files == {file.name: file.stat().st_size for file in written.glob("*.safetensors")}


def test_shared_storages_and_views(tmp_path: Path) -> None:
    state = synthetic.weights(LLAMA2)
    wide = torch.randn(LLAMA2.dim, 2 * LLAMA2.dim).bfloat16()
    state["layers.0.attention.wq.weight"] = wide[:, : LLAMA2.dim]
    state["layers.0.attention.wk.weight"] = wide[:, LLAMA2.dim :]
    state["norm.weight"] = torch.ones(1000).bfloat16()[:64]
    synthetic.write(tmp_path / "meta", LLAMA2, [state])
    result = inspect(tmp_path / "meta")
    assert result.shared == (("layers.0.attention.wq.weight", "layers.0.attention.wk.weight"),)
    assert codes(result, warnings=True) >= {"STORAGE_UNUSED", "TENSOR_STRIDED", "TOKENIZER_MISSING"}
    view = next(finding for finding in result.findings if finding.code == "STORAGE_UNUSED")
    assert view.tensor == "norm.weight"
    assert "1.9 KB" in view.message


def test_a_tied_head_is_one_storage(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "meta", LLAMA3.but(tied=True))
    assert inspect(tmp_path / "meta").shared == (("tok_embeddings.weight", "output.weight"),)
    file = tmp_path / "meta/consolidated.00.pth"
    assert inspect(file).parameters.head == 0


@pytest.mark.parametrize("options", [(), ("--max-shard-size", "200KB")])
def test_a_hugging_face_folder(tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = converted(tmp_path, *options)
    meta, result = inspect(FIXTURES[1]), inspect(folder, tensors="model.layers.1.*")
    assert result.ok
    assert result.format == "huggingface"
    assert result.config == meta.config
    assert result.parameters == meta.parameters
    assert result.tokenizer is not None
    assert meta.tokenizer is not None
    assert (result.tokenizer.vocab_size, result.tokenizer.kind) == (
        meta.tokenizer.vocab_size,
        meta.tokenizer.kind,
    )
    assert result.release is not None
    assert result.release.version == "3.1"
    assert result.checksums == ("llama-convert.json",)
    assert len(result.tensors) == 9
    assert result.conversion is None


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_both_layouts_have_one_release(tmp_path: Path, fixture: Path) -> None:
    folder = converted(tmp_path, source=fixture)
    (folder / "llama-convert.json").unlink()
    renamed = folder.rename(tmp_path / fixture.name)
    meta, result = inspect(fixture).release, inspect(renamed).release
    assert meta is not None
    assert result is not None
    assert result.title == meta.title


def test_globs_match_the_names_of_either_layout(tmp_path: Path) -> None:
    for pattern in ("layers.0.attention.w[qk].*", "model.layers.0.self_attn.[qk]_proj.weight"):
        names = [tensor.name for tensor in inspect(FIXTURES[0], tensors=pattern).tensors]
        assert names == ["layers.0.attention.wq.weight", "layers.0.attention.wk.weight"]
    assert inspect(FIXTURES[0]).tensors == ()


def test_single_files(tmp_path: Path) -> None:
    result = inspect(FIXTURES[0] / "consolidated.01.pth", tensors="*")
    held = torch.load(FIXTURES[0] / "consolidated.01.pth")
    assert {t.name: t.shape for t in result.tensors} == {n: tuple(t.shape) for n, t in held.items()}
    assert result.single_file
    assert not result.parameters.whole
    save_file({"a.b": torch.ones(2, 3, 4), "c": torch.zeros(()).half()}, tmp_path / "x.safetensors")
    result = inspect(tmp_path / "x.safetensors", tensors="*")
    assert [(t.name, t.shape, t.dtype, t.bytes) for t in result.tensors] == [
        ("a.b", (2, 3, 4), "float32", 96),
        ("c", (), "float16", 2),
    ]
    assert codes(result, warnings=True) == {"TENSOR_EXTRA", "DTYPES_MIXED"}


def _no_rank(folder: Path) -> None:
    (folder / "consolidated.00.pth").unlink()


def _short_rank(folder: Path) -> None:
    file = folder / "consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:100_000])


def _more_layers(folder: Path) -> None:
    plant.edit_json(folder / "params.json", lambda params: params.update(n_layers=9))


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (_no_rank, "RANKS_MISSING"),
        (_short_rank, "INPUT_TRUNCATED"),
        (_more_layers, "PARAMS_TENSORS_DISAGREE"),
    ],
)
def test_a_broken_meta_folder_is_shown(tmp_path: Path, break_it: Any, code: str) -> None:
    folder = shutil.copytree(FIXTURES[1], tmp_path / "meta")
    break_it(folder)
    result = inspect(folder, tensors="*")
    assert codes(result) == {code}
    assert len(result.tensors) == 30
    assert result.raw_config is not None
    assert result.raw_config["dim"] == 64
    run = llama_convert("inspect", folder)
    assert run.exit_code == 1
    assert re.search("^error: ", run.stdout, re.MULTILINE)
    assert re.fullmatch(r"1 error(, \d+ warnings?)?", run.stdout.splitlines()[-1])


def test_a_broken_hugging_face_folder_is_shown(tmp_path: Path) -> None:
    folder = converted(tmp_path, "--max-shard-size", "200KB")
    (folder / "model-00002-of-00003.safetensors").unlink()
    plant.edit_config(folder, model_type="mistral")
    result = inspect(folder)
    assert {"INPUT_NOT_FOUND", "UNSUPPORTED_MODEL"} <= codes(result)
    assert result.raw_config is not None
    assert result.kinds
    assert llama_convert("inspect", folder).exit_code == 1


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        inspect(tmp_path)
    assert llama_convert("inspect", tmp_path).exit_code == 3
    assert llama_convert("inspect", tmp_path / "nothing").exit_code == 3
    (tmp_path / "notes.txt").write_text("")
    assert llama_convert("inspect", tmp_path / "notes.txt").exit_code == 3
    assert llama_convert("inspect").exit_code == 2


@pytest.mark.parametrize("width", ["60", "100", "160"])
def test_lines_fit(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for options in ((), ("-v",), ("--tensors",), ("--stats",)):
        lines = llama_convert("inspect", FIXTURES[1], *options).stdout.splitlines()
        assert max(map(len, lines)) <= int(width)
        assert "Llama 3.1" in lines[0]


def test_an_option_between_paths() -> None:
    for command in (["--tensors", FIXTURES[1]], [FIXTURES[1], "--tensors", "--json"]):
        assert "layers.2.ffn_norm.weight" in llama_convert("inspect", *command).stdout
    run = llama_convert("inspect", FIXTURES[1], "--tensors", "*.ffn_norm.*")
    assert "layers.2.ffn_norm.weight" in run.stdout
    assert "wq" not in run.stdout


def listed(*options: str) -> list[dict[str, Any]]:
    """The tensors of a run with these options."""
    run = llama_convert("inspect", FIXTURES[1], "--stats", "--json", *options)
    assert run.exit_code == 0, run.stderr
    tensors: list[dict[str, Any]] = run.json["tensors"]
    return tensors


@pytest.mark.parametrize(
    ("column", "key", "descending"),
    [
        ("size", lambda tensor: tensor["bytes"], True),
        ("min", lambda tensor: tensor["stats"]["min"], False),
        ("max", lambda tensor: tensor["stats"]["max"], True),
        ("absmax", lambda tensor: tensor["stats"]["absmax"], True),
        ("p99.9", lambda tensor: tensor["stats"]["p999"], True),
        ("mean", lambda tensor: tensor["stats"]["mean"], True),
        ("std", lambda tensor: tensor["stats"]["std"], True),
        ("zero", lambda tensor: tensor["stats"]["near_zero"] / tensor["stats"]["elements"], True),
        ("nan", lambda tensor: tensor["stats"]["nan"], True),
    ],
)
def test_sort(column: str, key: Callable[[dict[str, Any]], float], descending: bool) -> None:
    """Stable: tensors with equal values stay in model order."""
    expected = sorted(listed(), key=key, reverse=descending)
    assert listed("--sort", column) == expected
    assert listed("--sort", column, "--top", "3") == expected[:3]


def test_names_sort_by_number(tmp_path: Path) -> None:
    save_file({f"layers.{n}.x": torch.ones(1) for n in range(12)}, tmp_path / "x.safetensors")
    run = llama_convert("inspect", tmp_path / "x.safetensors", "--sort", "name", "--json")
    assert [tensor["name"] for tensor in run.json["tensors"]] == [f"layers.{n}.x" for n in range(12)]


def test_tensors_without_a_value_come_last(tmp_path: Path) -> None:
    state = {"a": torch.full((2,), float("nan")), "b": torch.ones(2), "c": torch.zeros(2)}
    save_file(state, tmp_path / "x.safetensors")
    run = llama_convert("inspect", tmp_path / "x.safetensors", "--stats", "--sort", "min", "--json")
    assert [tensor["name"] for tensor in run.json["tensors"]] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sort", "std"), "Add --stats"),
        (("--sort", "size2"), "No such column"),
        (("--csv", "--json"), "exclude each other"),
        ((FIXTURES[0], "--csv"), "--csv only applies to one checkpoint"),
        ((FIXTURES[0], "--top", "3"), "--top only applies to one checkpoint"),
        ((FIXTURES[0], "--sort", "name"), "--sort only applies to one checkpoint"),
    ],
)
def test_options_that_contradict(options: tuple[Any, ...], words: str) -> None:
    run = llama_convert("inspect", FIXTURES[1], *options)
    assert run.exit_code == 2
    assert words in run.stderr


def test_csv() -> None:
    """The numbers of the JSON, in lines that end as RFC 4180 says."""
    run = llama_convert("inspect", FIXTURES[1], "--stats", "--csv")
    assert run.exit_code == 0
    text = run.stdout
    assert text.count("\r\n") == text.count("\n") == 31
    rows = list(csv.DictReader(io.StringIO(text)))
    for row, tensor in zip(rows, listed(), strict=True):
        assert row["name"] == tensor["name"]
        assert row["shape"] == "x".join(map(str, tensor["shape"]))
        assert row["stored_in"].split(";") == tensor["stored_in"]
        assert int(row["bytes"]) == tensor["bytes"]
        statistics = {name: value for name, value in tensor["stats"].items() if name != "histogram"}
        assert {name: float(row[name]) for name in statistics} == statistics


def test_csv_of_difficult_names(tmp_path: Path) -> None:
    state = {'a,"b"': torch.ones(2), "é": torch.full((1,), float("inf"))}
    save_file(state, tmp_path / "x.safetensors")
    run = llama_convert("inspect", tmp_path / "x.safetensors", "--csv", "--stats")
    rows = list(csv.DictReader(io.StringIO(run.stdout)))
    assert [row["name"] for row in rows] == ['a,"b"', "é"]
    assert (rows[1]["inf"], rows[1]["min"], rows[1]["p999"]) == ("1", "", "")
    assert "elements" not in llama_convert("inspect", tmp_path / "x.safetensors", "--csv").stdout


def test_csv_of_a_broken_folder(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES[1], tmp_path / "meta")
    _more_layers(folder)
    run = llama_convert("inspect", folder, "--csv")
    assert run.exit_code == 1
    assert "error: " in run.stderr
    assert len(list(csv.reader(io.StringIO(run.stdout)))) == 31


def test_details_are_shown_with_v(tmp_path: Path) -> None:
    short, long = (llama_convert("inspect", FIXTURES[1], *options).stdout for options in ((), ("-v",)))
    for text in ("30 in bf16", "consolidated.01.pth", "could be", "evidence", "MiB of memory"):
        assert text in long
        assert text not in short
    for text in (
        "2 shards",
        "248,256 parameters",
        "bf16",
        "rope_theta 500000",
        "640 tokens",
        "CRC-32",
        "dim 1",
    ):
        assert text in short
    assert short.splitlines()[-1] == "OK: 1 warning"
    folder = converted(tmp_path)
    (folder / "llama-convert.json").unlink()
    assert "checksums" not in llama_convert("inspect", folder).stdout
    assert "checksums   none" in llama_convert("inspect", folder, "-v").stdout


def test_405b_in_16_ranks_takes_a_moment(tmp_path: Path) -> None:
    folder = large.make(tmp_path / "meta", official("3.1", "405B", 16, kv_repeats=2), fill=False)
    command = [sys.executable, "-m", "llama_convert", "inspect", str(folder)]
    figure = measured(command)
    assert figure.read < 32 << 20, "headers alone"
    assert figure.peak < 150 << 20
    assert peak_memory("inspect", folder, "--json") < 150 << 20
    result = inspect(folder)
    assert result.parameters.total == 405_853_388_800
    assert result.release is not None
    assert result.release.title == "Llama 3.1 405B"


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from llama_convert.cli import main\n"
        f"sys.argv = ['llama-convert', 'inspect', {str(FIXTURES[1])!r}, '--stats', '--json']\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'jinja2', 'tokenizers', 'sentencepiece', 'tiktoken'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
