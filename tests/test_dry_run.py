"""`--dry-run` lists what a run writes; and options that would do nothing are refused."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_convert import ConvertOptions, convert, shard
from llama_convert.errors import InputError, RefusedError, UsageError
from tests import synthetic
from tests.peers import ROOT
from tests.run import llama_convert, sizes
from tests.synthetic import LLAMA2

META2, META3 = ROOT / "fixtures/llama2-mp2", ROOT / "fixtures/llama3.1-mp2"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in both layouts, with what people keep in them."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copytree(META2, folder / "meta2")
    shutil.copytree(META3, folder / "meta3")
    for name in ("LICENSE", "USE_POLICY.md", "notes.txt"):
        (folder / "meta3" / name).write_text(name)
    (folder / "template.jinja").write_text("{{ messages }}")
    synthetic.make(folder / "bare", LLAMA2.but(ranks=2))
    convert(folder / "meta2", folder / "hf2")
    convert(folder / "meta3", folder / "hf3", ConvertOptions(max_shard_size="100KB"))
    for name in ("hf2", "hf3"):
        shutil.copytree(folder / name, folder / f"{name} as downloaded")
        for ours in ("llama-convert.json", "README.md", "NOTICE"):
            (folder / f"{name} as downloaded" / ours).unlink(missing_ok=True)
    (folder / "hf3 as downloaded/README.md").write_text("a card of another user")
    (folder / "hf3 as downloaded/NOTICE.txt").write_text("a notice")
    shutil.copytree(folder / "hf2", folder / "hf2, tokenizer.json alone")
    (folder / "hf2, tokenizer.json alone/tokenizer.model").unlink()
    return folder


COMMANDS = [
    "convert meta2 out",
    "convert meta2 out --max-shard-size 100KB --dtype fp16",
    "convert meta3 out",
    "convert meta3 out --instruct --chat-template template.jinja",
    "convert meta3 out --special-tokens <|begin_of_text|>,<|end_of_text|>,<|one|>",
    "convert bare out",
    "convert meta3 out --model-size tokenizer_only",
    "convert hf2 out --to meta",
    "convert hf2 out --to meta --mp 2 --no-checklist",
    "convert hf3 out --to meta --mp 2",
    "convert 'hf3 as downloaded' out --to meta",
    "convert 'hf2, tokenizer.json alone' out --to meta",
    "convert hf3 out --to meta --tokenizer meta3/tokenizer.model --dtype fp16",
    "shard meta3 out --mp 1",
    "shard meta2 out --mp 4 --no-checklist",
    "shard hf3 out --max-shard-size 50KB",
    "shard 'hf3 as downloaded' out --max-shard-size 10MB",
    "shard 'hf2 as downloaded' out --max-shard-size 10MB",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_lists_what_is_written(sources: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """By name and size, as text and as JSON."""
    monkeypatch.chdir(sources)
    shutil.rmtree("out", ignore_errors=True)
    words = shlex.split(line)
    before = sorted(sources.rglob("*"))
    dry = llama_convert(*words, "--dry-run", "--json")
    assert dry.exit_code == 0, dry.stderr
    text = llama_convert(*words, "--dry-run")
    assert sorted(sources.rglob("*")) == before
    run = llama_convert(*words, "--json")
    assert run.exit_code == 0, run.stderr
    written = {file.name: file.stat().st_size for file in Path("out").iterdir()}
    assert sizes(dry.json) == written
    assert dry.json["warnings"] == run.json["warnings"]
    listed = [row.strip().split("  ") for row in text.stdout.splitlines()]
    assert {name: int(size.replace(",", "")) for size, name in listed} == written
    assert f"{len(written)} files, about " in text.stderr


def test_a_card_that_stays(sources: Path, tmp_path: Path) -> None:
    """A user's own card in the output is not among what is written."""
    convert(META2, tmp_path / "out")
    (tmp_path / "out/README.md").write_text("mine")
    options = ConvertOptions(overwrite=True, dry_run=True)
    listed = convert(META2, tmp_path / "out", options).files
    written = convert(META2, tmp_path / "out", ConvertOptions(overwrite=True)).files
    assert listed == written
    assert "README.md" not in listed


def test_an_array_task_lists_its_files(sources: Path, tmp_path: Path) -> None:
    options = ConvertOptions(max_shard_size="100KB", dry_run=True)
    every = convert(META2, tmp_path / "out", options).files
    shares = [
        convert(
            META2, tmp_path / "out", ConvertOptions(max_shard_size="100KB", dry_run=True, array_task=f"{n}/2")
        ).files
        for n in (1, 2)
    ]
    weights = {name: size for name, size in every.items() if name.endswith(".safetensors")}
    assert shares[0] | shares[1] == weights
    assert not set(shares[0]) & set(shares[1])


def test_strict_and_checklist_count(sources: Path, tmp_path: Path) -> None:
    """What shows before weights are read is refused by a dry run too."""
    with pytest.raises(RefusedError):
        convert(sources / "bare", tmp_path / "out", ConvertOptions(dry_run=True, strict=True))
    with pytest.raises(InputError, match="checklist"):
        convert(sources / "bare", tmp_path / "out", ConvertOptions(dry_run=True, compare_checklist=True))
    with pytest.raises(UsageError):
        convert(META3, tmp_path / "out", ConvertOptions(dry_run=True, special_tokens=("a", "a")))


NOTHING: dict[str, tuple[Callable[..., Any], str, dict[str, Any], str]] = {
    "template without tokenizer": (convert, "bare", {"chat_template": "template.jinja"}, "--chat-template"),
    "task and finish": (convert, "meta2", {"array_task": "1/2", "finish": True}, "--finish"),
    "finish, no resume": (convert, "meta2", {"finish": True, "resume": False}, "--no-resume"),
    "tokenizer of shards": (shard, "hf2", {"tokenizer": "meta2/tokenizer.model"}, "--tokenizer"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_options_that_would_do_nothing(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(sources)
    command, source, given, named = NOTHING[case]
    paths = {name: Path(value) for name, value in given.items() if name in ("tokenizer", "chat_template")}
    options = ConvertOptions(**{**given, **paths})
    more = {"max_shard_size": "1MB"} if command is shard else {}
    with pytest.raises(UsageError, match=named):
        command(source, tmp_path / "out", options=options, **more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    [
        "verify hf2 --check structure --prompt Once",
        "verify hf2 --check weights,values --positions 9",
        "verify hf2 --check structure --device cuda",
        "verify hf2 --max-new-tokens 3",
        "inspect hf2 --tensors no.such.name",
        "convert meta2 out --array-task 1/2 --finish",
    ],
)
def test_options_that_would_do_nothing_as_typed(
    sources: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(sources)
    run = llama_convert(*line.split(), "--json")
    assert run.exit_code == 2, run.stderr
    assert json.loads(run.stdout)["code"] == "BAD_USAGE"


def test_the_version_of_shards(sources: Path, tmp_path: Path) -> None:
    """`--llama-version` decides among what the files allow, also where nothing is converted."""
    given = ConvertOptions(llama_version="1")
    result = shard(sources / "hf2", tmp_path / "out", max_shard_size="1MB", options=given)
    assert result.version == "1"
