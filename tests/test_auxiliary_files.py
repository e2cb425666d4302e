"""Which small files are copied: not what links lead to elsewhere, nor names that no manifest lists."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_convert import convert
from llama_convert.checkpoints.manifest import read_manifest
from llama_convert.formats.files import is_file_name
from tests.peers import ROOT
from tests.run import Run, llama_convert

META = ROOT / "fixtures/llama2-mp2"
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\n"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "hf"
    convert(META, out)
    return out


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/id_rsa").write_text(SECRET)
    return tmp_path / "home/id_rsa"


COMMANDS: dict[str, tuple[str, list[str]]] = {
    "convert": ("meta", ["convert"]),
    "shard --mp": ("meta", ["shard", "--mp", "4"]),
    "convert --to meta": ("hf", ["convert", "--to", "meta"]),
    "shard --max-shard-size": ("hf", ["shard", "--max-shard-size", "100KB"]),
}


def run(name: str, source: Path, out: Path, *more: str) -> Run:
    command, *options = COMMANDS[name][1]
    return llama_convert(command, source, out, *options, *more, "--json")


@pytest.fixture
def source(request: pytest.FixtureRequest, converted: Path, tmp_path: Path) -> Path:
    """A copy of what the command named by the test's parameter reads."""
    name = request.node.callspec.params["name"]
    shutil.copytree({"meta": META, "hf": converted}[COMMANDS[name][0]], tmp_path / "in/model")
    return tmp_path / "in/model"


def copied(out: Path) -> str:
    return "".join(file.read_bytes().decode("latin-1") for file in out.rglob("*") if file.is_file())


# Links.


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("link", ["LICENSE", "USE_POLICY.md", "Notice.txt", "LICENCE"])
@pytest.mark.parametrize("target", ["../../home/id_rsa", "absolute", "chain"])
def test_a_link_that_leads_out_is_refused(
    source: Path, secret: Path, tmp_path: Path, name: str, link: str, target: str
) -> None:
    if target == "chain":
        (source / ".hop").symlink_to(secret)
        target = ".hop"
    (source / link).symlink_to(secret if target == "absolute" else target)
    ended = run(name, source, tmp_path / "out")
    assert (ended.exit_code, ended.json["code"], ended.json["file"]) == (3, "INPUT_LINK", str(source / link))
    assert str(secret) in ended.json["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["shard --max-shard-size"])
@pytest.mark.parametrize(
    "link",
    [
        "notes.txt",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "README.md",
        "tokenizer.model",
    ],
)
def test_any_file_that_is_copied_as_it_is(
    source: Path, secret: Path, tmp_path: Path, name: str, link: str
) -> None:
    (source / link).unlink(missing_ok=True)
    (source / link).symlink_to(secret)
    assert run(name, source, tmp_path / "out").exit_code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["convert --to meta", "shard --mp"])
def test_a_tokenizer_is_one_before_it_is_copied(
    source: Path, secret: Path, tmp_path: Path, name: str
) -> None:
    (source / "tokenizer.model").unlink()
    (source / "tokenizer.model").symlink_to(secret)
    assert run(name, source, tmp_path / "out").exit_code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_links_that_people_have(source: Path, tmp_path: Path, name: str) -> None:
    """Weights and tokenizer from another disk; a license that lies in the folder under another name."""
    disk = tmp_path / "disk"
    disk.mkdir()
    for file in source.iterdir():
        if file.suffix in (".pth", ".safetensors", ".model") and name != "shard --max-shard-size":
            file.rename(disk / file.name)
            file.symlink_to(disk / file.name)
    (source / "terms").mkdir()
    (source / "terms/license").write_text("The terms")
    (source / "LICENSE").symlink_to("terms/license")
    (tmp_path / "alias").symlink_to("in/model")
    assert run(name, tmp_path / "alias", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/LICENSE").read_text() == "The terms"
    assert not (tmp_path / "out/LICENSE").is_symlink()


def hub_cache(cache: Path, files: dict[str, Path]) -> Path:
    """A repository as the Hub's cache has it: links into its blobs."""
    snapshot = cache / "models--meta-llama--Llama-2-7b" / "snapshots" / ("a" * 40)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    for number, (name, file) in enumerate(files.items()):
        shutil.copy(file, blobs / f"{number:064x}")
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(os.path.relpath(blobs, link.parent)) / f"{number:064x}")
    return snapshot


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("below", ["", "original/"])
def test_the_hubs_cache(source: Path, secret: Path, tmp_path: Path, name: str, below: str) -> None:
    """Its links lead to blobs of the same repository, to be followed; another repository's are not."""
    if below and COMMANDS[name][0] == "hf":
        below = ""
    (source / "LICENSE").write_text("The terms")
    files = {below + file.name: file for file in source.iterdir()}
    snapshot = hub_cache(tmp_path / "hub", files)
    assert run(name, snapshot / below, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/LICENSE").read_text() == "The terms"
    other = tmp_path / "hub/models--private--model/blobs"
    other.mkdir(parents=True)
    shutil.copy(secret, other / ("f" * 64))
    (snapshot / below / "LICENSE").unlink()
    (snapshot / below / "LICENSE").symlink_to(other / ("f" * 64))
    assert run(name, snapshot / below, tmp_path / "no").json["code"] == "INPUT_LINK"
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_of_links(source: Path, secret: Path, tmp_path: Path, name: str) -> None:
    """To all files of another folder (``ln -s /disk/model/* .``), and one that leads elsewhere."""
    (source / "LICENSE").write_text("The terms")
    links = tmp_path / "links"
    links.mkdir()
    for file in source.iterdir():
        (links / file.name).symlink_to(file)
    assert run(name, links, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/LICENSE").read_text() == "The terms"
    (source / ".hop").symlink_to(secret)
    (links / "NOTICE").unlink(missing_ok=True)
    (links / "NOTICE").symlink_to(source / ".hop")
    assert run(name, links, tmp_path / "no").json["code"] == "INPUT_LINK"


# Names.

BAD = [
    b"LICENSE-caf\xe9",
    b"LICENSE\n",
    b"LICENSE\nREADME.md",
    b"LICENSE\r",
    b"LICENSE\t1",
    b"LICENSE\x1b[31mred",
    b"LICENSE\x1b]0;title\x07",
    b"LICENSE\x7f",
    "LICENSE\u202egpj.exe".encode(),
    "LICENSE\u2066".encode(),
    "LICENSE\u200b".encode(),
    "LICENSE\u2028".encode(),
    "LICENSE\u00a0".encode(),
    "LICENSE\ufeff".encode(),
    "LICENSE\u0085".encode(),
    "LICENSE\ue000".encode(),
    "LICENSE\U000e0041".encode(),
    b"LICENSE\xed\xa0\x80",
    b"LICENSE\xc0\xaf",
]
GOOD = [
    "LICENSE-café.txt",
    "LICENSE 許諾",
    "LICENSE [1] (copy) & 'more'.md",
    "LICENSE_\\_|_`x`",
    "LICENSE" + "x" * 240,
]


@pytest.mark.parametrize("name", COMMANDS)
def test_names_are_decided_on_before_anything_is_written(source: Path, tmp_path: Path, name: str) -> None:
    for bad in BAD:
        Path(os.fsdecode(os.fsencode(source) + b"/" + bad)).write_text("bad")
    for good in GOOD:
        (source / good).write_text("good")
    out = tmp_path / "out"
    ended = run(name, source, out)
    assert ended.exit_code == 0, ended.stderr
    warned = [text for text in ended.json["warnings"] if "Not copied" in text]
    assert len(warned) == len(BAD)
    assert ended.stderr.isprintable() or set(ended.stderr) - {"\n"} <= set(
        filter(str.isprintable, ended.stderr)
    )
    names = {file.name for file in out.iterdir()}
    assert set(GOOD) <= names
    assert all(is_file_name(each) for each in names)
    assert not any(os.fsdecode(bad) in names for bad in BAD)
    manifest = read_manifest(out)
    assert manifest
    assert names - set(manifest["files"]) == {"llama-convert.json"}
    verified = llama_convert("verify", out, "--check", "structure,values", "--json")
    assert verified.exit_code == 0, verified.stdout
    assert run(name, source, tmp_path / "strict", "--strict").exit_code == 1
    assert not (tmp_path / "strict").exists()


@given(st.text())
def test_one_rule(name: str) -> None:
    """A name that passes is one file, one line, and JSON that reads back."""
    if is_file_name(name):
        assert Path("folder", name).parent == Path("folder")
        assert Path("folder", name).name == name
        assert len(name.splitlines()) == 1
        assert name.isprintable()
        encoded: Any = json.dumps({name: 1}, ensure_ascii=False).encode()
        assert json.loads(encoded) == {name: 1}
    else:
        assert not name.isprintable() or "/" in name or name in ("", ".", "..") or len(name.encode()) > 255
