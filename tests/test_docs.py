"""What the documents show runs, what they list exists, and their links lead somewhere."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_convert import convert, errors
from llama_convert.cli.documentation import KINDS, pages
from llama_convert.cli.dropin import rewrite_legacy_options
from tests import docs, plant, synthetic
from tests.docs import PAGES, README, Document
from tests.peers import ROOT
from tests.run import llama_convert
from tests.synthetic import Shape

FIXTURES = ROOT / "fixtures"
PEERS = ROOT / ".peers"
DOCUMENTS = docs.documents()
GITHUB = [Document(path) for path in sorted((ROOT / ".github").glob("*.md"))]
RUNS, SHOWN = "sh", "bash"
"""Languages of blocks: those whose commands the tests run, and those that need a network or a cluster."""


def named(document: Document) -> str:
    return document.name


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the examples name, under the name that they give it."""
    folder = tmp_path_factory.mktemp("inputs")
    llama2, llama3 = FIXTURES / "llama2-mp2", FIXTURES / "llama3.1-mp2"
    flat = ("Llama-3.3-70B-Instruct", "Llama3.1-70B", "Llama-3.1-405B-Instruct", "SRC")
    for name in (*flat, "Llama-3.1-8B-Instruct/original", ".llama/checkpoints/Llama3.1-8B-Instruct"):
        shutil.copytree(llama3, folder / name)
    plant.edit_json(folder / "SRC/params.json", lambda params: params.pop("use_scaled_rope"))
    shutil.copytree(llama2, folder / "Llama-2-70b")
    shutil.copytree(llama2, folder / "LLaMA/7B")
    (folder / "LLaMA/7B/tokenizer.model").rename(folder / "LLaMA/tokenizer.model")
    shutil.copy(llama3 / "consolidated.00.pth", folder)
    for name in ("llama-3.1-8b-hf", "my-fine-tune", "llama-3.1-8b-instruct"):
        convert(folder / "Llama-3.1-8B-Instruct", folder / name)
    _training_checkpoints(folder)
    synthetic.make(folder / "wide", Shape(n_heads=8, n_kv_heads=8, ranks=8))
    convert(folder / "wide", folder / "my-fine-tuned-70b")
    return folder


def _training_checkpoints(folder: Path) -> None:
    """The converted model as training programs save it."""
    import torch.distributed.checkpoint as dcp

    shutil.copytree(folder / "llama-3.1-8b-hf", folder / "pytorch-bin-model")
    file = folder / "pytorch-bin-model/model.safetensors"
    state = load_file(file)
    file.unlink()
    torch.save(state, file.with_name("pytorch_model.bin"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is one process only
        dcp.save({"model": state}, checkpoint_id=folder / "step-500")


class TestExamples:
    """Every example in a `sh` or `python` block runs, in the order of its page."""

    @pytest.fixture
    def here(self, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        shutil.copytree(inputs, tmp_path / "here")
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setenv("HOME", str(tmp_path / "here"))
        return tmp_path / "here"

    @pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.commands(RUNS)], ids=named)
    def test_commands(self, document: Document, here: Path) -> None:
        written: set[str] = set()
        for line in document.commands(RUNS):
            program, *arguments = shlex.split(line, comments=True)
            if program != "llama-convert":
                assert program in ("pip", "pipx", "uvx", "hf", "llama-model"), line
                continue
            arguments = [str(Path(a).expanduser()) if a[0] == "~" else a for a in arguments]
            arguments = ["cpu" if a == "cuda" else a for a in arguments]
            output = None
            if ">" in arguments:
                *arguments, _, output = arguments
            destination = _destination(arguments)
            if destination and destination not in written:
                shutil.rmtree(here / destination, ignore_errors=True)
                written.add(destination)
            run = llama_convert(*arguments)
            assert run.exit_code == 0, f"{line}\n{run.stdout}{run.stderr}"
            if output:
                assert json.loads(run.stdout)["ok"]

    @pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.code("python")], ids=named)
    def test_python(self, document: Document, here: Path) -> None:
        code = "\n".join(document.code("python"))
        environment = dict(os.environ)
        if "transformers" in code:
            environment["PYTHONPATH"] = str(PEERS / "transformers-5")
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, env=environment)
        assert run.returncode == 0, run.stderr
        if "report.ok" in code:
            assert re.search(r"^True( \[\])?$", run.stdout, re.MULTILINE), run.stdout

    def test_every_command_has_an_example(self) -> None:
        shown = {line.split()[1] for d in DOCUMENTS for line in d.commands(RUNS) if "llama-convert " in line}
        assert shown >= {"convert", "shard", "verify", "inspect", "explain"}

    @pytest.mark.parametrize("document", DOCUMENTS, ids=named)
    def test_options_in_skipped_examples(self, document: Document) -> None:
        assert document.languages <= {RUNS, SHOWN, "python", "yaml", "text"}
        text = "\n".join(document.code(SHOWN, "yaml")).replace("\\\n", " ")
        text = re.sub(r"\n\s+(?=--)", " ", text)  # YAML joins lines
        commands = docs.commands_of_the_app()
        for line in re.findall(r"llama-convert ((?!--install|--show).+)", text):
            command, *rest = rewrite_legacy_options(line.split())
            known = {name for option in commands[command].params for name in option.opts}
            assert {each for each in rest if each.startswith("--")} <= known, line

    def test_options_of_download_commands(self) -> None:
        """They are those of the programs of other projects that examples call."""
        hf = subprocess.run(
            [sys.executable, PEERS / "transformers-5/bin/hf", "download", "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(PEERS / "transformers-5"), "COLUMNS": "200"},
        ).stdout
        llama_model = (PEERS / "meta/llama_models/cli/download.py").read_text(encoding="utf-8")
        for program, known in (("hf", hf), ("llama-model", llama_model)):
            lines = [shlex.split(line) for d in DOCUMENTS for line in d.commands(RUNS)]
            options = {each for line in lines if line[0] == program for each in line if each.startswith("--")}
            assert options
            assert options <= set(re.findall(r"--[\w-]+", known))


def _destination(arguments: list[str]) -> str | None:
    """The folder that a `convert` or `shard` command writes."""
    command, *rest = rewrite_legacy_options(arguments)
    if command not in ("convert", "shard"):
        return None
    return rest[rest.index("--output-dir") + 1] if "--output-dir" in rest else rest[1]


class TestReference:
    """Tables and sections match the source."""

    def test_computed_parts_are_current(self) -> None:
        """`python -m tests.docs` renews them."""
        assert sorted(docs.marked()) == sorted(docs.parts())
        for document in DOCUMENTS:
            assert docs.renewed(document.text) == document.text, document.name

    def test_error_codes(self) -> None:
        listed = re.findall(r"^### (.+)$", docs.page("error-codes").text, re.MULTILINE)
        assert len(listed) == len(set(listed))
        codes, perhaps = codes_in_the_source()
        assert codes - set(listed) == set(), "not documented"
        assert set(listed) - codes - perhaps == set(), "not in the source"

    def test_each_error_code_is_explained(self) -> None:
        page = pages()["error-codes"]
        for code in page.headings:
            section = page.section(code)
            assert section
            labels = re.findall(r"^- \*\*(.+?):\*\* \S", section, re.MULTILINE)
            assert labels == ["Usual cause", "What to do", "Exit code"], code
            assert len(section.splitlines()[2]) > 10, code

    def test_exit_codes_of_error_codes(self) -> None:
        page = pages()["error-codes"]
        listed = {code: (page.section(code) or "").partition("**Exit code:** ")[2] for code in page.headings}
        raised = set(exit_codes_in_the_source())
        assert len(raised) > 50
        assert [(c, n) for c, n in raised if str(n) not in listed[c].strip().split(", ")] == []

    def test_exit_codes(self) -> None:
        rows = re.findall(r"^\| ([\d, ]+) \|", docs.page("exit-codes").text, re.MULTILINE)
        listed = {int(code) for row in rows for code in row.split(",")}
        kinds = (
            kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")
        )
        assert listed == {0, 130, 143, 129} | {kind.exit_code for kind in kinds}

    def test_json_fields(self, tmp_path: Path) -> None:
        def fields(title: str) -> set[str]:
            return docs.page("json").first_column(title)

        def emitted(*arguments: Any) -> set[str]:
            return set(llama_convert(*arguments, "--json").json)

        source, out = FIXTURES / "llama2-mp2", tmp_path / "out"
        common = fields("envelope")
        assert emitted("convert", source, out, "--verify") == common | fields("conversion")
        assert emitted("verify", out) == common | fields("verification")
        assert emitted("inspect", source, "--stats") == common | fields("inspection")
        assert emitted("inspect", source, out) == common | fields("comparison")
        assert emitted("convert", source, out, "--mp", "2") == common | fields("error")

    def test_manifest_fields(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        llama_convert("convert", FIXTURES / "llama2-mp2", out, "--verify")
        manifest = json.loads((out / "llama-convert.json").read_text())
        assert set(manifest) == docs.page("manifest").first_column("Fields")

    def test_messages_that_are_explained_exist(self) -> None:
        texts = " ".join(strings(nodes_in_the_source()))
        rows = docs.page("troubleshooting").section("Messages")
        quoted = re.findall(r"^\| `([^`]+)` \|", rows, re.MULTILINE)
        assert len(quoted) > 15
        assert [message for message in quoted if message not in texts] == []


@lru_cache(maxsize=1)
def nodes_in_the_source() -> list[ast.AST]:
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "llama_convert").rglob("*.py"))
    return [node for tree in trees for node in ast.walk(tree)]


def strings(nodes: Iterable[ast.AST]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def calls_in_the_source() -> Iterator[tuple[str, list[str]]]:
    """Name of the function, and its arguments that are strings."""
    for node in nodes_in_the_source():
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2], strings(node.args)


def codes_in_the_source() -> tuple[set[str], set[str]]:
    """Error codes that are used, and codes that may be.

    A code is a string of capitals with underscores, but no key, no element of a list, and no name of an
    environment variable; or of capitals alone as an argument of a call that makes an error or a finding.
    Reading a JSON file of some kind gives four codes, of which three may never occur.
    """
    several = re.compile(r"[A-Z]{2,}(_[A-Z0-9]+)+")
    codes = {text for text in strings(nodes_in_the_source()) if several.fullmatch(text)}
    codes -= set(strings(other_names_in_the_source()))
    perhaps = set()
    for name, texts in calls_in_the_source():
        if re.search(r"(Error|Finding|_warning|_fail)$", name):
            codes |= {text for text in texts if re.fullmatch(r"[A-Z]{3,}(_[A-Z0-9]+)*", text)}
        if name == "read_json_object":
            codes.add(f"{texts[0]}_JSON")
            perhaps |= {f"{texts[0]}_{what}" for what in ("MISSING", "VALUE", "KEYS")}
    return codes, perhaps


def other_names_in_the_source() -> Iterator[ast.AST]:
    """Keys, elements of lists, and what is asked of the environment."""
    for node in nodes_in_the_source():
        if isinstance(node, ast.Dict):
            yield from filter(None, node.keys)
        elif isinstance(node, ast.List):
            yield from node.elts
        elif isinstance(node, ast.Subscript):
            yield node.slice
        elif isinstance(node, ast.Call) and re.search("environ|getenv", ast.unparse(node.func)):
            yield from node.args


def exit_codes_in_the_source() -> Iterator[tuple[str, int]]:
    """Codes that are raised as an error, each with the error's exit code."""
    for name, texts in calls_in_the_source():
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.LlamaConvertError) and texts:
            yield texts[0], kind.exit_code


class TestLinks:
    def test_links_resolve(self) -> None:
        for document in (*DOCUMENTS, *GITHUB):
            for target in document.links:
                if "://" in target:
                    continue
                path, _, anchor = target.partition("#")
                file = (document.path.parent / path).resolve() if path else document.path
                assert file.exists(), (document.name, target)
                assert not anchor or anchor in Document(file).anchors, (document.name, target)

    def test_pages_link_to_pages_alone(self) -> None:
        """They are shipped without the repository."""
        for document in DOCUMENTS[1:]:
            local = [target for target in document.links if "://" not in target]
            assert all("/" not in target for target in local), document.name

    def test_every_page_is_reachable_from_the_readme(self) -> None:
        reached, waiting = set[Path](), [README]
        while waiting:
            file = waiting.pop()
            if file in reached or file.suffix != ".md":
                continue
            reached.add(file)
            targets = [target.partition("#")[0] for target in Document(file).links if "://" not in target]
            waiting += [(file.parent / target).resolve() for target in targets if target]
        assert reached >= {*PAGES.glob("*.md"), *(document.path for document in GITHUB)}

    def test_the_readme_is_a_front_page(self) -> None:
        text = README.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 220
        for needed in ("make demo", "make test", "hf download", "from_pretrained"):
            assert needed in text


class TestHelp:
    def test_every_page_has_a_kind_and_a_title(self) -> None:
        assert {page.kind for page in pages().values()} == set(KINDS)
        titles = [page.title for page in pages().values()]
        assert all(titles)
        assert len(set(titles)) == len(titles)

    def test_topics_are_listed(self) -> None:
        run = llama_convert("help")
        assert run.exit_code == 0
        for page in pages().values():
            assert re.search(rf"^  {page.topic} +{re.escape(page.title)}$", run.stdout, re.MULTILINE)

    @pytest.mark.parametrize("topic", pages())
    def test_a_page(self, topic: str) -> None:
        page, run = pages()[topic], llama_convert("help", topic)
        assert run.exit_code == 0
        assert page.title.split()[0] in run.stdout
        assert not re.search(r"<!--|\(#|\w\.md[)#]", run.stdout)

    def test_commands_have_a_page(self) -> None:
        assert "--mp" in llama_convert("help", "shard").stdout
        assert "SRC" in llama_convert("help", "CONVERT").stdout

    def test_an_unknown_topic(self) -> None:
        run = llama_convert("help", "verfy")
        assert run.exit_code == 2
        assert "llama-convert help verify" in run.stderr

    def test_explain(self) -> None:
        run = llama_convert("explain", "input_crc")
        assert run.exit_code == 0
        assert "INPUT_CRC" in run.stdout
        assert "INPUT_CHECKLIST" not in run.stdout

    def test_an_unknown_code(self) -> None:
        run = llama_convert("explain", "INPUT_CRCC")
        assert run.exit_code == 2
        assert "INPUT_CRC" in run.stderr.replace("INPUT_CRCC", "")
        assert llama_convert("explain", "zzz").exit_code == 2

    def test_commands_do_not_import_the_renderer(self, tmp_path: Path) -> None:
        arguments = ["llama-convert", "convert", str(FIXTURES / "llama2-mp2"), str(tmp_path), "--dry-run"]
        code = (
            f"import sys; from llama_convert.cli import main; sys.argv = {arguments!r}\n"
            "try: main()\n"
            "except SystemExit as e: assert not e.code, e.code\n"
            "assert 'rich.markdown' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
