"""Mistyped commands: the error shows what was found, and the hint what to type."""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from llama_convert import ConvertOptions, convert
from llama_convert.dtypes import parse_weight_dtype
from llama_convert.errors import UsageError
from llama_convert.llama.releases import parse_version
from llama_convert.observer import Observer
from tests.peers import ROOT
from tests.run import Run, llama_convert

LLAMA2, LLAMA31 = ROOT / "fixtures/llama2-mp2", ROOT / "fixtures/llama3.1-mp2"
HUB = "cache/models--meta-llama--Llama-3.1-8B"
REVISION = "0123456789abcdef0123456789abcdef01234567"

# What was typed: the exit code, words of the error, and the hint: what to type, or words that it has.
MET: dict[str, tuple[int, str, str]] = {
    # Nothing, or not enough.
    "convert": (2, "SRC is missing", "llama-convert convert SRC DST"),
    "convert meta": (2, "DST is missing", "llama-convert convert meta meta-hf"),
    "meta": (2, "DST is missing", "llama-convert convert meta meta-hf"),
    "convert hf --to meta": (2, "DST is missing", "llama-convert convert hf hf-meta --to meta"),
    "shard meta": (2, "DST is missing", "llama-convert shard meta meta-resharded --mp 2"),
    "shard hf out": (2, "Pass either --mp N", "llama-convert shard hf out --max-shard-size 2GB"),
    "verify": (2, "PATH is missing", "llama-convert verify PATH --source ORIGINAL"),
    "inspect": (2, "PATH is missing", "llama-convert inspect PATH"),
    "diff": (2, "A is missing", "llama-convert diff A B"),
    "diff hf": (2, "B is missing", "llama-convert diff A B"),
    # Paths that do not exist.
    "convert metta out": (3, "metta: Not found.", "llama-convert convert meta out"),
    "metta out": (2, "No such command 'metta'", "llama-convert meta out"),
    "--input_dir metta --output_dir out": (3, "metta", "llama-convert --input_dir meta --output_dir out"),
    "--input_dir=metta --output_dir=out": (3, "metta", "llama-convert --input_dir=meta --output_dir=out"),
    "convert LLAMA/7b out": (3, "LLAMA/7b: Not found.", "llama-convert convert LLaMA/7B out"),
    "verify hf --source meat": (3, "meat: Not found.", "llama-convert verify hf --source meta"),
    "inspect hf nowhere": (3, "nowhere: Not found.", ""),
    "convert '~/no such' out": (3, "no such: Not found.", ""),
    "inspect meta-llama/Llama-3.1-8B": (
        3,
        "Not found.",
        "llama-convert inspect hf://meta-llama/Llama-3.1-8B",
    ),
    "convert out meta": (3, "out: Not found, but meta is a checkpoint.", "llama-convert convert meta out"),
    "convert empty meta": (3, "empty: Empty, but meta is a checkpoint.", "llama-convert convert meta empty"),
    "convert empty hf --to meta": (3, "but hf is a checkpoint", "llama-convert convert hf empty --to meta"),
    "shard out hf --max-shard-size 1MB": (
        3,
        "but hf is a checkpoint",
        "llama-convert shard hf out --max-shard-size 1MB",
    ),
    "convert meta out --tokenizer meta/tokeniser.model": (
        *(3, "tokeniser.model: Not found."),
        "llama-convert convert meta out --tokenizer meta/tokenizer.model",
    ),
    # Another format.
    "shard hf out --mp 2": (
        2,
        "hf is in Hugging Face",
        "llama-convert convert hf out --to meta --mp 2",
    ),
    "shard meta out --max-shard-size 2GB": (
        *(2, "meta is in Meta format"),
        "llama-convert convert meta out --max-shard-size 2GB",
    ),
    "convert models/hfs out": (3, "Contains 2 checkpoints: a, b", "llama-convert convert models/hfs/a out"),
    "convert fsdp out": (
        *(3, "The checkpoint is in pytorch_model_fsdp_0"),
        "llama-convert convert fsdp/pytorch_model_fsdp_0 out",
    ),
    "convert fsdp/pytorch_model_fsdp_0 out": (
        3,
        "No config.json or params.json next to",
        "--config-from FOLDER",
    ),
    "verify fsdp/pytorch_model_fsdp_0": (3, "No config.json or params.json next to", "--config-from FOLDER"),
    "shard fsdp/pytorch_model_fsdp_0 out --mp 2": (
        *(3, "A distributed checkpoint"),
        "llama-convert convert fsdp/pytorch_model_fsdp_0 out --to meta --mp 2 --config-from FOLDER",
    ),
    "convert meta out --config-from hf": (
        *(3, "split into 2 ranks, but there is no params.json"),
        "Pass a folder with params.json: --config-from FOLDER.",
    ),
    "convert meta out --config-from empty": (3, "Neither config.json nor params.json", ""),
    # A file for its folder.
    "convert meta/consolidated.00.pth out": (3, "One of several files", "llama-convert convert meta out"),
    "verify meta/consolidated.01.pth": (3, "One of several files", "llama-convert verify meta"),
    "convert parts/model-00001-of-00003.safetensors out": (
        *(3, "One of several files"),
        "llama-convert convert parts out",
    ),
    "convert meta/params.json out": (3, "This is a file", "llama-convert convert meta out"),
    "convert hf/config.json out --to meta": (3, "This is a file", "llama-convert convert hf out --to meta"),
    "shard meta/params.json out --mp 1": (3, "This is a file", "llama-convert shard meta out --mp 1"),
    "verify meta/tokenizer.model": (3, "This is a file", "llama-convert verify meta"),
    "verify hf --source meta/params.json": (3, "This is a file", "llama-convert verify hf --source meta"),
    "inspect hf/config.json": (3, "This is a file", "llama-convert inspect hf"),
    "shard hf/config.json out --mp 2": (3, "This is a file", "llama-convert convert hf out --to meta --mp 2"),
    "convert gguf/model.gguf out": (3, "a GGUF file", "Convert the checkpoint that it was made from."),
    # Folders of folders.
    "convert models out": (3, "Contains 2 checkpoints: 7B, 13B", "llama-convert convert models/13B out"),
    "verify models": (3, "Contains 2 checkpoints", "llama-convert verify models/13B"),
    "inspect models": (3, "Contains 2 checkpoints", "llama-convert inspect models/13B"),
    "shard models/hfs out --max-shard-size 1MB": (
        *(3, "Contains 2 checkpoints: a, b"),
        "llama-convert shard models/hfs/a out --max-shard-size 1MB",
    ),
    f"inspect {HUB}": (3, "The checkpoint is in snap", f"llama-convert inspect {HUB}/snapshots/{REVISION}"),
    "verify cache": (3, "The checkpoint is in models--", f"llama-convert verify {HUB}/snapshots/{REVISION}"),
    # Folders of other things.
    "convert empty out": (3, "The folder is empty", "Pass a folder with params.json and consolidated.00.pth"),
    "verify empty": (3, "The folder is empty", "or config.json and model.safetensors"),
    "convert jsons out": (3, "found config.json", "Pass a folder with params.json"),
    "shard jsons out --max-shard-size 1MB": (3, "found config.json", "Pass a folder with config.json"),
    "inspect gguf": (
        3,
        "Contains a GGUF file (llama.cpp): model.gguf",
        "Convert the checkpoint that it was made from.",
    ),
    # DST.
    "convert meta meta": (2, "meta: Is the input folder.", "Choose another output folder."),
    "convert meta jsons": (5, "jsons: Not empty (holds config.json", "--overwrite"),
    # Words that are no commands, options or values.
    "conver meta out": (2, "No such command 'conver'", "llama-convert convert meta out"),
    "veryfy hf": (2, "No such command 'veryfy'", "llama-convert verify hf"),
    "nonsense": (2, "No such command 'nonsense'", "llama-convert --help"),
    "convert meta out --dtpye fp16": (2, "--dtpye", "llama-convert convert meta out --dtype fp16"),
    "convert meta --outptu out": (2, "--outptu", "llama-convert convert meta --output out"),
    "convert meta out --force": (2, "--force", "llama-convert convert meta out --overwrite"),
    "convert meta out --output other": (2, "DST is given more than once: out and --output other", ""),
    "shard meta -o out --mp 1 other": (2, "DST is given more than once: other and --output out", ""),
    "convert meta out --device cpu": (
        2,
        "--device",
        "--device is an option of verify. Run: llama-convert verify --help",
    ),
    "convert meta out extra": (2, "extra", "llama-convert convert --help"),
    "verify hf meta": (2, "Unexpected argument: meta", "llama-convert verify hf --source meta"),
    "shard meta out --mp two": (2, "'two' is not a valid int", "llama-convert shard --help"),
    "shard meta out --mp 3": (
        2,
        "3 does not divide n_heads (4)",
        "Choose a number of shards",
    ),
    "convert meta out --max-shard-size 5": (
        2,
        "'5' would be only 5 bytes.",
        "Add a unit: for example 5GB, 500MB or 512MiB.",
    ),
    "convert meta out --max-shard-size 5G": (
        2,
        "'5G' is not a size.",
        "Pass a size with a unit, for example 5GB, 500MB or 512MiB.",
    ),
    "convert meta out --llama-version 4": (
        2,
        "Unknown release",
        "Choose one of 1, 2, 3, 3.1, 3.2, 3.3, Guard-1, Guard-2, Guard-3, code.",
    ),
    "verify hf --check logit": (
        2,
        "No such check",
        "Choose among structure, values, weights, tokenizer, logits.",
    ),
}

# What is done, because nothing else can have been meant.
DONE = [
    *("help", "help convert", "version", "-V"),
    "convert meta/ out/ --dry-run",
    "convert ./hf/../meta out --dry-run",
    'convert "my meta\'s" "my out" --dry-run',
    "convert LLaMA out --dry-run",
    "convert hub out --dry-run",
    "shard hub/original out --mp 1 --dry-run",
    "verify LLaMA --check structure",
    "convert models out --model_size 7b --dry-run",
    "convert meta out --tokenizer hf --dry-run",
    "convert meta out --dtype torch.float16 --llama-version llama2 --dry-run",
    # One format to the same, a file, PyTorch files.
    "convert hf out --dry-run",
    'convert "my hf\'s" "my out" --dry-run',
    "convert meta out --to meta --dry-run",
    "convert bin out --to meta --dry-run",
    "convert bin/pytorch_model.bin out --dry-run",
    "convert hf/model.safetensors out --dry-run",
    "verify hf/model.safetensors --check structure",
    "convert fsdp/pytorch_model_fsdp_0 out --config-from hf --dry-run",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that people come with."""
    world = tmp_path_factory.mktemp("world")
    for name in ("meta", "my meta's", "models/7B", "models/13B", "LLaMA/7B"):
        shutil.copytree(LLAMA2, world / name)
    convert(world / "meta", world / "hf")
    for name in ("my hf's", "models/hfs/a", "models/hfs/b", "hub"):
        shutil.copytree(world / "hf", world / name)
    shutil.copytree(LLAMA31, world / "hub/original")
    snapshot = world / HUB / "snapshots" / REVISION
    (world / HUB / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((world / "hf").iterdir())):
        shutil.copy(file, world / HUB / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    for name in ("empty", "jsons", "bin", "gguf"):
        (world / name).mkdir()
    for name in ("jsons", "bin"):
        shutil.copy(world / "hf/config.json", world / name)
    torch.save(load_file(world / "hf/model.safetensors"), world / "bin/pytorch_model.bin")
    (world / "gguf/model.gguf").write_bytes(b"GGUF")
    convert(world / "meta", world / "parts", ConvertOptions(max_shard_size="150KB"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {"model": load_file(world / "hf/model.safetensors")},
            checkpoint_id=world / "fsdp/pytorch_model_fsdp_0",
            no_dist=True,
        )
    return world


def said(run: Run, kind: str) -> str:
    """The one line of a kind on stderr; nothing where there is none."""
    lines = [line for line in run.stderr.splitlines() if line.startswith(f"{kind}: ")]
    assert len(lines) <= 1, run.stderr
    return lines[0].removeprefix(f"{kind}: ") if lines else ""


@pytest.mark.parametrize("typed", MET)
def test_what_is_printed(world: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(world)
    exit_code, error, hint = MET[typed]
    before = sorted(world.rglob("*"))
    run = llama_convert(*shlex.split(typed))
    assert run.exit_code == exit_code, run.stderr
    assert error in said(run, "error")
    printed = said(run, "hint").removeprefix("Run: ")
    if hint.startswith("llama-convert") and ";" not in hint:
        assert shlex.split(printed.removeprefix("Run: ")) == shlex.split(hint)
    else:
        assert hint in printed
        assert bool(hint) == bool(printed)
    assert sorted(world.rglob("*")) == before


@pytest.mark.parametrize(
    "typed", ["convert metta out", "conver meta out", "convert hf/config.json out", "shard meta out --mp x"]
)
def test_json_has_the_same(world: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(world)
    run = llama_convert(*shlex.split(typed), "--json")
    answer = json.loads(run.stdout)
    assert answer["hint"] == said(run, "hint") != ""
    assert (answer["ok"], answer["exit_code"]) == (False, run.exit_code)


@pytest.mark.parametrize("typed", DONE)
def test_what_is_done(world: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(world)
    run = llama_convert(*shlex.split(typed))
    assert run.exit_code == 0, run.stderr


def test_a_checkpoint_below_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)

    class Details(Observer):
        def detail(self, text: str) -> None:
            self.texts = [*getattr(self, "texts", []), text]

    below, itself = Details(), Details()
    convert("hub", "out", ConvertOptions(dry_run=True), below)
    convert("meta", "out", ConvertOptions(dry_run=True), itself)
    assert "Found the checkpoint in hub/original." in below.texts
    assert not any("Found the checkpoint" in text for text in itself.texts)


def test_what_is_hidden_or_goes_in_circles_is_no_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(LLAMA2, tmp_path / "around/.llama-convert")
    for name in ("original", "7B"):
        (tmp_path / "around" / name).symlink_to(".")
    for command in (("inspect", tmp_path / "around"), ("convert", tmp_path / "around", tmp_path / "out")):
        assert llama_convert(*command).exit_code == 3


@pytest.mark.parametrize(
    ("typed", "version"),
    [
        ("3.0", "3"),
        ("v3", "3"),
        ("llama3", "3"),
        ("Llama-3.1", "3.1"),
        ("meta-llama-3.2", "3.2"),
        ("2.0", "2"),
        ("CodeLlama", "code"),
        ("guard1", "Guard-1"),
        ("Llama-Guard-3", "Guard-3"),
        ("LLaMA", ""),
        ("31", ""),
    ],
)
def test_names_of_releases(typed: str, version: str) -> None:
    if version:
        assert parse_version(typed).version == version
        return
    with pytest.raises(UsageError, match="Unknown release"):
        parse_version(typed)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("half", "float16"),
        ("F16", "float16"),
        ("torch.bfloat16", "bfloat16"),
        ("float", "float32"),
        ("AUTO", ""),
    ],
)
def test_names_of_dtypes(typed: str, name: str) -> None:
    dtype = parse_weight_dtype(typed)
    assert (dtype.name if dtype else "") == name
