"""What is printed: text from files reaches a terminal as text alone, never as escapes, lines or markup."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from llama_convert.checkpoints.manifest import manifest_json, read_manifest
from llama_convert.cli import errors, terminal
from llama_convert.cli.terminal import Terminal, lines, styled
from llama_convert.cli.verify_report import print_report
from llama_convert.errors import InputError
from llama_convert.findings import Finding
from llama_convert.verification.report import Check, CheckReport, FileIdentity, Status, VerifyReport
from tests.peers import ROOT
from tests.run import llama_convert

FIXTURE = ROOT / "fixtures" / "llama2-mp2"
SGR = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = (
    "\x1b]0;pwned\x07\x1b[2J\x9b31m\x7f\r\n\u2028\u2029\u202e\u200b\ufeff\x00"
    "[red]x[/red][link=http://x]y[/link]:bomb:"
)
ANY = st.lists(st.integers(0, 0x10FFFF).map(chr) | st.sampled_from(HOSTILE), max_size=30).map("".join)


def assert_harmless(text: str, *, colored: bool = False) -> None:
    text = SGR.sub("", text) if colored else text
    assert all(letter.isprintable() or letter == "\n" for letter in text), ascii(text)


def console(stream: io.StringIO, *, colored: bool) -> Terminal:
    return Terminal(file=stream, force_terminal=colored, width=400)


@pytest.mark.parametrize("colored", [False, True])
@given(text=ANY)
def test_any_text(colored: bool, text: str) -> None:
    stream = io.StringIO()
    target = console(stream, colored=colored)
    table = Table("head", title=text)
    table.add_column(text)
    table.add_row(text, styled((text, "bold red")))
    target.print(text)
    target.print(styled(text, (text, "green")))
    target.print(lines([text, (text, "bold")], "red"))
    target.print(table)
    assert_harmless(stream.getvalue(), colored=colored)
    assert stream.getvalue().split("\n", 1)[0].count("[red]") == text.count("[red]")


@given(text=ANY)
def test_a_string_is_one_line(text: str) -> None:
    stream = io.StringIO()
    console(stream, colored=False).print(text, soft_wrap=True)
    assert stream.getvalue().count("\n") == 1


@given(text=ANY)
def test_json(text: str) -> None:
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        errors.print_json({text: [text, {"x": text}]})
    assert stream.getvalue().isascii()
    assert_harmless(stream.getvalue())
    assert json.loads(stream.getvalue())[text if text != "schema" else "schema"]


@given(text=ANY)
def test_report(text: str) -> None:
    finding = Finding("X", text, text, text, text, text, text)
    level = CheckReport(Check.STRUCTURE, Status.FAIL, text, [finding], 0.0)
    identity = FileIdentity(text, 1, text, text)
    report = VerifyReport(Path("x"), text, None, None, text, [level], [identity], {text: text})
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        print_report(report)
    assert_harmless(stream.getvalue())


# Hostile text in each place of a checkpoint.

Spoil = Callable[[Path], object]


def edit(name: str, change: Callable[[Any], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return spoil


def header(change: Callable[[Any], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + length])
        change(content)
        text = json.dumps(content).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def manifest(change: Callable[[Any], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        content = read_manifest(folder)
        assert content
        change(content)
        (folder / "llama-convert.json").write_bytes(manifest_json(content))

    return spoil


def index(map_: Callable[[str], tuple[str, str]]) -> Spoil:
    def spoil(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        names = [name for name in json.loads(data[8 : 8 + length]) if name != "__metadata__"]
        (folder / "model.safetensors").rename(folder / "model-x.safetensors")
        content = {"weight_map": dict(map(map_, names)), "metadata": {"total_size": HOSTILE}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return spoil


def renamed(content: Any) -> None:
    content[HOSTILE] = content.pop("lm_head.weight")


def vocabulary(content: Any) -> None:
    content["model"]["vocab"] = {
        name if number != 300 else HOSTILE: number for name, number in content["model"]["vocab"].items()
    }


def added(content: Any) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "id": 999, "content": HOSTILE})


def described(content: Any) -> None:
    content["added_tokens_decoder"] = {HOSTILE: {"content": HOSTILE}}


def template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / f"{FILE_NAME}.jinja").write_text("{% x")


CONFIG_KEYS = (
    "model_type", "torch_dtype", "hidden_act", "hidden_size", "vocab_size", "rope_theta", "eos_token_id",
    HOSTILE,
)  # fmt: skip
PARAMS_KEYS = ("dim", "n_layers", "vocab_size", "norm_eps", "use_scaled_rope", "vision_chunk_size", HOSTILE)
TWICE = f"{{{json.dumps(HOSTILE)}: 1, {json.dumps(HOSTILE)}: 2}}"
CHECKLIST = f"{HOSTILE}\n{'0' * 32}  {HOSTILE}\n{'0' * 32}  a\x1b[31m\n"
FILE_NAME = HOSTILE.replace("\x00", "").replace("/", "")
IN_HF: dict[str, Spoil] = {
    "file name": lambda folder: (folder / FILE_NAME).write_bytes(b"x"),
    "weights' name": lambda folder: (folder / f"model-{FILE_NAME}.safetensors").write_bytes(b"x"),
    "licence's name": lambda folder: (folder / f"LICENSE{FILE_NAME}").write_bytes(b"x"),
    **{
        f"config {key}": edit("config.json", lambda content, key=key: content.update({key: HOSTILE}))
        for key in CONFIG_KEYS
    },
    "config rope": edit("config.json", lambda content: content.update(rope_scaling={"rope_type": HOSTILE})),
    "config twice": lambda folder: (folder / "config.json").write_text(TWICE),
    "architectures": edit("config.json", lambda content: content.update(architectures=[HOSTILE])),
    "token": edit("tokenizer.json", vocabulary),
    "added token": edit("tokenizer.json", added),
    "merge": edit("tokenizer.json", lambda c: c["model"]["merges"].append([HOSTILE, HOSTILE])),
    "normalizer": edit("tokenizer.json", lambda c: c.update(normalizer={"type": HOSTILE})),
    "eos": edit("tokenizer_config.json", lambda c: c.update(eos_token=HOSTILE, pad_token=[HOSTILE] * 20)),
    "described": edit("tokenizer_config.json", described),
    "template": edit("tokenizer_config.json", lambda c: c.update(chat_template="{% " + HOSTILE)),
    "template's name": template,
    "tensor": header(renamed),
    "dtype": header(lambda content: content["lm_head.weight"].update(dtype=HOSTILE)),
    "metadata": header(lambda content: content.update(__metadata__={HOSTILE: HOSTILE})),
    "weight_map names": index(lambda name: (HOSTILE + name, "model-x.safetensors")),
    "weight_map files": index(lambda name: (name, HOSTILE)),
    "manifest": manifest(lambda c: c.update(dict.fromkeys(("release", "dtype", "version"), HOSTILE))),
    "manifest's files": manifest(lambda content: content["files"].update({HOSTILE: {}})),
    "manifest's tensors": manifest(lambda content: content["tensors"].update({HOSTILE: HOSTILE})),
}  # fmt: skip
IN_META: dict[str, Spoil] = {
    "file name": lambda folder: (folder / FILE_NAME).write_bytes(b"x"),
    **{
        f"params {key}": edit("params.json", lambda content, key=key: content.update({key: HOSTILE}))
        for key in PARAMS_KEYS
    },
    "checklist": lambda folder: (folder / "checklist.chk").write_text(CHECKLIST),
    "rank's name": lambda folder: (folder / f"consolidated.0{FILE_NAME}.pth").write_bytes(b"x"),
    "tokenizer": lambda folder: (folder / "tokenizer.model").write_text(f"{HOSTILE} 0\n"),
    "web page": lambda folder: (folder / "consolidated.00.pth").write_text(f"<html>{HOSTILE}"),
}  # fmt: skip
LEVELS = ("--check", "structure", "--check", "values", "--check", "tokenizer")
CASES = [
    *(pytest.param("hf", spoil, id=f"hf: {ascii(name)[:40]}") for name, spoil in IN_HF.items()),
    *(pytest.param("meta", spoil, id=f"meta: {ascii(name)[:40]}") for name, spoil in IN_META.items()),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "hf"
    assert llama_convert("convert", FIXTURE, folder, "-q").exit_code == 0
    return folder


@pytest.mark.parametrize(("layout", "spoil"), CASES)
def test_hostile_checkpoints(
    layout: str, spoil: Spoil, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(converted if layout == "hf" else FIXTURE, tmp_path / "x"))
    spoil(folder)
    other = FIXTURE if layout == "hf" else converted
    to, cut = ("meta", ("--max-shard-size", "1MB")) if layout == "hf" else ("hf", ("--mp", "1"))
    commands: tuple[tuple[Any, ...], ...] = (
        ("inspect", folder, "--tensors"),
        ("inspect", folder, other),
        ("verify", folder, *LEVELS),
        ("verify", folder, *LEVELS, "--json"),
        ("inspect", folder, "--json", "--debug"),
        ("convert", folder, tmp_path / "out", "--to", to, "--debug"),
        ("shard", folder, tmp_path / "cut", *cut),
        ("convert", folder, tmp_path / "dry", "--to", to, "--dry-run"),
    )
    for words in commands:
        for colored in (False, True):
            if colored:
                monkeypatch.setenv("FORCE_COLOR", "1")
            else:
                monkeypatch.delenv("FORCE_COLOR", raising=False)
            if colored and words[0] != "inspect":
                continue
            run = llama_convert(*words)
            assert run.exit_code != 70, run.stderr
            assert_harmless(run.stdout, colored=colored)
            assert_harmless(run.stderr, colored=colored)


def test_arguments() -> None:
    """What is typed is printed back."""
    for words in ((FILE_NAME,), ("inspect", FILE_NAME), ("verify", "x", f"--{FILE_NAME}")):
        run = llama_convert(*words)
        assert run.exit_code in (2, 3)
        assert_harmless(run.stdout + run.stderr)


def test_one_module_prints() -> None:
    """All text for people is made in `terminal`; rich's own classes for it are used nowhere else."""
    cli = Path(terminal.__file__).parent
    for file in cli.rglob("*.py"):
        if file.name in ("terminal.py", "documentation.py"):  # the package's own documentation
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("Text", "Text.assemble", "Text.from_markup", "Console", "print"), (
                    file,
                    called,
                )
                assert called != "typer.echo" or file.name in ("app.py", "help.py"), file  # text of ours


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("error: a b", ["error: a b"]),
        ("one two three four", ["one two", "three four"]),
        ("/a/path/that/is/longer is whole", ["/a/path/that/is/longer", "is whole"]),
        ("  expected [1, 2], got [2]", ["  expected", "[1, 2], got", "[2]"]),
        ("hint: Run: llama-convert convert a b", ["hint: Run: llama-convert convert a b"]),
        (
            "hint: Merge it first. Run: python merge.py a b",
            ["hint: Merge", "it first.", "Run: python merge.py a b"],
        ),
    ],
)
def test_messages_break_at_spaces(text: str, expected: list[str]) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, lines_ in ((Screen(), expected), (io.StringIO(), [text])):
        terminal.print_message(Terminal(file=stream, width=12), text)
        assert stream.getvalue().splitlines() == lines_


def test_errors_show_expected_and_found(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    error = InputError(
        "TENSOR_SHAPE", "Wrong shape.", file="a.pth", tensor="w", expected=[2], found=[3], hint="Do."
    )
    with pytest.raises(typer.Exit), errors.handle_errors(as_json=False, debug=False):
        raise error
    assert capsys.readouterr().err == "error: a.pth: w: Wrong shape.\n  expected [2], got [3]\nhint: Do.\n"
