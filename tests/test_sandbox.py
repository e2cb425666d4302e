"""Tokenizers that are built to take memory or time, or that crash a library: findings, within limits."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_convert.errors import InputError
from llama_convert.findings import SHOWN, Finding
from llama_convert.formats.strict_json import JsonError, parse_json
from llama_convert.verification import sandbox
from llama_convert.verification.sandbox import run_isolated
from llama_convert.verification.tokenizer import check_original, check_tokenizer
from llama_convert.verification.tokenizer.merges import order_of_parts
from llama_convert.verification.tokenizer.tokenizer_model import Original
from tests.peers import ROOT
from tests.run import llama_convert, measured

FIXTURE = ROOT / "fixtures" / "llama3.1-mp2"

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "hf"
    assert llama_convert("convert", FIXTURE, folder, "-q").exit_code == 0
    return folder


def changed(folder: Path, to: Path, name: str, change: Change) -> Path:
    shutil.copytree(folder, to)
    content = json.loads((to / name).read_text())
    change(content)
    (to / name).write_text(json.dumps(content))
    return to


def findings(folder: Path, code: str) -> list[Any]:
    run = llama_convert("verify", folder, "--check", "tokenizer", "--json")
    assert run.exit_code in (0, 1), run.stderr
    return [one for one in run.json["checks"][0]["findings"] if one["code"] == code]


def replace(times: int, most: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * most}
    return {"type": "Sequence", "normalizers": [step] * times}


BOMBS: dict[str, Change] = {
    "normalizer": lambda c: c.update(normalizer=replace(6, 50)),
    "doubling": lambda c: c.update(normalizer=replace(40, 2)),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory(bomb: str, converted: Path, tmp_path: Path) -> None:
    folder = changed(converted, tmp_path / "x", "tokenizer.json", BOMBS[bomb])
    (found,) = findings(folder, "TOKENIZER_RESOURCES")
    assert "of memory" in found["message"]
    command = [sys.executable, "-m", "llama_convert", "verify", str(folder), "--check", "tokenizer"]
    script = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode != 1)"
    assert measured([sys.executable, "-c", script, *command]).peak < 700 << 20


def test_time(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that do nothing, in little memory."""
    monkeypatch.setattr(sandbox, "_SECONDS", 2)
    step = {"type": "Replace", "pattern": {"String": "b"}, "content": "b"}
    slow = {"type": "Sequence", "normalizers": [step] * 5_000}
    folder = changed(converted, tmp_path / "x", "tokenizer.json", lambda c: c.update(normalizer=slow))
    with pytest.raises(InputError, match="s of CPU time"):
        run_isolated("encode", [folder / "tokenizer.json"], "b" * 100_000)


def test_panic(converted: Path, tmp_path: Path) -> None:
    """A regular expression that the library gives up on."""
    slow = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    folder = changed(converted, tmp_path / "x", "tokenizer.json", lambda c: c.update(pre_tokenizer=slow))
    with pytest.raises(InputError, match="cannot encode a text"):
        run_isolated("encode", [folder / "tokenizer.json"], "x" * 5_000)


def test_no_ids(converted: Path, tmp_path: Path) -> None:
    """Not an internal error of the logits check, which runs the ids."""
    nothing = {"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""}
    empty = {"normalizer": nothing, "post_processor": None}
    folder = changed(converted, tmp_path / "x", "tokenizer.json", lambda c: c.update(empty))
    run = llama_convert("verify", folder, "--check", "logits")
    assert run.exit_code == 1
    assert "returns no ids" in run.stdout


def test_crash(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that ends the process, which the server survives."""
    crash = "import os; from llama_convert.verification import sandbox as m; m._answer = lambda _: os.abort()"
    monkeypatch.setattr(sandbox, "_COMMAND", ["-c", f"{crash}; m.main()"])
    monkeypatch.setattr(sandbox, "_server", sandbox._Server())
    for _ in range(2):
        with pytest.raises(InputError, match="SIGABRT"):
            run_isolated("check_tokenizer", [converted], None)


def test_an_interruption_ends_the_fork(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next call is answered by another server."""
    server = sandbox._Server()
    monkeypatch.setattr(sandbox, "_server", server)
    assert run_isolated("check_tokenizer", [converted], None)
    assert server._process
    first = server._process
    monkeypatch.setattr(sandbox, "_HEAD", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        run_isolated("check_tokenizer", [converted], None)
    assert first.returncode == -signal.SIGKILL
    monkeypatch.undo()
    assert run_isolated("check_tokenizer", [converted], None)


class Interrupted(struct.Struct):
    def __new__(cls) -> Interrupted:
        return super().__new__(cls, "<iQ")

    def __init__(self) -> None:
        super().__init__("<iQ")

    def unpack(self, _: object) -> Any:
        raise KeyboardInterrupt


def test_a_fault_of_ours_is_no_finding(converted: Path) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'no such call'"):
        run_isolated("no such call", [converted])


def test_same_as_here(converted: Path, tmp_path: Path) -> None:
    folder = changed(converted, tmp_path / "x", "tokenizer.json", lambda c: c["model"]["merges"].reverse())
    here, there = check_tokenizer(folder), run_isolated("check_tokenizer", [folder], None)
    assert here
    assert here.findings
    assert [Finding(**finding) for finding in there["findings"]] == here.findings
    assert (there["summary"], there["measures"]) == (here.summary, here.measures)


def test_errors_come_back(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="cannot read it") as caught:
        run_isolated("encode", [tmp_path / "tokenizer.json"], "x")
    assert caught.value.code == "TOKENIZER_JSON"


# Templates and numbers.

TEMPLATES = {
    "nested": "{{ " + "(" * 50_000,
    "nested tags": "{% if x %}" * 5_000,
    "nested lists": "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
    "a long number": "{{ " + "1" * 5_000 + " }}",
    "a long float": "{{ 1e" + "9" * 5_000 + " }}",
    "a long operator chain": "{{ " + "1 + " * 50_000 + "1 }}",
    "a large loop": "{% for i in range(10 ** 12) %}{{ 'x' * 10 ** 12 }}{% endfor %}",
    "many openings": "{%" * 100_000,
}


REFUSED = TEMPLATES.keys() - {"a large loop", "a long float", "a long operator chain"}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_templates(name: str, file: str, converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "x"))
    text = TEMPLATES[name]
    (folder / file).write_text(text if file.endswith("jinja") else json.dumps({"chat_template": text}))
    found = findings(folder, "CHAT_TEMPLATE_INVALID")
    assert all(len(one["message"]) < 300 for one in found)
    assert bool(found) == (name in REFUSED)


@pytest.mark.parametrize("digits", [41, 4_300, 4_301, 100_000])
def test_long_numbers(digits: int) -> None:
    value = parse_json(b'{"x": ' + b"9" * digits + b"}")["x"]
    assert isinstance(value, float)
    assert parse_json(b"9" * 40) == int("9" * 40)


@pytest.mark.parametrize(
    "text", [b'{"a": 1, "a": 2}', b"[" * 101 + b"]" * 101, b"[" * 100_000, b"\xff", b"", b"{", b"[1,]"]
)
def test_not_json(text: bytes) -> None:
    with pytest.raises(JsonError):
        parse_json(text)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("key", ["vocab_size", "eos_token_id", "eos_token", "model", "added_tokens", "x"])
def test_numbers_in_every_file(name: str, key: str, converted: Path, tmp_path: Path) -> None:
    folder = changed(converted, tmp_path / "x", name, lambda c: c.update({key: 0}))
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace(f'"{key}": 0', f'"{key}": {"9" * 5_000}'))
    for words in (("verify", folder, "--check", "structure", "--check", "tokenizer"), ("inspect", folder)):
        assert llama_convert(*words).exit_code in (0, 1, 3)


# Costs that grow with the square of a number in a file.


class Counting(list[str]):
    """A list whose searches count, as they take a time that grows with it."""

    searches = 0

    def index(self, *arguments: Any) -> int:
        Counting.searches += 1
        return super().index(*arguments)

    def __contains__(self, item: object) -> bool:
        Counting.searches += 1
        return super().__contains__(item)


@pytest.mark.parametrize("count", [100, 1_000])
def test_tokens_in_reverse_order(count: int) -> None:
    parts = [chr(0x4E00 + number) for number in range(count)]
    names = Counting(["".join(parts[n : n + 2]) for n in range(count - 1)] + parts)
    order = {name: number for number, name in enumerate(names)}
    original = Original("x", "tiktoken", names, len(names), range(0), 0, order)
    Counting.searches = 0
    assert list(order_of_parts(original)) == []
    names.extend(triples := ["".join(parts[n : n + 3]) for n in range(count - 2)])
    reverse = {name: -number for number, name in enumerate(names)} | dict.fromkeys(triples, -10000)
    (found,) = order_of_parts(Original("x", "tiktoken", names, len(names), range(0), 0, reverse))
    assert "merged before its parts" in found.message
    assert Counting.searches < 5


def test_many_ends(converted: Path, tmp_path: Path) -> None:
    """A finding for each file and key, however long a list is."""
    values = list(range(10_000))
    lists = {"eos_token": [f"<{n}>" for n in range(10_000)], "eos_token_id": values}
    folder = changed(converted, tmp_path / "x", "tokenizer_config.json", lambda c: c.update(lists))
    found = findings(folder, "TOKEN_ROLE") + findings(folder, "EOS_ID")
    assert 2 <= len(found) <= 4
    assert "and 9,990 more" in found[0]["message"]
    assert all(len(str(one)) < 2_000 for one in found)


def test_many_templates(converted: Path, tmp_path: Path) -> None:
    templates = [{"name": str(number), "template": "{% x"} for number in range(1_000)]
    folder = changed(
        converted, tmp_path / "x", "tokenizer_config.json", lambda c: c.update(chat_template=templates)
    )
    assert len(findings(folder, "CHAT_TEMPLATE_INVALID")) == SHOWN + 1


def test_many_added_tokens(converted: Path, tmp_path: Path) -> None:
    """20,000 added tokens: the time of one expression of all of them would be that of 20,000 searches."""

    def add(content: Any) -> None:
        first = content["added_tokens"][0]
        content["added_tokens"] += [{**first, "id": 640 + n, "content": f"a{n:x}b"} for n in range(20_000)]

    folder = changed(converted, tmp_path / "x", "tokenizer.json", add)
    run = llama_convert("verify", folder, "--check", "tokenizer", "--json")
    assert not [one for one in run.json["checks"][0]["findings"] if one["code"] == "TOKENIZER_RESOURCES"]


@pytest.mark.parametrize("letter", ["a", " "])
def test_long_tokens(letter: str, tmp_path: Path) -> None:
    """Finding the merges of a token takes the square of its length."""
    ranks = [bytes([byte]) for byte in range(256)] + [letter.encode() * 100_000]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks))
    (tmp_path / "tokenizer.model").write_text("".join(lines))
    (found,) = check_original(tmp_path / "tokenizer.model").findings
    assert "a token has 100,000 characters" in found.message
