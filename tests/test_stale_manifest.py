"""A fine-tune next to which a tool has copied the manifest, the card and the notice of what it began with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_convert import ConvertOptions, convert, inspect, shard
from llama_convert.checkpoints.manifest import read_manifest
from llama_convert.conversion import model_card
from tests.peers import ROOT
from tests.run import Run, llama_convert

META = ROOT / "fixtures/llama3.1-mp2"
MANIFEST = "llama-convert.json"
STALE = "The weights are newer than this manifest"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What our conversions write, in each format."""
    folder = tmp_path_factory.mktemp("bases")
    convert(META, folder / "hf")
    shard(folder / "hf", folder / "shards", max_shard_size="100KB")
    convert(folder / "hf", folder / "meta1", ConvertOptions(to="meta"))
    convert(folder / "hf", folder / "meta2", ConvertOptions(to="meta", mp=2))
    return {path.name: path for path in folder.iterdir()}


def rewrite(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """Let other tools write the weights again, changed or not."""
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.pth")]:
        is_meta = file.suffix == ".pth"
        state: State = torch.load(file) if is_meta else load_file(file)
        state = {name: change(name, tensor.clone()).contiguous() for name, tensor in state.items()}
        if is_meta:
            torch.save(state, file)
        else:
            save_file(state, file, metadata={"format": "pt"})
    return folder


def trained(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 1.5 + 0.25


def only(pattern: str) -> Callable[[str, torch.Tensor], torch.Tensor]:
    return lambda name, tensor: trained(name, tensor) if re.search(pattern, name) else tensor


def unchanged(_: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.fixture
def copy(bases: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(base: str) -> Path:
        return Path(shutil.copytree(bases[base], tmp_path / "fine-tune"))

    return make


COMMANDS = {
    "hf": [
        ("convert", "--to", "meta"),
        ("convert", "--to", "meta", "--mp", "2"),
        ("convert", "--to", "meta", "--dtype", "fp16"),
        ("shard", "--max-shard-size", "80KB"),
    ],
    "meta": [("convert",), ("convert", "--dtype", "fp32"), ("shard", "--mp", "4")],
}
EVERY = [
    (base, command)
    for base in ("hf", "shards", "meta1", "meta2")
    for command in COMMANDS["meta" if base.startswith("meta") else "hf"]
]


def run(source: Path, out: Path, command: tuple[str, ...], *more: str) -> Run:
    return llama_convert(command[0], source, out, *command[1:], *more, "--json")


def warnings(run: Run) -> list[str]:
    return [text for text in run.json["warnings"] if MANIFEST in text]


def findings(folder: Path) -> list[dict[str, Any]]:
    ended = llama_convert("verify", folder, "--check", "structure,values", "--json")
    assert ended.exit_code in (0, 1), ended.stderr
    return [
        {"code": finding["code"], "tensor": finding["tensor"], "message": finding["message"]}
        for check in ended.json["checks"]
        for finding in check["findings"]
        if finding["severity"] == "error"
    ]


@pytest.mark.parametrize(("base", "command"), EVERY)
def test_other_weights(
    copy: Callable[[str], Path], tmp_path: Path, base: str, command: tuple[str, ...]
) -> None:
    """One warning; nothing of what the stale files say is in the output, whose own files are right."""
    source, out = rewrite(copy(base), trained), tmp_path / "out"
    ended = run(source, out, command)
    assert ended.exit_code == 0, ended.stderr
    (warning,) = warnings(ended)
    assert warning.startswith(f"{source / MANIFEST}: {STALE}")
    assert run(source, tmp_path / "strict", command, "--strict").exit_code == 1
    assert not (tmp_path / "strict").exists()
    assert model_card.is_unedited(out / "README.md")
    assert (out / "README.md").read_bytes() != (source / "README.md").read_bytes()
    assert findings(out) == []


@pytest.mark.parametrize("base", ["hf", "shards", "meta1", "meta2"])
def test_verify_finds_one_thing(copy: Callable[[str], Path], base: str) -> None:
    """Though weights, card and everything else differ, and files were added, removed and renamed."""
    source = rewrite(copy(base), trained)
    (source / "recipe.yaml").write_text("epochs: 1")
    (source / "NOTICE").unlink(missing_ok=True)
    if not base.startswith("meta"):
        (source / "tokenizer_config.json").write_text("{}")
    (found,) = findings(source)
    assert found["code"] == "MANIFEST_STALE"
    assert found["message"].startswith(STALE)


def test_a_manifest_of_the_other_format(bases: dict[str, Path], copy: Callable[[str], Path]) -> None:
    source = copy("meta1")
    for name in (MANIFEST, "README.md"):
        shutil.copy(bases["hf"] / name, source / name)
    assert [found["code"] for found in findings(source)] == ["MANIFEST_STALE"]


@pytest.mark.parametrize(("base", "command"), EVERY)
def test_true_ones_are_not_warned_of(
    copy: Callable[[str], Path], tmp_path: Path, base: str, command: tuple[str, ...]
) -> None:
    assert warnings(run(copy(base), tmp_path / "out", command)) == []


@pytest.mark.parametrize("fixture", ["llama2-mp2", "llama3.1-mp2", "llama3.2-tied"])
@pytest.mark.parametrize("mp", [1, 2])
def test_metas_files_match_their_manifest(tmp_path: Path, fixture: str, mp: int) -> None:
    """Also where the LM head is the embedding, which is listed once."""
    convert(META.parent / fixture, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "meta", ConvertOptions(to="meta", mp=mp))
    assert findings(tmp_path / "meta") == []
    (tmp_path / "meta/params.json").write_text((tmp_path / "meta/params.json").read_text() + " ")
    (tmp_path / "meta/checklist.chk").unlink()
    codes = {
        (each["code"], each["message"].split(",")[0].split(".")[0]) for each in findings(tmp_path / "meta")
    }
    assert codes == {
        ("MANIFEST_DIFFERS", "Listed in llama-convert"),
        ("MANIFEST_DIFFERS", "Checksum does not match llama-convert"),
    }


@pytest.mark.parametrize("command", COMMANDS["hf"])
def test_written_again_by_another_tool(
    copy: Callable[[str], Path], tmp_path: Path, command: tuple[str, ...]
) -> None:
    """The files differ, the weights do not."""
    assert warnings(run(rewrite(copy("hf"), unchanged), tmp_path / "out", command)) == []


@pytest.mark.parametrize("pattern", [r"[qv]_proj", r"mlp", r"layers\.2\.", r"embed_tokens|lm_head|_proj"])
@pytest.mark.parametrize("command", COMMANDS["hf"])
def test_partly_trained(
    copy: Callable[[str], Path], tmp_path: Path, pattern: str, command: tuple[str, ...]
) -> None:
    """A LoRA merge, frozen layers, frozen norms: some checksums match, so it may be damage, too."""
    source = rewrite(copy("hf"), only(pattern))
    (warning,) = warnings(run(source, tmp_path / "out", command))
    assert "Checksums do not match for" in warning
    assert STALE not in warning
    manifest = read_manifest(source)
    assert manifest
    changed = {name for name in manifest["tensors"] if re.search(pattern, name)}
    found = findings(source)
    assert {each["tensor"] for each in found if each["tensor"]} <= changed
    assert {each["code"] for each in found} == {"MANIFEST_DIFFERS"}


@pytest.mark.parametrize("command", [COMMANDS["hf"][0], COMMANDS["hf"][3]])
def test_a_single_weight(copy: Callable[[str], Path], tmp_path: Path, command: tuple[str, ...]) -> None:
    """One that no sample holds shows as it is copied."""
    source = rewrite(copy("hf"), only(r"layers\.0\.mlp\.up_proj"))
    (warning,) = warnings(run(source, tmp_path / "out", command))
    assert "1 of " in warning
    assert "(model.layers.0.mlp.up_proj.weight)" in warning


def test_a_flipped_bit_is_damage(copy: Callable[[str], Path]) -> None:
    source = copy("hf")
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (source / "model.safetensors").write_bytes(data)
    (found,) = findings(source)
    assert found["code"] == "MANIFEST_DIFFERS"
    assert found["tensor"]


@pytest.mark.parametrize("base", ["hf", "meta2"])
def test_no_result_is_recorded_in_it(copy: Callable[[str], Path], base: str) -> None:
    source = rewrite(copy(base), trained)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    ended = llama_convert("verify", source, "--check", "structure", "--record", "--json")
    assert (ended.exit_code, ended.json["code"]) == (3, "MANIFEST_STALE")
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_damaged_weights_are_recorded(copy: Callable[[str], Path]) -> None:
    """What cannot be opened is no other model."""
    source = copy("hf")
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-100])
    assert llama_convert("verify", source, "--check", "structure", "--record").exit_code == 1
    assert "**FAIL**" in (source / "README.md").read_text()


def test_inspect_does_not_believe_it(copy: Callable[[str], Path]) -> None:
    source = copy("hf")
    assert any(MANIFEST in sign for sign in inspect(source).release.evidence)  # type: ignore[union-attr]
    assert not any(MANIFEST in sign for sign in inspect(rewrite(source, trained)).release.evidence)  # type: ignore[union-attr]


def test_a_persons_card_goes_along(copy: Callable[[str], Path], tmp_path: Path) -> None:
    source = rewrite(copy("hf"), trained)
    (source / "README.md").write_text("# My fine-tune\n")
    shard(source, tmp_path / "out", max_shard_size="100KB")
    assert (tmp_path / "out/README.md").read_text() == "# My fine-tune\n"


def test_a_damaged_one_is_not_used(copy: Callable[[str], Path], tmp_path: Path) -> None:
    source = copy("hf")
    content = json.loads((source / MANIFEST).read_text())
    (source / MANIFEST).write_text(json.dumps(content | {"seal": "0"}))
    ended = run(source, tmp_path / "out", ("convert", "--to", "meta"), "--strict")
    assert ended.exit_code == 0
    assert "The manifest is not used." in ended.stderr
