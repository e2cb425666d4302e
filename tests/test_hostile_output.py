"""Output folders that hold something planted, or what is read: no file of anybody else is changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llama_convert import ConvertOptions, convert, shard
from llama_convert.checkpoints.manifest import content_record, manifest_json
from llama_convert.conversion.finalize import FINALIZING, Finalization
from llama_convert.conversion.sealed_json import sealed, unsealed
from llama_convert.errors import ConflictError, InputError, UsageError
from tests import invariant
from tests.invariant import STAGING, Case, check, run, signal_at, staged
from tests.run import llama_convert

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return invariant.make_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(invariant.META2, tmp_path / "meta"))


def contents(folder: Path) -> Files:
    """All files below a folder, through links."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The output folder holds what is read.


def bind(source: Path, out: Path) -> None:
    out.mkdir()
    if subprocess.run(["mount", "--bind", source, out], capture_output=True, check=False).returncode:
        pytest.skip("folders cannot be mounted here")


def link(source: Path, out: Path) -> None:
    out.symlink_to(source)


def links_into_the_output(source: Path, out: Path) -> None:
    out.mkdir()
    for file in source.iterdir():
        file.rename(out / file.name)
        file.symlink_to(out / file.name)


def hard_links(source: Path, out: Path) -> None:
    out.mkdir()
    for file in source.iterdir():
        os.link(file, out / file.name)


def links_into_the_source(source: Path, out: Path) -> None:
    out.mkdir()
    for file in source.iterdir():
        (out / file.name).symlink_to(file)


def one_hard_link_by_another_name(source: Path, out: Path) -> None:
    out.mkdir()
    os.link(source / "consolidated.01.pth", out / "model.safetensors")


def a_tokenizer_that_is_carried(source: Path, out: Path) -> None:
    out.mkdir()
    (source / "tokenizer.model").rename(out / "tokenizer.model")
    (source / "tokenizer.model").symlink_to(out / "tokenizer.model")


def source_in_the_staging_folder(source: Path, out: Path) -> None:
    inside = out / STAGING / "run-0" / "meta"
    inside.parent.mkdir(parents=True)
    source.rename(inside)
    source.symlink_to(inside)


def files_in_the_staging_folder(source: Path, out: Path) -> None:
    (out / STAGING / "shared").mkdir(parents=True)
    for file in source.iterdir():
        file.rename(out / STAGING / "shared" / file.name)
        file.symlink_to(out / STAGING / "shared" / file.name)


@pytest.mark.parametrize(
    "arrange",
    [
        bind,
        link,
        links_into_the_output,
        hard_links,
        links_into_the_source,
        one_hard_link_by_another_name,
        a_tokenizer_that_is_carried,
        source_in_the_staging_folder,
        files_in_the_staging_folder,
    ],
)
@pytest.mark.parametrize("more", [[], ["--array-task", "1/2"]], ids=["alone", "array task"])
def test_the_source_in_the_output(
    source: Path, tmp_path: Path, arrange: Callable[[Path, Path], object], more: list[str]
) -> None:
    out = tmp_path / "out"
    arrange(source, out)  # skips where nothing can be mounted
    try:
        before = contents(source), contents(out)
        refused = llama_convert("convert", source, out, "--overwrite", "--json", *more)
        assert refused.exit_code == 2, refused.stderr
        assert refused.json["code"] == "OUTPUT_IS_INPUT"
        assert (contents(source), contents(out)) == before
    finally:
        if arrange is bind:
            subprocess.run(["umount", "--lazy", out], check=True)


def test_named_files_in_the_output(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(invariant.META2 / "tokenizer.model", out)
    (out / "chat.jinja").write_text("{{ messages }}")
    for options in (
        ConvertOptions(tokenizer=out / "tokenizer.model", overwrite=True),
        ConvertOptions(chat_template=out / "chat.jinja", instruct=True, overwrite=True),
    ):
        before = contents(out)
        with pytest.raises(UsageError) as refused:
            convert(source, out, options)
        assert refused.value.code == "OUTPUT_IS_INPUT"
        assert contents(out) == before


# The output folder is in the source, or around it.


def test_the_output_in_the_source(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the old script's users type it; twice, and in every direction."""
    convert(source, tmp_path / "hf")
    shard(source, tmp_path / "ranks", mp=1)
    convert(tmp_path / "hf", tmp_path / "back", ConvertOptions(to="meta"))
    before = contents(source)
    monkeypatch.chdir(source)
    for _ in range(2):
        assert (
            llama_convert("--input_dir", "./", "--output_dir", "./7B_hf", "--model_size", "7B").exit_code == 0
        )
        assert llama_convert("convert", ".", "hf").exit_code == 0
        assert llama_convert("shard", ".", "./mp1", "--mp", "1").exit_code == 0
    assert contents(source / "hf").keys() == contents(tmp_path / "hf").keys()
    assert contents(source / "hf")["model.safetensors"] == contents(tmp_path / "hf")["model.safetensors"]
    assert contents(source / "mp1").keys() == contents(tmp_path / "ranks").keys()
    made = ("7B_hf", "hf", "mp1")
    assert {
        name: data for name, data in contents(source).items() if name.partition("/")[0] not in made
    } == before
    monkeypatch.chdir(tmp_path / "hf")
    for _ in range(2):
        assert llama_convert("convert", ".", "original", "--to", "meta").exit_code == 0
    assert contents(tmp_path / "hf/original").keys() == contents(tmp_path / "back").keys()


def test_the_output_next_to_the_checkpoint_that_is_found(source: Path, tmp_path: Path) -> None:
    """The first run's output is no second checkpoint for the next."""
    (tmp_path / "around").mkdir()
    source.rename(tmp_path / "around" / "7B")
    for _ in range(2):
        shard(tmp_path / "around", tmp_path / "around" / "mp1", mp=1)


def test_a_tokenizer_of_an_earlier_output_in_the_source(tmp_path: Path) -> None:
    """An HF folder without a tokenizer.model, whose output is called as Meta's files in a download are."""
    convert(invariant.META1, tmp_path / "hf")
    assert not (tmp_path / "hf/tokenizer.model").exists()
    for _ in range(2):
        convert(tmp_path / "hf", tmp_path / "hf/original", ConvertOptions(to="meta"))
        assert (tmp_path / "hf/original/tokenizer.model").exists()


def test_the_source_below_the_output(source: Path, tmp_path: Path) -> None:
    """Refused as any folder that holds something; replacing a model leaves it alone."""
    before = contents(source)
    with pytest.raises(ConflictError, match="holds meta"):
        convert(source, tmp_path)
    convert(source, tmp_path, ConvertOptions(overwrite=True))
    assert contents(source) == before
    assert (tmp_path / "config.json").exists()


# Where there is no folder to write to.


@pytest.mark.parametrize("where", ["out", "out/below"])
def test_a_dangling_link(source: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    for more in ([], ["--overwrite"], ["--array-task", "1/2"]):
        refused = llama_convert("convert", source, tmp_path / where, *more)
        assert refused.exit_code == 5, refused.stderr
        assert "a link to" in refused.stderr
        assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_no_staging_folder(source: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    {
        "file": lambda: (out / STAGING).write_text("mine"),
        "link": lambda: (out / STAGING).symlink_to(out / "deep"),
        "pipe": lambda: os.mkfifo(out / STAGING),
    }[kind]()
    refused = llama_convert("convert", source, out, "--overwrite")
    assert refused.exit_code == 5, refused.stderr
    assert list((out / "deep").iterdir()) == []


# A planted list of what is to be published.

MINE = {"thesis.tex": b"years of work", "config.json": b"{}", "model.safetensors": b"not yours"}


def lists(out: Path) -> dict[str, bytes]:
    """Lists that name files of others, in forms from wrong to right."""
    names = [*MINE, "not-there"]
    right = {name: [os.lstat(out / name).st_ino, os.lstat(out / name).st_size] for name in MINE}
    planted = {name: [12345, 13] for name in names}
    return {
        "unsealed": json.dumps({"plan": "x", "files": names, "older": names}).encode(),
        "names": sealed({"plan": "x", "files": names, "older": names}),
        "guessed": sealed({"plan": "x", "files": planted, "older": planted}),
        "half right": sealed({"plan": "x", "files": {**right, "../out/thesis.tex": [1, 2]}, "older": {}}),
        "folders": sealed({"plan": "x", "files": {"..": right["thesis.tex"], ".": [1, 1]}, "older": {}}),
        "types": sealed({"plan": 1, "files": {"thesis.tex": "x"}, "older": []}),
        "deep": sealed(json.loads("[" * 500 + "]" * 500)),
        "two": sealed({"plan": "x", "files": planted, "older": {}}) * 2,
    }


@pytest.mark.parametrize(
    "form", [*("unsealed", "names", "guessed", "half right"), *("folders", "types", "deep", "two")]
)
@pytest.mark.parametrize("place", ["", "run-00", "shared"])
def test_a_planted_list(source: Path, tmp_path: Path, form: str, place: str) -> None:
    out = tmp_path / "out"
    (out / STAGING / place).mkdir(parents=True)
    for name, content in MINE.items():
        (out / name).write_bytes(content)
    (out / STAGING / place / FINALIZING).write_bytes(lists(out)[form])
    for more in ([], ["--array-task", "1/1"]):
        refused = llama_convert("convert", source, out, *more)
        assert refused.exit_code == 5, refused.stderr
        assert {name: (out / name).read_bytes() for name in MINE} == MINE
    assert llama_convert("convert", source, out, "--overwrite").exit_code == 0
    assert (out / "thesis.tex").read_bytes() == MINE["thesis.tex"]
    assert not (out / STAGING).exists()


def test_a_list_whose_files_were_replaced(cases: dict[str, Case], tmp_path: Path) -> None:
    """A killed run's own list; since, a person has put files of the same names there."""
    case, out = cases["convert two ranks"], tmp_path / "out"
    run(case.command(out), signal_at(8, invariant.signal.SIGKILL, ["replace"]), [out])
    published = [path for path in out.iterdir() if path.is_file()]
    assert len(published) > 3
    for number, path in enumerate(published):
        (tmp_path / str(number)).write_bytes(b"mine")  # so that no inode is used again
        os.replace(tmp_path / str(number), path)
    refused = run(case.command(out))
    assert refused.exit_code == 5, refused
    assert all(path.read_bytes() == b"mine" for path in published)


def test_the_files_of_an_older_model(source: Path, tmp_path: Path) -> None:
    """What --overwrite removes: weights, settings, what the manifest names and no user has edited."""
    out = tmp_path / "out"
    convert(source, out, ConvertOptions(max_shard_size="100KB"))
    others = {
        "model-of-mine.safetensors": b"1",
        "consolidated.mine.pth": b"2",
        "notes.txt": b"3",
        "edited.txt": b"4",
    }
    for name, content in others.items():
        (out / name).write_bytes(content)
    (out / "carried.txt").write_bytes(b"as it was written")
    manifest = json.loads((out / "llama-convert.json").read_bytes())
    del manifest["seal"]
    manifest["files"]["carried.txt"] = content_record(b"as it was written")
    manifest["files"]["edited.txt"] = content_record(b"as it was written")
    (out / "llama-convert.json").write_bytes(manifest_json(manifest))
    convert(source, out, ConvertOptions(overwrite=True))
    left = contents(out)
    assert {name: left[name] for name in others} == others
    assert "carried.txt" not in left
    assert [name for name in left if name.startswith("model") and name not in others] == ["model.safetensors"]


# What is planted among staged files.


def plant_hard_links(folder: Path, remote_files: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (remote_files / str(number)).write_bytes(b"stays")
        os.link(remote_files / str(number), folder / name)


def plant_links(folder: Path, remote_files: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (remote_files / str(number)).write_bytes(b"stays")
        (folder / name).symlink_to(remote_files / str(number))


def plant_pipes(folder: Path, remote_files: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        os.mkfifo(folder / name)


def plant_folders(folder: Path, remote_files: Path, names: list[str]) -> None:
    for name in names:
        (folder / name / ".taken-x" / "shared").mkdir(parents=True)


@pytest.mark.parametrize("plant", [plant_hard_links, plant_links, plant_pipes, plant_folders])
@pytest.mark.parametrize("place", ["", "run-00", "shared", "run-00/.taken-00"])
@pytest.mark.parametrize("tasks", [False, True])
def test_planted_among_staged_files(
    cases: dict[str, Case],
    tmp_path: Path,
    plant: Callable[[Path, Path, list[str]], object],
    place: str,
    tasks: bool,
) -> None:
    """Nothing outside is written to, whatever stages the files."""
    case, out, remote_files = cases["convert two ranks"], tmp_path / "out", tmp_path / "elsewhere"
    remote_files.mkdir()
    weights = [name for name in case.whole if name.endswith(".safetensors")]
    journals = [".journal", *(f".journal.{name}" for name in weights)]
    lock = [".lock"] if not place else []
    plant(out / STAGING / place, remote_files, [*case.whole, *journals, *lock, ".probe", f"{FINALIZING}-new"])
    for share in ("1/2", "2/2") if tasks else ("",):
        ended = run(case.command(out, *(["--array-task", share] if share else [])))
        assert ended.exit_code == 0, ended.stderr
    assert set(contents(remote_files).values()) <= {b"stays"}
    assert check(out, case) == "new"
    assert not (out / STAGING).exists()
    assert all(path.stat().st_nlink == 1 for path in out.iterdir())


# Lines of a journal that are not what is written.


def entry_of(journal: Path) -> dict[str, Any]:
    return next(line for line in unsealed(journal.read_bytes()) if "name" in line)


LINES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a number": lambda entry: 7,
    "a list": lambda entry: ["name"],
    "nothing": lambda entry: {},
    "null": lambda entry: None,
    "no name": lambda entry: {key: value for key, value in entry.items() if key != "name"},
    "one key more": lambda entry: {**entry, "more": 1},
    "name a list": lambda entry: {**entry, "name": ["x"]},
    "another name": lambda entry: {**entry, "name": "model.layers.77.mlp.up_proj.weight"},
    "no digests": lambda entry: {**entry, "hashes": []},
    "digests a number": lambda entry: {**entry, "hashes": 5},
    "more digests": lambda entry: {
        **entry,
        "hashes": entry["hashes"] * 2,
        "crc32s": entry["crc32s"] * 2,
    },
    "digests of numbers": lambda entry: {**entry, "hashes": [1 for _ in entry["hashes"]]},
    "a negative checksum": lambda entry: {**entry, "crc32s": [-1 for _ in entry["crc32s"]]},
    "a large checksum": lambda entry: {**entry, "crc32s": [1 << 40 for _ in entry["crc32s"]]},
    "no checksums": lambda entry: {**entry, "crc32s": []},
    "cast a list": lambda entry: {**entry, "cast": [1, 2]},
    "cast with another key": lambda entry: {**entry, "cast": {**entry["cast"], "x": 1}},
    "cast of strings": lambda entry: {**entry, "cast": dict.fromkeys(entry["cast"], "1")},
    "oddities without first": lambda entry: {**entry, "value_scan": {"nonfinite": 0, "is_zero": False}},
    "first of three": lambda entry: {**entry, "value_scan": {**entry["value_scan"], "first": [1, 2, 3]}},
    "rounded a number": lambda entry: {**entry, "rounded": 3},
    "a true number": lambda entry: {**entry, "value_scan": {**entry["value_scan"], "nonfinite": True}},
    "complete, and more": lambda entry: {**entry, "complete": [1, 2]},
    "complete of a string": lambda entry: {"complete": "yes"},
    "deep": lambda entry: json.loads("[" * 900 + "]" * 900),
}


def deep() -> bytes:
    """A line that is nested deeper than a parser can follow."""
    import xxhash

    text = b"[" * 200_000 + b"]" * 200_000
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


@pytest.mark.parametrize("form", [*LINES, "very deep"])
@pytest.mark.parametrize("name", ["convert two ranks", "convert --to meta"])
def test_a_malformed_line(cases: dict[str, Case], tmp_path: Path, name: str, form: str) -> None:
    """Correctly sealed, and ignored as a torn one is: in a run's journal, and in those of array tasks."""
    case, out = cases[name], tmp_path / "out"
    run(case.command(out), signal_at(3, invariant.signal.SIGKILL, ["replace"]), [out])
    journal = staged(out) / ".journal"
    line = deep() if form == "very deep" else sealed(LINES[form](entry_of(journal)))
    journal.write_bytes(journal.read_bytes() + line)
    ended = run(case.command(out))
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"
    shutil.rmtree(out)
    assert run(case.command(out, "--array-task", "1/2")).exit_code == 0
    for journal in (out / STAGING / "shared").glob(".journal.*"):
        journal.write_bytes(journal.read_bytes() + line)
    for more in (["--array-task", "1/2"], ["--array-task", "2/2"], []):
        ended = run(case.command(out, *more))
        assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"


def test_a_complete_unit_whose_lines_are_lost(cases: dict[str, Case], tmp_path: Path) -> None:
    """A lost page of a journal: the unit is written again, by its task or by one process."""
    case = cases["convert two ranks"]
    for more in (["--array-task", "1/2"], []):
        out = tmp_path / f"out{len(more)}"
        run(case.command(out, "--array-task", "1/2"))
        for journal in (out / STAGING / "shared").glob(".journal.*"):
            head, *lines, complete = journal.read_bytes().splitlines(keepends=True)
            journal.write_bytes(b"".join([head, *lines[1:], complete]))
        ended = run(case.command(out, *more))
        assert ended.exit_code == 0, ended.stderr
        if more:
            assert run(case.command(out, "--array-task", "2/2")).exit_code == 0
        assert check(out, case) == "new"


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    finalization = Finalization("plan", {"a": (1, 2)}, {"b": (3, 4)})
    finalization.write(tmp_path, lambda _: None)
    assert Finalization.read(tmp_path) == finalization
    content = (tmp_path / FINALIZING).read_bytes()
    for position in range(len(content)):
        (tmp_path / FINALIZING).write_bytes(content[:position])
        assert Finalization.read(tmp_path) in (Finalization(), finalization)
    (tmp_path / FINALIZING).write_bytes(sealed(asdict(finalization) | {"files": {".lock": [1, 2]}}))
    assert Finalization.read(tmp_path) == Finalization()


def test_a_refused_input_leaves_what_others_staged(source: Path, tmp_path: Path) -> None:
    (source / "params.json").write_text("{}")
    with pytest.raises(InputError):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
