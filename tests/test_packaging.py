"""What pip builds and installs, with the oldest and newest dependencies, and completion in a shell.

The slow tests download with pip; those of `TestExtras` some gigabytes where torch has no CPU build.
``LLAMA_CONVERT_PYTHONS`` lists interpreters not found as ``python3.10`` and the like, as ``PATH`` does.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from llama_convert import __version__
from llama_convert.cli.dropin import names_a_shell, rewrite_legacy_options
from llama_convert.extras import EXTRAS
from tests.peers import ROOT
from tests.run import llama_convert

PACKAGE = ROOT / "llama_convert"
OLDEST = ROOT / "tests" / "oldest.txt"
FIXTURES = ("llama2-mp2", "llama3.1-mp2", "llama3.2-tied")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # not in Python 3.10
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return content


class TestMetadata:
    """What pyproject.toml says."""

    def test_the_oldest_are_the_lower_bounds(self, pyproject: dict[str, Any]) -> None:
        extras = pyproject["project"]["optional-dependencies"]
        wanted = [*pyproject["project"]["dependencies"]]
        wanted += [each for extra, needs in extras.items() if extra not in ("all", "dev") for each in needs]
        bounds = {re.match(r"([\w-]+)>=([\d.]+)(,|$)", each).groups()[:2] for each in wanted}  # type: ignore[union-attr]
        lines = [line for line in OLDEST.read_text().splitlines() if line and line[0] != "#"]
        assert {tuple(line.split("==")) for line in lines} == bounds
        assert len(lines) == len(bounds)

    def test_what_is_not_python_is_packed(self, pyproject: dict[str, Any]) -> None:
        patterns = pyproject["tool"]["setuptools"]["package-data"]["llama_convert"]
        packed = {file for pattern in patterns for file in PACKAGE.glob(pattern)}
        assert packed == {file for file in sources() if file.suffix != ".py"}

    def test_every_folder_of_modules_is_a_package(self) -> None:
        folders = {file.parent for file in sources() if file.suffix == ".py"}
        assert all((folder / "__init__.py").is_file() for folder in folders)

    def test_the_version_has_one_source(self, pyproject: dict[str, Any]) -> None:
        assert "version" not in pyproject["project"]
        assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "llama_convert.__version__"}
        assert metadata.version("llama-convert") == __version__, "install the package anew"


def sources() -> set[Path]:
    """The files of the package."""
    return {file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts}


def completed(line: str) -> list[str]:
    """What bash is offered for the last word of a command line."""
    words = line.split(" ")
    run = subprocess.run(
        [sys.executable, "-m", "llama_convert"],
        env=os.environ
        | {
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            "_LLAMA_CONVERT_COMPLETE": "complete_bash",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    return run.stdout.split()


class TestCompletion:
    """``--install-completion``, ``--show-completion``, and what the scripts ask for."""

    @pytest.mark.parametrize(
        ("typed", "offered"),
        [
            ("llama-convert ", {"convert", "shard", "verify", "inspect", "diff", "help", "explain"}),
            ("llama-convert ver", {"verify"}),
            ("llama-convert --show", {"--show-completion"}),
            ("llama-convert convert --max", {"--max-shard-size"}),
            ("llama-convert convert a b --dry", {"--dry-run"}),
            ("llama-convert shard --mp 2 --compare", {"--compare-checklist"}),
            ("llama-convert verify x --sou", {"--source"}),
            ("llama-convert inspect --sta", {"--stats"}),
            ("llama-convert inspect x --sort a", {"absmax"}),
            ("llama-convert inspect x --nosuch", set()),
            ("llama-convert convert --dtype b", {"bf16"}),
            ("llama-convert convert a b --to m", {"meta"}),
            ("llama-convert convert --llama-version G", {"Guard-1", "Guard-2", "Guard-3"}),
            ("llama-convert verify --check w", {"weights"}),
            ("llama-convert help res", {"reshard", "resume"}),
            ("llama-convert explain OUTPUT_SP", {"OUTPUT_SPACE"}),
        ],
    )
    def test_offers(self, typed: str, offered: set[str]) -> None:
        assert set(completed(typed)) == offered

    @pytest.mark.parametrize("name", ["convert", "shard", "verify", "inspect", "diff"])
    def test_all_options(self, name: str) -> None:
        import typer

        from llama_convert.cli.app import app

        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        options = {each for parameter in command.params for each in parameter.opts if each.startswith("--")}
        shown = set(completed(f"llama-convert {name} --"))
        hidden = {
            each
            for parameter in command.params
            if getattr(parameter, "hidden", False)
            for each in parameter.opts
        }
        assert options - hidden <= shown

    @pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
    def test_in_bash(self, tmp_path: Path) -> None:
        """The installed script, run as bash runs it."""
        program = tmp_path / "llama-convert"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m llama_convert "$@"\n')
        program.chmod(0o755)
        home = {"HOME": str(tmp_path), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        environment = os.environ | home | {"PYTHONPATH": str(ROOT)}
        install = [program, "--install-completion", "bash"]
        run = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        script = tmp_path / ".bash_completions" / "llama-convert.sh"
        assert str(script) in (tmp_path / ".bashrc").read_text()
        code = f"""
source {script}
COMP_WORDS=(llama-convert convert --max) COMP_CWORD=2
_llama_convert_completion llama-convert --max convert
echo "${{COMPREPLY[@]}}"
"""
        run = subprocess.run(
            ["bash", "--norc", "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert (run.stdout, run.stderr) == ("--max-shard-size\n", "")

    @pytest.mark.parametrize(
        ("shell", "token"), [("bash", "COMPREPLY"), ("zsh", "#compdef"), ("fish", "complete --command")]
    )
    def test_a_shell_is_named(self, shell: str, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever shell runs it."""
        for arguments in (["--show-completion", shell], [f"--show-completion={shell}"]):
            # what main() sets is to be gone afterwards
            monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "")
            run = llama_convert(*arguments)
            assert run.exit_code == 0, run.stderr
            assert token in run.stdout
            assert "_LLAMA_CONVERT_COMPLETE" in run.stdout
        assert llama_convert("--show-completion", "nosuch").exit_code == 2

    def test_values_that_name_no_shell(self) -> None:
        assert not names_a_shell([])
        assert not names_a_shell(["--show-completion"])
        assert not names_a_shell(["convert", "--show-completion"])
        assert rewrite_legacy_options(["--install_completion=zsh"]) == ["--install-completion=zsh"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(PACKAGE, folder / "llama_convert", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "build", folder], check=True, capture_output=True)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what the commands write here."""
    out = tmp_path_factory.mktemp("right")
    for arguments in commands(out):
        run = llama_convert(*arguments)
        assert run.exit_code == 0, (arguments, run.stderr)
    return digests(out)


def commands(out: Path) -> Iterator[list[str]]:
    """Command lines whose outputs are the same in every environment."""
    for name in FIXTURES:
        source, hf, back = str(ROOT / "fixtures" / name), str(out / name), str(out / f"{name}-meta")
        yield ["convert", source, hf]
        yield ["verify", hf, "--source", source]
        yield ["inspect", hf, "--stats"]
        yield ["inspect", source, hf, "--json"]
        yield ["convert", source, str(out / f"{name}-fp16"), "--dtype", "fp16", "--json"]
        yield ["shard", hf, str(out / f"{name}-cut"), "--max-shard-size", "100KB"]
        yield ["shard", source, str(out / f"{name}-mp1"), "--mp", "1"]
        yield ["convert", hf, back, "--to", "meta", "--mp", "2"]
        yield ["verify", back, "--json"]


def digests(out: Path) -> dict[str, str]:
    """SHA-256s of all files."""
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


@contextmanager
def installed(python: str, *requirements: str | Path) -> Iterator[Path]:
    """A new environment's ``bin``; deleted afterwards, as torch may be gigabytes."""
    with TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        new = Path(folder) / "bin"
        pip = [new / "python", "-m", "pip"]
        install = [*pip, "install", "--quiet", "--no-cache-dir", *requirements]
        run = subprocess.run(install, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        subprocess.run([*pip, "check"], check=True, capture_output=True)
        yield new


def run_all(new: Path, out: Path) -> dict[str, str]:
    """The digests of what an installed llama-convert writes."""
    out.mkdir()
    for arguments in [["--help"], ["--version"], ["convert", "--help"], *commands(out)]:
        run = run_installed(new, *arguments, cwd=out)
        assert run.returncode == 0, (arguments, run.stderr)
        assert "Warning" not in run.stderr, (arguments, run.stderr)
    return digests(out)


def run_installed(new: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an installed llama-convert without what only the environment of the tests has."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [new / "llama-convert", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def interpreter(*versions: str) -> str:
    """A Python of the first version that runs and makes environments; without one, the test is skipped."""
    code = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    named = os.environ.get("LLAMA_CONVERT_PYTHONS", "").split(os.pathsep)
    for version in versions:
        for python in filter(None, [sys.executable, *named, shutil.which(f"python{version}")]):
            run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
            if run.stdout.strip() == version:
                return python
    pytest.skip(f"no Python {' or '.join(versions)}")


def torch_here() -> str:
    """The release of torch that is here, of which there may be a smaller build than of the newest."""
    return f"torch=={metadata.version('torch').partition('+')[0]}"


IMPORT_ALL = """
import importlib, pkgutil, llama_convert
for module in pkgutil.walk_packages(llama_convert.__path__, "llama_convert."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.mark.slow
def test_what_is_built(built: Path, wheel: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    top = sdist.name.removesuffix(".tar.gz")
    files = {str(file.relative_to(ROOT)) for file in sources()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert {f"{top}.dist-info/licenses/LICENSE", f"{top}.dist-info/entry_points.txt"} < {
            *archive.namelist()
        }
    assert packed == files
    with tarfile.open(sdist) as archive:
        assert {f"{top}/{name}" for name in files | {"pyproject.toml", "README.md", "LICENSE"}} < {
            *archive.getnames()
        }
    assert wheel.name == f"llama_convert-{__version__}-py3-none-any.whl"
    assert sdist.stat().st_size < 1 << 20


@pytest.mark.slow
class TestCore:
    """An installation without extras runs all commands, except checks and options that need an extra."""

    def test_newest(self, wheel: Path, right: dict[str, str], tmp_path: Path) -> None:
        with installed(sys.executable, wheel) as new:
            check_core(new, right, tmp_path)

    def test_oldest(self, wheel: Path, right: dict[str, str], tmp_path: Path) -> None:
        """All lower bounds at once."""
        with installed(interpreter("3.10", "3.11"), wheel, "--constraint", OLDEST) as new:
            check_core(new, right, tmp_path)


def check_core(new: Path, right: dict[str, str], folder: Path) -> None:
    """Run all commands with the extras missing."""
    site_packages = next(new.parent.glob("lib/python*/site-packages"))
    names = {each.name.lower() for each in site_packages.iterdir()}
    assert not names & {"torch", "tokenizers", "tiktoken", "sentencepiece", "jinja2", "fsspec"}
    run = run_installed(new, "--version", cwd=folder)
    for extra in EXTRAS:
        assert f"[{extra}] missing: " in run.stdout
    assert run_all(new, folder / "out") == right
    fixture = str(ROOT / "fixtures" / "llama2-mp2")
    converted = str(folder / "out" / "llama2-mp2")
    run = run_installed(new, "verify", converted, "--source", fixture, cwd=folder)
    assert "PASS 3/5 checks" in run.stdout
    assert "(skipped: tokenizer, logits)" in run.stdout
    assert "[verify]" in run.stdout.splitlines()[-2]
    run = run_installed(new, "convert", fixture, "verified", "--verify", "--dtype", "fp16", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert "PASS 3/5 checks" in run.stdout
    for arguments in (
        ["verify", converted, "--check", "logits"],
        ["verify", converted, "--check", "tokenizer"],
        ["verify", converted, "--prompt", "Once"],
        ["verify", converted, "--report", "report.html"],
        ["inspect", converted, "--report", "report.html"],
        ["inspect", "s3://bucket/x"],
        ["inspect", "gs://bucket/x"],
        ["inspect", "hf://org/x"],
        ["convert", "https://host/x", "new"],
        ["convert", fixture, "new", "--scheduler", "tcp://127.0.0.1:1"],
        ["convert", fixture, "new", "--push-to-hub"],
    ):
        run = run_installed(new, *arguments, "--json", cwd=folder)
        assert run.returncode == 2, arguments
        assert '"code": "EXTRA_MISSING"' in run.stdout, run
        assert "Run: pip install 'llama-convert[" in run.stdout, run
    assert not (folder / "new").exists()


@pytest.mark.slow
class TestExtras:
    """Installations with all that the checks need."""

    def test_imports(self, wheel: Path, right: dict[str, str], tmp_path: Path) -> None:
        with installed(sys.executable, with_extras(wheel, "verify"), torch_here()) as new:
            subprocess.run([new / "python", "-I", "-c", IMPORT_ALL], check=True, cwd=tmp_path)
            assert run_all(new, tmp_path / "out") == right
            assert all_checks_pass(new, tmp_path)

    def test_oldest(self, wheel: Path, right: dict[str, str], tmp_path: Path) -> None:
        """All lower bounds at once, in the oldest Python."""
        everything = with_extras(wheel, "all")
        with installed(interpreter("3.10"), everything, "--constraint", OLDEST) as new:
            assert run_all(new, tmp_path / "out") == right
            assert all_checks_pass(new, tmp_path)
            run = run_installed(new, "convert", "x", "out", "--nosuch", cwd=tmp_path)
            assert run.returncode == 2
            run = run_installed(new, "inspect", "memory://nowhere", "--json", cwd=tmp_path)
            assert '"code": "INPUT_NOT_FOUND"' in run.stdout, run

    @pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
    def test_each_python(self, version: str, wheel: Path, right: dict[str, str], tmp_path: Path) -> None:
        """The newest of all that it needs."""
        python = interpreter(version)
        torch = [torch_here()] if python == sys.executable else []
        with installed(python, with_extras(wheel, "verify"), *torch) as new:
            assert run_all(new, tmp_path / "out") == right
            assert all_checks_pass(new, tmp_path)


def with_extras(wheel: Path, extras: str) -> str:
    """The requirement for a wheel with extras."""
    return f"llama-convert[{extras}] @ {wheel.as_uri()}"


def all_checks_pass(new: Path, folder: Path) -> bool:
    """Whether no check of a verification is skipped, and a report is written."""
    fixture, converted = str(ROOT / "fixtures" / "llama2-mp2"), str(folder / "out" / "llama2-mp2")
    report = str(folder / "report.html")
    run = run_installed(new, "verify", converted, "--source", fixture, "--report", report, cwd=folder)
    return "PASS 5/5 checks" in run.stdout and Path(report).is_file()
