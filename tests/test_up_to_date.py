"""The same command once more: nothing to do where all stands as it was written, else a conflict."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_convert import ConvertOptions, convert, shard
from llama_convert.errors import ConflictError, InputError, RefusedError
from llama_convert.observer import Observer
from tests import synthetic
from tests.peers import ROOT
from tests.run import llama_convert
from tests.synthetic import LLAMA2, LLAMA3

SHAPE = LLAMA2.but(ranks=2)


class Heard(Observer):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def says(self, text: str) -> bool:
        return any(text in note for note in self.notes)


def states(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.iterdir()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def once_more(
    source: Path, out: Path, options: ConvertOptions | None = None, heard: Heard | None = None
) -> bool:
    """Whether a second run leaves all as it stands."""
    before = states(out)
    result = convert(source, out, options, heard)
    assert states(out) == before
    assert result.files == {name: len(content) for name, (_, _, content) in before.items()}
    return True


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_nothing_to_do(tmp_path: Path, ranks: int) -> None:
    """In both layouts, whatever the cut; also with another number of workers, and told of as JSON."""
    synthetic.make(tmp_path / "meta", SHAPE)
    convert(tmp_path / "meta", tmp_path / "hf")
    heard = Heard()
    assert once_more(tmp_path / "meta", tmp_path / "hf", ConvertOptions(workers=1, block_size=4096), heard)
    assert heard.says("Already up to date: 5 files match the manifest.")
    back = ConvertOptions(to="meta", mp=ranks)
    convert(tmp_path / "hf", tmp_path / "back", back)
    assert once_more(tmp_path / "hf", tmp_path / "back", back)
    shard(tmp_path / "meta", tmp_path / "cut", mp=ranks)
    before = states(tmp_path / "cut")
    shard(tmp_path / "meta", tmp_path / "cut", mp=ranks)
    assert states(tmp_path / "cut") == before
    run = llama_convert("convert", tmp_path / "meta", tmp_path / "hf", "--json")
    assert run.exit_code == 0
    assert run.json["ok"]
    assert "up to date" in run.stderr


def test_repeated_kv_heads(tmp_path: Path) -> None:
    shape = LLAMA3.but(n_kv_heads=2, kv_repeats=2, ranks=4)
    synthetic.make(tmp_path / "meta", shape)
    shard(tmp_path / "meta", tmp_path / "cut", mp=4)
    before = states(tmp_path / "cut")
    shard(tmp_path / "meta", tmp_path / "cut", mp=4)
    assert states(tmp_path / "cut") == before


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda source, out: flip(out / "model.safetensors", -1 + (out / "model.safetensors").stat().st_size),
        lambda source, out: flip(out / "model.safetensors", 30),
        lambda source, out: (out / "config.json").write_text("{}"),
        lambda source, out: (out / "config.json").unlink(),
        lambda source, out: (out / "model.safetensors").unlink(),
        lambda source, out: (out / "llama-convert.json").unlink(),
        lambda source, out: flip(out / "llama-convert.json", 40),
        lambda source, out: synthetic.make(source, SHAPE, seed=1),
        lambda source, out: append(source / "params.json"),
    ],
)
def test_spoilt(tmp_path: Path, spoil: Callable[[Path, Path], object]) -> None:
    """Anything else that stands there is left as it is, and a person decides."""
    source, out = tmp_path / "meta", tmp_path / "out"
    synthetic.make(source, SHAPE)
    convert(source, out)
    spoil(source, out)
    before = states(out)
    with pytest.raises(ConflictError, match="holds"):
        convert(source, out)
    assert states(out) == before
    convert(source, out, ConvertOptions(overwrite=True))
    assert once_more(source, out)


def replace_keeping_times(source: Path, other: Path) -> None:
    """Put another model of the same shape in place of the source's, its files older than the output."""
    shutil.rmtree(source)
    shutil.copytree(other, source)
    for file in source.iterdir():
        os.utime(file, (1, 1))


HF = {
    "to meta": lambda source, out, **more: convert(source, out, ConvertOptions(to="meta", mp=2, **more)),
    "to meta, one rank": lambda source, out, **more: convert(source, out, ConvertOptions(to="meta", **more)),
    "cast": lambda source, out, **more: convert(source, out, ConvertOptions(to="meta", dtype="fp16", **more)),
    "files": lambda source, out, **more: shard(
        source, out, max_shard_size="20KB", options=ConvertOptions(**more)
    ),
}


@pytest.mark.parametrize("changed", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight"])
@pytest.mark.parametrize("name", HF)
def test_another_model_of_the_same_shape(tmp_path: Path, name: str, changed: str) -> None:
    """Nothing in the headers or times of safetensors files shows it; one value is enough."""
    command, source, out = HF[name], tmp_path / "hf", tmp_path / "out"
    state = synthetic.weights(SHAPE)
    for folder, number in (("one", 1.0), ("two", 2.0)):
        state[META_NAMES[changed]].view(-1)[-1] = number
        synthetic.write(tmp_path / f"{folder} meta", SHAPE, synthetic.cut(SHAPE, state))
        convert(tmp_path / f"{folder} meta", tmp_path / folder)
    for folder in ("one", "two"):
        for file in ("llama-convert.json", "README.md"):
            (tmp_path / folder / file).unlink()
    shutil.copytree(tmp_path / "one", source)
    command(source, out)
    before = states(out)
    for touched in source.iterdir():
        os.utime(touched)
    command(source, out)
    for task in ("1/2", "2/2"):
        command(source, out, array_task=task)
    command(source, out, finish=True)
    assert states(out) == before
    replace_keeping_times(source, tmp_path / "two")
    for more in ({}, {"finish": True}):
        with pytest.raises(ConflictError, match="holds"):
            command(source, out, **more)
    found = 0
    for task in ("1/2", "2/2"):
        try:
            command(source, out, array_task=task)
        except ConflictError:
            found += 1
    assert found > 0
    assert states(out) == before
    command(source, out, overwrite=True)
    assert {name: content for name, (_, _, content) in states(out).items()} != {
        name: content for name, (_, _, content) in before.items()
    }
    command(source, out)


META_NAMES = {
    "model.norm.weight": "norm.weight",
    "model.layers.1.self_attn.q_proj.weight": "layers.1.attention.wq.weight",
}


def test_torch_files_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        for seed in (0, 1):
            synthetic.make(tmp_path / str(seed), SHAPE, seed=seed)
    finally:
        torch.serialization.set_crc32_options(True)
    source, out = tmp_path / "meta", tmp_path / "out"
    shutil.copytree(tmp_path / "0", source)
    convert(source, out)
    assert once_more(source, out)
    replace_keeping_times(source, tmp_path / "1")
    with pytest.raises(ConflictError):
        convert(source, out)


def test_touched(tmp_path: Path) -> None:
    """Times decide nothing."""
    source, out = tmp_path / "meta", tmp_path / "out"
    synthetic.make(source, SHAPE)
    convert(source, out)
    for file in source.iterdir():
        os.utime(file)
    assert once_more(source, out)


class TestWhatGoesAlong:
    """Files that the output is made of, besides weights, count by their content."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        shutil.copytree(ROOT / "fixtures/llama3.1-mp2", tmp_path / "meta")
        (tmp_path / "meta/tokenizer.model").rename(tmp_path / "tokenizer.model")
        (tmp_path / "template").write_text("one")
        (tmp_path / "meta/LICENSE").write_text("one")
        return tmp_path / "meta"

    def replaced(self, source: Path, options: ConvertOptions | None = None) -> None:
        """By the same command, unless the folder holds more than the earlier run wrote."""
        options, out = options or ConvertOptions(), source.parent / "out"
        note = out / "my notes"
        note.write_text("mine")
        before = states(out)
        for share in (None, "1/1"):
            with pytest.raises(ConflictError, match="holds"):
                convert(source, out, replace(options, array_task=share))
        assert states(out) == before
        note.unlink()
        assert convert(source, out, options).finalized
        assert once_more(source, out, options)
        convert(source, source.parent / "expected", replace(options, overwrite=True))
        assert contents(out) == contents(source.parent / "expected")

    def test_a_tokenizer_that_is_named_later(self, source: Path, tmp_path: Path) -> None:
        shutil.move(tmp_path / "tokenizer.model", tmp_path / "meta.model")
        convert(source, tmp_path / "out")
        named = ConvertOptions(tokenizer=tmp_path / "meta.model")
        self.replaced(source, named)
        assert (tmp_path / "out/tokenizer.json").exists()
        assert once_more(source, tmp_path / "out", named)
        self.replaced(source)

    def test_an_edited_tokenizer(self, source: Path, tmp_path: Path) -> None:
        named = ConvertOptions(tokenizer=tmp_path / "tokenizer.model")
        convert(source, tmp_path / "out", named)
        os.utime(tmp_path / "tokenizer.model")
        assert once_more(source, tmp_path / "out", named)
        first, second, *rest = (tmp_path / "tokenizer.model").read_bytes().splitlines(keepends=True)
        swapped = [first.split()[0] + b" " + second.split()[1], second.split()[0] + b" " + first.split()[1]]
        content = b"\n".join([*sorted(swapped, key=lambda line: int(line.split()[1])), b""])
        (tmp_path / "tokenizer.model").write_bytes(content + b"".join(rest))
        os.utime(tmp_path / "tokenizer.model", (1, 1))
        self.replaced(source, named)

    def test_a_chat_template(self, source: Path, tmp_path: Path) -> None:
        options = ConvertOptions(tokenizer=tmp_path / "tokenizer.model", chat_template=tmp_path / "template")
        convert(source, tmp_path / "out", options)
        assert once_more(source, tmp_path / "out", options)
        self.replaced(source, replace(options, chat_template=None))
        (tmp_path / "template").write_text("two")
        os.utime(tmp_path / "template", (1, 1))
        self.replaced(source, options)

    @pytest.mark.parametrize("name", ["LICENSE", "USE_POLICY.md"])
    def test_a_license(self, source: Path, tmp_path: Path, name: str) -> None:
        """Changed, or new."""
        convert(source, tmp_path / "out")
        (source / name).write_text("two")
        os.utime(source / name, (1, 1))
        self.replaced(source)

    def test_settings_that_are_carried(self, source: Path, tmp_path: Path) -> None:
        """Of a Hugging Face folder that is sharded."""
        convert(source, tmp_path / "hf")
        shard(tmp_path / "hf", tmp_path / "out", max_shard_size="1MB")
        file = tmp_path / "hf/generation_config.json"
        file.write_bytes(file.read_bytes() + b"\n")
        os.utime(file, (1, 1))
        shard(tmp_path / "hf", tmp_path / "out", max_shard_size="1MB")
        assert (tmp_path / "out/generation_config.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ConvertOptions(dtype="fp32"),
        ConvertOptions(max_shard_size="20KB"),
        ConvertOptions(resume=False),
    ],
)
def test_another_conversion(tmp_path: Path, options: ConvertOptions) -> None:
    synthetic.make(tmp_path / "meta", SHAPE)
    convert(tmp_path / "meta", tmp_path / "out")
    with pytest.raises(ConflictError):
        convert(tmp_path / "meta", tmp_path / "out", options)


@pytest.mark.parametrize("options", [ConvertOptions(instruct=True), ConvertOptions(llama_version="1")])
def test_other_settings_of_the_same_weights(tmp_path: Path, options: ConvertOptions) -> None:
    synthetic.make(tmp_path / "meta", SHAPE)
    for name in ("out", "expected"):
        convert(tmp_path / "meta", tmp_path / name, options if name == "expected" else None)
    assert contents(tmp_path / "out") != contents(tmp_path / "expected")
    convert(tmp_path / "meta", tmp_path / "out", options)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_what_is_wrong_is_reported(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "meta", SHAPE)
    out = tmp_path / "out"
    convert(tmp_path / "meta", out)
    flip(out / "model.safetensors", out.joinpath("model.safetensors").stat().st_size - 1)
    heard = Heard()
    with pytest.raises(ConflictError):
        convert(tmp_path / "meta", out, observer=heard)
    assert heard.says("Not up to date: model.safetensors: model.norm.weight differs")


def test_the_same_at_any_path(tmp_path: Path) -> None:
    """The manifest does not tell where its source lay, nor when it was written."""
    for name in ("one", "two"):
        synthetic.make(tmp_path / name / "meta", SHAPE)
        convert(tmp_path / name / "meta", tmp_path / name / "out")
    one, two = (json.loads((tmp_path / n / "out/llama-convert.json").read_text()) for n in ("one", "two"))
    assert one == two


def test_strict_remembers_warnings(tmp_path: Path) -> None:
    state = synthetic.weights(LLAMA2)
    state["norm.weight"][3] = float("nan")
    synthetic.write(tmp_path / "meta", LLAMA2, synthetic.cut(LLAMA2, state))
    convert(tmp_path / "meta", tmp_path / "out")
    assert once_more(tmp_path / "meta", tmp_path / "out")
    with pytest.raises(RefusedError, match="had 2 warnings"):
        convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(strict=True))


class TestChecklist:
    """``--compare-checklist``."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        synthetic.make(tmp_path / "first", SHAPE)
        shard(tmp_path / "first", tmp_path / "meta", mp=2)
        return tmp_path / "meta"

    def test_agrees(self, source: Path, tmp_path: Path) -> None:
        heard = Heard()
        convert(source, tmp_path / "out", ConvertOptions(compare_checklist=True), heard)
        assert heard.says("All 3 files match checklist.chk.")

    def test_exchanged_ranks(self, source: Path, tmp_path: Path) -> None:
        """Nothing in the files tells it; the checklist does."""
        one, two = source / "consolidated.00.pth", source / "consolidated.01.pth"
        one.rename(source / "aside")
        two.rename(one)
        (source / "aside").rename(two)
        run = llama_convert("convert", source, tmp_path / "out", "--compare-checklist", "--json")
        assert run.exit_code == 3
        assert run.json["code"] == "INPUT_CHECKLIST"
        assert run.json["file"] == str(one)
        assert "it is that of consolidated.01.pth." in run.json["message"]
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "content",
        [None, b"", b"<html>\n", b"0" * 32 + b"  consolidated.07.pth\n", b"0" * 32 + b"  params.json\n"],
    )
    def test_refused(self, source: Path, tmp_path: Path, content: bytes | None) -> None:
        """It was asked for, so nothing to compare with is a no."""
        (source / "checklist.chk").unlink()
        if content is not None:
            (source / "checklist.chk").write_bytes(content)
        for options in (ConvertOptions(compare_checklist=True), ConvertOptions(compare_checklist=True, mp=4)):
            with pytest.raises(InputError) as refused:
                convert(source, tmp_path / "out", options)
            assert refused.value.code == "INPUT_CHECKLIST"

    def test_unusual_names(self, source: Path, tmp_path: Path) -> None:
        """Names that no file can have are files that are not here."""
        with (source / "checklist.chk").open("a") as stream:
            stream.write(f"{'0' * 32}  {'x' * 300}\n")
        with pytest.raises(InputError, match="Missing file, listed in checklist"):
            convert(source, tmp_path / "out", ConvertOptions(compare_checklist=True))
        run = llama_convert("verify", source)
        assert run.exit_code == 1
