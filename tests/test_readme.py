"""What the README shows is run as it stands, and what it lists is what there is."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_convert import convert, errors
from llama_convert.verification.isolated import _ONE_THREAD
from tests import plant, readme, synthetic
from tests.peers import ROOT
from tests.run import llama_convert
from tests.synthetic import Shape

TEXT = readme.README.read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHELL = [
    line
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("llama-convert ")
]
FIXTURES = ROOT / "fixtures"


def section(title: str) -> str:
    """What stands below a heading, up to the next of any level."""
    _, found, rest = TEXT.partition(f"# {title}\n")
    assert found, title
    return rest.partition("\n#")[0]


def first_column(head: str) -> set[str]:
    """The code words in the first column of the table with this head."""
    table = TEXT.partition(f"| {head} |")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_python_examples(tmp_path: Path) -> None:
    assert PYTHON
    shutil.copytree(FIXTURES / "llama3.1-mp2", tmp_path / "Llama3.1-8B-Instruct")
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(PYTHON)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "True []" in run.stdout


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything that the examples name, under the name that they give it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    llama2, llama3 = FIXTURES / "llama2-mp2", FIXTURES / "llama3.1-mp2"
    for name in (
        "Llama3.1-8B-Instruct",
        "Llama-3.3-70B-Instruct",
        "Llama3.1-405B-Instruct",
        "Llama3.1-70B",
        "SRC",
    ):
        shutil.copytree(llama3, tmp_path / name)
    plant.edit_json(tmp_path / "SRC/params.json", lambda params: params.pop("use_scaled_rope"))
    shutil.copytree(llama3, tmp_path / ".llama/checkpoints/Llama3.1-8B-Instruct")
    shutil.copytree(llama2, tmp_path / "Llama-2-70b")
    shutil.copytree(llama2, tmp_path / "LLaMA/7B")
    (tmp_path / "LLaMA/7B/tokenizer.model").rename(tmp_path / "LLaMA/tokenizer.model")
    shutil.copy(llama3 / "consolidated.00.pth", tmp_path)
    for name in ("llama-3.1-8b", "my-fine-tune", "llama-3.1-8b-instruct"):
        convert(llama3, tmp_path / name)
    convert(tmp_path / "SRC", tmp_path / "OUT")
    synthetic.make(tmp_path / "wide", Shape(n_heads=8, n_kv_heads=8, ranks=8))
    convert(tmp_path / "wide", tmp_path / "my-fine-tuned-70b")
    return tmp_path


@pytest.mark.parametrize("line", SHELL, ids=lambda line: line.partition("#")[0].strip())
def test_command_examples(models: Path, line: str) -> None:
    words = [
        str(Path(word).expanduser()) if word[0] == "~" else word for word in shlex.split(line, comments=True)
    ]
    words = ["cpu" if word == "cuda" else word for word in words]
    if words[1] == "convert" and len(words) > 3:
        shutil.rmtree(models / words[3], ignore_errors=True)
    run = llama_convert(*words[1:])
    assert run.exit_code == 0, run.stderr


def test_every_command_has_examples() -> None:
    assert {line.split()[1] for line in SHELL} >= set(readme.COMMANDS)


def test_computed_parts_are_current() -> None:
    """`python -m tests.readme` renews them."""
    assert readme.renewed(TEXT) == TEXT
    with pytest.raises(AssertionError, match="0 places for 'sizes'"):
        readme.renewed(TEXT.replace("computed: sizes", "computed"))


def test_codes() -> None:
    """Every stable word, and no other."""
    table = TEXT.partition("| code | meaning |\n|---|---|\n| `BAD_USAGE`")[2].partition("\n\n")[0]
    listed = {
        "BAD_USAGE",
        *re.findall(r"`([A-Z_]{3,})`", "\n".join(row.split(" | ")[0] for row in table.splitlines())),
    }
    words = re.compile(r"[A-Z]{2,}(_[A-Z0-9]+)+|STOPPED|INTERNAL|MEMORY|STRIDED|HUB")
    used = {word for word in _strings() if words.fullmatch(word)} - {
        "OMP_WAIT_POLICY",
        "CHAT_TEMPLATES",
        *_ONE_THREAD,
    }
    kinds = ("PARAMS", "CONFIG", "INDEX", "MANIFEST")
    used |= {f"{kind}_{what}" for kind in kinds for what in ("MISSING", "JSON", "VALUE")}
    used |= {f"{kind}_KEYS" for kind in ("PARAMS", "CONFIG")}
    assert listed == used


def _strings() -> Iterator[str]:
    for file in (ROOT / "llama_convert").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_exit_codes() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", section("Exit codes, JSON, and codes of errors"), re.MULTILINE)
    listed = {int(code) for row in rows for code in row.split(",")}
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code"))
    assert listed == {0, 130, 143, 129} | {kind.exit_code for kind in kinds}


def documented(*heads: str) -> set[str]:
    return {word for head in heads for word in first_column(f"{head} |")}


def keys_of_a_run(*arguments: Any) -> set[str]:
    answer: dict[str, Any] = json.loads(llama_convert(*arguments, "--json").stdout)
    return set(answer)


def test_json_fields(tmp_path: Path) -> None:
    source, out = FIXTURES / "llama2-mp2", tmp_path / "out"
    common = documented("of all")
    assert keys_of_a_run("convert", source, out, "--verify") == common | documented("of `convert`, `shard`")
    assert keys_of_a_run("verify", out) == common | documented("of `verify`")
    assert keys_of_a_run("inspect", source, "--stats") == common | documented("of `inspect PATH`")
    assert keys_of_a_run("inspect", source, out) == common | documented("of `inspect A B`")
    wrong = keys_of_a_run("convert", source, out, "--mp", "2")
    assert wrong == (common | documented("of errors")) - {"command"}


def test_links() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target


def test_troubleshooting_quotes_what_is_said() -> None:
    """Every message that is explained is one that the tool still says."""
    said = " ".join(_strings())
    quoted = list(re.findall(r"^\| `([^`]+)` \|", section("Troubleshooting"), re.MULTILINE))
    assert len(quoted) > 15
    assert [message for message in quoted if message not in said] == []
