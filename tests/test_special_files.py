"""Pipes, devices, holes and links in place of each file that a command reads.

Every command ends by itself, in bounded memory, without an internal error."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_convert.errors import InputError
from llama_convert.formats import files
from llama_convert.formats.files import read_small
from tests.forks import Forks
from tests.peers import ROOT
from tests.run import llama_convert

FIXTURE = ROOT / "fixtures" / "llama2-mp2"
MOST = 1 << 20


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{path.name}")  # the path itself may be too long
        os.close(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 << 30)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def without_size(path: Path) -> None:
    """/proc says 0 bytes of files that have many."""
    path.symlink_to("/proc/kallsyms")


KINDS: tuple[Callable[[Path], None], ...] = (
    pipe, socket_at, device, Path.mkdir, hole, dangling, circle, without_size,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_read_small_refuses(kind: Callable[[Path], None], tmp_path: Path) -> None:
    kind(tmp_path / "x")
    with pytest.raises(InputError):
        read_small(tmp_path / "x", MOST)


def test_read_small_is_bounded_by_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows while it is read."""
    file = tmp_path / "x"
    file.write_bytes(b"1" * 10)
    real, read = os.preadv, []

    def growing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        with file.open("ab") as more:
            more.write(b"1" * MOST)
        read.append(real(descriptor, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", growing)
    with pytest.raises(InputError, match="Larger than 1,048,576 bytes"):
        read_small(file, MOST)
    assert sum(read) == MOST + 1


@pytest.mark.parametrize("size", [0, 1, MOST - 1, MOST])
def test_read_small_reads_all(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert read_small(tmp_path / "x", MOST) == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden(tmp_path: Path) -> None:
    (tmp_path / "x").touch(0)
    with pytest.raises(InputError, match="permission denied"):
        read_small(tmp_path / "x", MOST)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    for number, kind in enumerate(KINDS):
        kind(tmp_path / f"{number}")
    before = len(os.listdir("/proc/self/fd"))
    for file in tmp_path.iterdir():
        with pytest.raises(InputError):
            read_small(file, MOST)
    assert len(os.listdir("/proc/self/fd")) == before


# Every file that a command reads, replaced.

IN_HF = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates/x.jinja",
    "model.safetensors", "model.safetensors.index.json", "llama-convert.json", "README.md", "LICENSE",
)  # fmt: skip
IN_META = ("params.json", "tokenizer.model", "checklist.chk", "LICENSE", "consolidated.01.pth", "README.md")
IN_STAGING = (".lock", ".finalizing", ".journal", ".journal.model.safetensors")
LEVELS = ("--check", "structure", "--check", "values", "--check", "tokenizer")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "hf": (
        IN_HF,
        (
            ("verify", "HF", *LEVELS),
            ("verify", "HF", "--source", "META", *LEVELS, "--record"),
            ("inspect", "HF"),
            ("inspect", "HF", "META"),
            ("shard", "HF", "OUT", "--max-shard-size", "200KB"),
            ("convert", "HF", "OUT", "--to", "meta"),
            ("convert", "META", "HF", "--overwrite"),
        ),
    ),
    "meta": (
        IN_META,
        (
            ("convert", "META", "OUT", "--compare-checklist"),
            ("shard", "META", "OUT", "--mp", "1"),
            ("verify", "META", *LEVELS),
            ("verify", "HF", "--source", "META", *LEVELS),
            ("inspect", "META"),
        ),
    ),
    "staging": (IN_STAGING, (("convert", "META", "OUT"), ("convert", "META", "OUT", "--array-task", "1/1"))),
    "option": (
        ("file",),
        (
            ("convert", "META", "OUT", "--chat-template", "FILE"),
            ("convert", "META", "OUT", "--tokenizer", "FILE"),
            ("verify", "META", "--tokenizer", "FILE", *LEVELS),
            ("verify", "FILE"),
            ("inspect", "FILE"),
        ),
    ),
}
CASES = [
    (name, place, words)
    for place, (names, commands) in COMMANDS.items()
    for name in names
    for words in commands
]
QUICK = (pipe, device, hole)
"""Each stands for others: what waits, what never ends, what is too large."""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "hf"
    assert llama_convert("convert", FIXTURE, folder, "-q").exit_code == 0
    return folder


def _prepare(folder: Path, converted: Path) -> None:
    shutil.copytree(converted, folder / "hf")
    meta = Path(shutil.copytree(FIXTURE, folder / "meta"))
    sums = [(hashlib.md5(file.read_bytes()).hexdigest(), file.name) for file in sorted(meta.iterdir())]
    (meta / "checklist.chk").write_text("".join(f"{digest}  {name}\n" for digest, name in sums))


def _words(words: tuple[str, ...], folder: Path) -> list[Path | str]:
    places = {name.upper(): folder / name for name in ("hf", "meta", "out", "file")}
    return [places.get(word, word) for word in words]


@pytest.mark.parametrize("words", sorted({words for _, each in COMMANDS.values() for words in each}))
def test_commands_are_right(words: tuple[str, ...], forks: Forks, converted: Path, tmp_path: Path) -> None:
    """A mistake in a command would end it before it reads what the next test replaces."""
    _prepare(tmp_path, converted)
    template = FIXTURE.parent.parent / "llama_convert/tokenizers/templates/llama2.jinja"
    content = {"--chat-template": template, "--tokenizer": FIXTURE / "tokenizer.model"}
    file = next((content[word] for word in words if word in content), FIXTURE / "consolidated.00.pth")
    shutil.copyfile(file, tmp_path / "file")
    ended = forks.run(*_words(words, tmp_path))
    assert ended.exit_code == {("verify", "FILE"): 3}.get(words, 0), ended


def _cases() -> Iterator[Any]:
    """Every case with every kind; one of the `QUICK` kinds, in turn, outside the slow tests."""
    for number, case in enumerate(CASES):
        for kind in KINDS:
            is_quick = kind is QUICK[number % len(QUICK)]
            name, _, words = case
            marks = [] if is_quick else [pytest.mark.slow]
            yield pytest.param(*case, kind, marks=marks, id=f"{' '.join(words)}: {name}, {kind.__name__}")


@pytest.mark.parametrize(("name", "place", "words", "kind"), _cases())
def test_commands_end(
    name: str,
    place: str,
    words: tuple[str, ...],
    kind: Callable[[Path], None],
    forks: Forks,
    converted: Path,
    tmp_path: Path,
) -> None:
    _prepare(tmp_path, converted)
    folders = {"staging": tmp_path / "out" / ".llama-convert", "option": tmp_path}
    file = folders.get(place, tmp_path / place) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    kind(file)
    ended = forks.run(*_words(words, tmp_path))
    assert ended.exit_code in (0, 1, 2, 3, 4, 5), ended
    assert b"out of memory" not in ended.stderr
    assert ended.peak < 400 << 20


# That the kind cannot come back.

ALLOWED = {
    "formats/files.py": {"os.open"},
    "formats/strict_json.py": {"json.loads"},
    # What pip recorded about the installation.
    "extras.py": {"json.loads", "read_text"},
    # Files that are created, or are on disk for `fsync`.
    "conversion/atomic_file.py": {"os.open"},
    "conversion/disk.py": {"os.open", "open"},
    "conversion/output.py": {"os.open"},
    "conversion/ownership.py": {"os.open"},
    # The first bytes of a file that is regular, to see whether a report may replace it.
    "html_report/rendering.py": {"open", "os.open"},
    # A pipe between two processes of ours.
    "verification/sandbox.py": {"os.fdopen"},
    # The package's own.
    "json_output.py": {"read_text"},
    "cli/documentation.py": {"read_text"},
    "tokenizers/chat_templates.py": {"read_text"},
    "verification/official_files.py": {"open"},
    # The header of a file of weights, bounded and checked there.
    "formats/safetensors.py": {"json.loads"},
}
READING = {
    "read_bytes", "read_text", "open", "fdopen", "loads", "load", "copyfile", "copy", "copy2", "from_file",
    "fromfile", "memmap",
}  # fmt: skip
MODULES = {"os", "json", "shutil", "pickle", "io", "np", "numpy", "torch", "tomllib"}


def _reads(source: str) -> Iterator[str]:
    """What a module calls that reads a file: the name, after its module where it has one."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            yield "open"
        if isinstance(node.func, ast.Attribute) and node.func.attr in READING:
            of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            mode = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if node.func.attr in ("open", "fdopen") and any("w" in str(each) for each in mode):
                continue  # it writes
            if of in MODULES:
                yield f"{of}.{node.func.attr}"
            elif node.func.attr in ("read_bytes", "read_text", "from_file"):
                yield node.func.attr
            elif node.func.attr == "open" and (node.args or node.keywords):
                yield "open"


def test_one_function_reads() -> None:
    package = Path(files.__file__).parents[1]
    found = {}
    for file in package.rglob("*.py"):
        if reads := set(_reads(file.read_text(encoding="utf-8"))):
            found[file.relative_to(package).as_posix()] = reads
    assert found == ALLOWED


def test_what_reads_is_recognized() -> None:
    calls = {
        "open('x')": "open", "p.open('rb')": "open", "os.open(p, 0)": "os.open",
        "p.read_bytes()": "read_bytes", "p.read_text()": "read_text",
        "json.loads(t)": "json.loads", "shutil.copyfile(a, b)": "shutil.copyfile",
    }  # fmt: skip
    assert {call: next(_reads(call)) for call in calls} == calls


def test_the_user_s_folder_is_no_place_for_modules(tmp_path: Path, converted: Path) -> None:
    """A child process imports nothing from the folder that it is started in."""
    shutil.copytree(converted, tmp_path / "hf")
    for name in ("json.py", "llama_convert.py", "tokenizers.py"):
        (tmp_path / "hf" / name).write_text("open('imported', 'w')\n")
    command = [Path(sys.executable).with_name("llama-convert"), "verify", ".", "--check", "tokenizer"]
    run = subprocess.run(command, cwd=tmp_path / "hf", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "hf" / "imported").exists()
