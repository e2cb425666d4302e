"""Optional dependencies: what is missing is named, with a command that installs it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from llama_convert import extras, verify
from llama_convert.errors import UsageError
from llama_convert.verification.report import Check, Status
from tests.peers import ROOT
from tests.run import llama_convert

FIXTURE = ROOT / "fixtures" / "llama2-mp2"
TOKENIZER_PACKAGES = ("jinja2", "sentencepiece", "tiktoken", "tokenizers")


def uninstall(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Let packages look as if they were not installed."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_table_equals_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    lists = dict(re.findall(r"^(\w+) = \[(.*?)\]$", section, re.MULTILINE | re.DOTALL))
    del lists["dev"]
    assert re.findall(r"\[([\w,]+)\]", lists.pop("all")) == [",".join(lists)]
    found = {name: dict(re.findall(r'"([\w-]+)>=([\d.]+)"', packages)) for name, packages in lists.items()}
    assert found == extras.EXTRAS


class TestMissingPackages:
    def test_installed(self) -> None:
        for extra in ("verify", "report", "hub"):
            assert extras.missing_packages(extra) == []
            extras.require(extra, "x")

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(extras.EXTRAS, "s3", {"no_such_package": "1.0", "numpy": "1.0"})
        with pytest.raises(UsageError) as refused:
            extras.require("s3", "s3://")
        assert refused.value.code == "EXTRA_MISSING"
        assert refused.value.message == "s3:// needs the extra [s3] (missing: no_such_package)."
        assert refused.value.hint == f"Run: {extras.install_command('s3')}"

    @pytest.mark.parametrize(
        ("installed", "is_missing"),
        [
            ("0.19.9", True),
            ("0.9", True),
            ("0.20", False),
            ("0.20.3", False),
            ("1.0rc1", False),
            ("0.19+cpu.99", True),
        ],
    )
    def test_too_old(self, monkeypatch: pytest.MonkeyPatch, installed: str, is_missing: bool) -> None:
        monkeypatch.setattr(metadata, "version", lambda _: installed)
        expected = [f"tokenizers 0.20 or newer, not {installed}"] if is_missing else []
        assert extras.missing_packages("verify", ["tokenizers"]) == expected

    def test_import_is_blocked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Blocker:
            def find_spec(self, name: str, *_: object) -> None:
                if name == "tiktoken":
                    raise ModuleNotFoundError(name)

        monkeypatch.setattr(sys, "meta_path", [Blocker(), *sys.meta_path])
        monkeypatch.delitem(sys.modules, "tiktoken", raising=False)
        assert extras.missing_packages("verify") == ["tiktoken"]

    def test_folder_of_the_same_name(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A folder in the current directory is a namespace package, not an installed one."""
        (tmp_path / "no_such_package").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        assert extras.installed_version("no_such_package") is None


class TestInstallCommand:
    @pytest.mark.parametrize(
        ("origin", "requirement"),
        [
            (None, "llama-convert[verify]"),
            ({"url": "file:///x", "dir_info": {"editable": True}}, ".[verify]"),
            ({"url": "file:///x", "dir_info": {}}, ".[verify]"),
            ({"url": "file:///x/a.whl", "archive_info": {}}, "llama-convert[verify] @ file:///x/a.whl"),
            (
                {"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
                "llama-convert[verify] @ git+https://x/y.git@c0ffee",
            ),
            ({"surprise": 1}, "llama-convert[verify]"),
            ([], "llama-convert[verify]"),
        ],
    )
    def test_fits_the_installation(
        self, monkeypatch: pytest.MonkeyPatch, origin: Any, requirement: str
    ) -> None:
        content = {} if origin is None else {"direct_url.json": json.dumps(origin)}
        record(monkeypatch, content | {"INSTALLER": "pip\n"})
        assert extras.install_command("verify") == f"pip install '{requirement}'"

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(name: str) -> None:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "distribution", absent)
        assert extras.install_command("verify") == "pip install '.[verify]'"

    def test_source_tree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its egg-info names no installer."""
        record(monkeypatch, {})
        assert extras.install_command("verify") == "pip install '.[verify]'"

    def test_uv(self, monkeypatch: pytest.MonkeyPatch) -> None:
        record(monkeypatch, {"INSTALLER": "uv"})
        assert extras.install_command("s3") == "uv pip install 'llama-convert[s3]'"

    @pytest.mark.parametrize(
        ("file", "command"),
        [("pipx_metadata.json", "pipx install --force"), ("uv-receipt.toml", "uv tool install --force")],
    )
    def test_environment_of_one_command(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, command: str
    ) -> None:
        record(monkeypatch, {"INSTALLER": "uv"})
        (tmp_path / file).touch()
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        assert extras.install_command("s3") == f"{command} 'llama-convert[s3]'"


def record(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str]) -> None:
    """Let the installation have these metadata files."""

    class Distribution:
        def read_text(self, name: str) -> str | None:
            return files.get(name)

    monkeypatch.setattr(metadata, "distribution", lambda _: Distribution())


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extras") / "out"
    assert llama_convert("convert", FIXTURE, out).exit_code == 0
    return out


INSTALL = extras.install_command("verify")


class TestVerify:
    @pytest.mark.parametrize(
        ("packages", "skipped"),
        [
            (("torch",), {Check.LOGITS}),
            (("sentencepiece",), {Check.TOKENIZER, Check.LOGITS}),
            ((*TOKENIZER_PACKAGES, "torch"), {Check.TOKENIZER, Check.LOGITS}),
        ],
    )
    def test_checks_that_can_run_do(
        self, monkeypatch: pytest.MonkeyPatch, converted: Path, packages: tuple[str, ...], skipped: set[Check]
    ) -> None:
        uninstall(monkeypatch, *packages)
        report = verify(converted, FIXTURE)
        assert report.ok
        assert {each.check for each in report.checks if each.status is Status.SKIPPED} == skipped
        for each in report.checks:
            if each.check in skipped:
                assert each.summary.startswith("Needs the extra [verify] (missing: ")
                assert each.hint == f"Run: {INSTALL}"

    def test_command_names_what_to_install_once(
        self, monkeypatch: pytest.MonkeyPatch, converted: Path
    ) -> None:
        uninstall(monkeypatch, "torch", "tokenizers")
        run = llama_convert("verify", converted, "--source", FIXTURE)
        assert run.exit_code == 0
        shown = " ".join(run.stdout.split())
        assert "Needs the extra [verify] (missing: tokenizers)" in shown
        assert "Needs the extra [verify] (missing: tokenizers, torch)" in shown
        assert run.stdout.count(INSTALL) == 1
        assert "PASS 3/5 checks" in run.stdout
        content = json.loads(llama_convert("verify", converted, "--source", FIXTURE, "--json").stdout)
        assert [each["hint"] for each in content["checks"]] == [None] * 3 + [f"Run: {INSTALL}"] * 2

    def test_convert_verifies_what_it_can(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        uninstall(monkeypatch, "torch")
        run = llama_convert("convert", FIXTURE, tmp_path / "out", "--verify")
        assert run.exit_code == 0
        assert "PASS 4/5 checks" in run.stdout
        assert INSTALL in run.stdout
        # Neither the command nor an origin on this machine is in the output.
        manifest = (tmp_path / "out" / "llama-convert.json").read_text()
        assert "missing: torch" in manifest
        assert "install" not in manifest.partition('"verification"')[2]

    @pytest.mark.parametrize(
        ("options", "feature"),
        [
            (("--check", "logits"), "The logits check"),
            (("--level", "structure,logits"), "The logits check"),
            (("--check", "structure,values,weights,tokenizer,logits"), "The logits check"),
            (("--prompt", "Once"), "--prompt"),
            (("--device", "cuda"), "--device"),
            (("--dtype", "bf16"), "--dtype"),
            (("--positions", "8"), "--positions"),
        ],
    )
    def test_named_by_the_user(
        self, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], feature: str
    ) -> None:
        uninstall(monkeypatch, "torch")
        # Before any work: not even the folder is opened.
        run = llama_convert("verify", "no-such-folder", *options, "--json")
        content = json.loads(run.stdout)
        assert (run.exit_code, content["code"]) == (2, "EXTRA_MISSING")
        assert content["message"] == f"{feature} needs the extra [verify] (missing: torch)."
        assert content["hint"] == f"Run: {INSTALL}"

    def test_tokenizer_check_needs_no_torch(self, monkeypatch: pytest.MonkeyPatch, converted: Path) -> None:
        uninstall(monkeypatch, "torch")
        assert verify(converted, FIXTURE, checks=(Check.TOKENIZER,)).checks[0].status is Status.PASS


@pytest.mark.parametrize(
    ("arguments", "package", "feature", "extra"),
    [
        (("verify", "x", "--report", "r.html"), "jinja2", "--report", "report"),
        (("inspect", "x", "--report", "r.html"), "jinja2", "--report", "report"),
        (("diff", "x", "y", "--report", "r.html"), "jinja2", "--report", "report"),
        (("convert", "x", "y", "--push-to-hub"), "huggingface_hub", "--push-to-hub", "hub"),
        (("convert", "x", "y", "--scheduler", "tcp://h:1"), "distributed", "--scheduler", "dask"),
        (("shard", "x", "y", "--mp", "1", "--scheduler", "tcp://h:1"), "distributed", "--scheduler", "dask"),
        (("convert", "s3://b/x", "y"), "s3fs", "s3://", "s3"),
        (("convert", "x", "gs://b/y"), "gcsfs", "gs://", "gcs"),
        (("verify", "x", "--source", "hf://a/b"), "huggingface_hub", "hf://", "hf"),
        (("inspect", "https://h/x"), "aiohttp", "https://", "http"),
        (("inspect", "s3://b/x"), "fsspec", "s3://", "s3"),
    ],
)
def test_every_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    package: str,
    feature: str,
    extra: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    uninstall(monkeypatch, package)
    run = llama_convert(*arguments, "--json")
    content = json.loads(run.stdout)
    assert (run.exit_code, content["code"]) == (2, "EXTRA_MISSING"), content
    assert content["message"] == f"{feature} needs the extra [{extra}] (missing: {package})."
    assert content["hint"] == f"Run: {extras.install_command(extra)}"
    assert not list(tmp_path.iterdir())


class TestVersion:
    def test_installed(self) -> None:
        lines = llama_convert("--version").stdout.splitlines()
        assert any(re.fullmatch(r"\[verify\] jinja2 \d.*, torch \d.*", line) for line in lines), lines

    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        uninstall(monkeypatch, "torch")
        run = llama_convert("--version")
        assert run.exit_code == 0
        assert "[verify] missing: torch\n" in run.stdout
        assert "[report] jinja2 3." in run.stdout
