"""The command line as people and programs meet it."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from llama_convert import __version__
from llama_convert.cli.dropin import rewrite_legacy_options
from tests import synthetic
from tests.peers import ROOT
from tests.run import fresh, llama_convert, sizes
from tests.synthetic import LLAMA2

FIXTURE = ROOT / "fixtures" / "llama3.1-mp2"

CONVERT_OPTIONS = [
    "--array-task",
    "--block-size",
    "--chat-template",
    "--checklist",
    "--compare-checklist",
    "--config-from",
    "--debug",
    "--dry-run",
    "--dtype",
    "--embedding-axis",
    "--finish",
    "--fsync",
    "--help-all",
    "--input-dir",
    "--instruct",
    "--json",
    "--llama-version",
    "--max-shard-size",
    "--model-size",
    "--mp",
    "--no-checklist",
    "--no-fsync",
    "--no-instruct",
    "--no-resume",
    "--no-safe-serialization",
    "--num-shards",
    "--output",
    "--output-dir",
    "--overwrite",
    "--push-to-hub",
    "--quiet",
    "--resume",
    "--safe-serialization",
    "--scheduler",
    "--special-tokens",
    "--strict",
    "--to",
    "--tokenizer",
    "--verbose",
    "--verify",
    "--workers",
]
SHARD_OPTIONS = [
    "--array-task",
    "--block-size",
    "--checklist",
    "--compare-checklist",
    "--debug",
    "--dry-run",
    "--embedding-axis",
    "--finish",
    "--fsync",
    "--help-all",
    "--json",
    "--llama-version",
    "--max-shard-size",
    "--mp",
    "--no-checklist",
    "--no-fsync",
    "--no-resume",
    "--output",
    "--overwrite",
    "--quiet",
    "--resume",
    "--scheduler",
    "--strict",
    "--tokenizer",
    "--verbose",
    "--verify",
    "--workers",
]
INSPECT_OPTIONS = [
    *("--config-from", "--csv", "--debug", "--help-all", "--json", "--report", "--sort", "--stats"),
    *("--tensors", "--top", "--verbose"),
]
DIFF_OPTIONS = ["--debug", "--help-all", "--json", "--report", "--stats", "--verbose"]
VERIFY_OPTIONS = [
    "--check",
    "--checksums",
    "--config-from",
    "--debug",
    "--device",
    "--dtype",
    "--help-all",
    "--json",
    "--level",
    "--llama-version",
    "--max-new-tokens",
    "--no-checksums",
    "--positions",
    "--prompt",
    "--quiet",
    "--record",
    "--report",
    "--source",
    "--tokenizer",
    "--verbose",
]


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("convert", CONVERT_OPTIONS),
        ("shard", SHARD_OPTIONS),
        ("verify", VERIFY_OPTIONS),
        ("inspect", INSPECT_OPTIONS),
        ("diff", DIFF_OPTIONS),
    ],
)
def test_the_surface_is_frozen(name: str, frozen: list[str]) -> None:
    """A new option is a promise: add it here too."""
    import typer

    from llama_convert.cli.app import app

    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    assert sorted(name for name in options if name.startswith("--")) == frozen


def test_help_has_examples_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from llama_convert.cli import main; sys.argv = ['llama-convert', '--help']\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'sentencepiece', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--input_dir SRC" in " ".join(run.stdout.split())
    assert "llama-convert convert" in fresh("convert", "--help").stdout
    subprocess.run(
        [sys.executable, "-c", "import sys, llama_convert; assert not {'torch', 'numpy'} & set(sys.modules)"],
        check=True,
    )


def test_converting_without_a_cast_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from llama_convert.cli import main\n"
        f"sys.argv = ['llama-convert', 'convert', {str(FIXTURE)!r}, {str(tmp_path / 'out')!r}]\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'sentencepiece', 'tiktoken'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--input_dir A --output_dir B", "convert --input-dir A --output-dir B"),
        ("--input_dir=A_B --output_dir=C_D", "convert --input-dir=A_B --output-dir=C_D"),
        ("--input-dir A --output_dir B --instruct True", "convert --input-dir A --output-dir B --instruct"),
        ("--instruct False --input_dir A", "convert --no-instruct --input-dir A"),
        ("--safe_serialization --input_dir A", "convert --safe-serialization --input-dir A"),
        ("--safe_serialization True", "convert --safe-serialization"),
        ("--safe_serialization=False", "convert --no-safe-serialization"),
        ("convert A B --max_shard_size 1GB", "convert A B --max-shard-size 1GB"),
        ("convert --instruct false A B", "convert --no-instruct A B"),
        ("--help", "--help"),
        ("--version", "--version"),
        ("-h", "-h"),
        ("", ""),
        ("/tmp /out", "convert /tmp /out"),
        ("convrt A B", "convrt A B"),
        ("convert -- --odd_name B", "convert -- --odd_name B"),
    ],
)
def test_old_spellings(typed: str, meant: str) -> None:
    assert rewrite_legacy_options(typed.split()) == meant.split()


def test_the_hugging_face_scripts_command_line(tmp_path: Path) -> None:
    run = llama_convert(
        *("--input_dir", FIXTURE, "--output_dir", tmp_path / "out", "--model_size", "8B"),
        *("--llama_version", "3.1", "--num_shards", "2", "--safe_serialization", "True", "--instruct"),
        *("--special_tokens", "<|begin_of_text|>,<|end_of_text|>"),
    )
    assert run.exit_code == 0, run.stderr
    assert "--model-size 8B is ignored: detected" in run.stderr
    assert run.stdout == ""
    assert (tmp_path / "out/model.safetensors").is_file()


def test_without_safetensors_is_answered(tmp_path: Path) -> None:
    run = llama_convert("convert", FIXTURE, tmp_path / "out", "--safe_serialization", "False")
    assert run.exit_code == 0
    assert "only safetensors are written" in run.stderr


def test_json_is_all_that_stdout_holds(tmp_path: Path) -> None:
    run = llama_convert("convert", FIXTURE, tmp_path / "out", "--json")
    answer = json.loads(run.stdout)
    assert (answer["schema"], answer["ok"], answer["command"]) == (2, True, "convert")
    assert answer["release"]["version"] == "3.1"
    assert set(sizes(answer)) == {path.name for path in (tmp_path / "out").iterdir()}


def test_json_errors(tmp_path: Path) -> None:
    run = llama_convert("convert", tmp_path / "nowhere", tmp_path / "out", "--json")
    answer = json.loads(run.stdout)
    assert run.exit_code == answer["exit_code"] == 3
    assert (answer["ok"], answer["code"]) == (False, "INPUT_NOT_FOUND")
    assert answer["file"] == str(tmp_path / "nowhere")


def test_dry_run_lists_files(tmp_path: Path) -> None:
    run = llama_convert("convert", FIXTURE, tmp_path / "out", "--dry-run")
    assert "model.safetensors" in run.stdout
    assert not (tmp_path / "out").exists()


def test_quiet_prints_only_warnings(tmp_path: Path) -> None:
    assert llama_convert("convert", FIXTURE, tmp_path / "out", "--quiet").stderr == ""
    synthetic.make(tmp_path / "meta", LLAMA2)
    run = llama_convert("convert", tmp_path / "meta", tmp_path / "other", "--quiet")
    assert run.stderr.startswith("warning: ")
    assert len(run.stderr.splitlines()) == 1


def test_no_escapes_without_a_terminal(tmp_path: Path) -> None:
    run = fresh("convert", FIXTURE, tmp_path / "out")
    assert "\x1b" not in run.stderr
    assert not any(line.startswith("llama-convert: ") for line in run.stderr.splitlines())
    assert "memory" not in run.stderr
    run = fresh("convert", FIXTURE, tmp_path / "verbose", "--verbose")
    assert "peak memory" in run.stderr


def test_version_and_module() -> None:
    ours, python, core, *extras = fresh("--version").stdout.splitlines()
    assert ours == f"llama-convert {__version__}"
    assert python.startswith(f"Python {platform.python_version()}, ")
    assert f"numpy {metadata.version('numpy')}, " in core
    assert f"torch {metadata.version('torch')}" in extras[0]


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, object]] = []

    class Repository:
        repo_id = "me/out"

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> Repository:
            calls.append((name, private))
            return Repository()

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
            calls.append((repo_id, (Path(folder_path) / "config.json").is_file()))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    run = llama_convert("--input_dir", FIXTURE, "--output_dir", tmp_path / "out", "--push_to_hub")
    assert run.exit_code == 0, run.stderr
    assert calls == [("out", True), ("me/out", True)]


@pytest.mark.parametrize("where", [">&-", "> /dev/full"])
def test_a_result_that_cannot_be_printed_is_a_failure(tmp_path: Path, where: str) -> None:
    command = f"{sys.executable} -m llama_convert convert {FIXTURE} {tmp_path / 'out'} --json {where}"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert run.returncode == 4
    assert "Traceback" not in run.stderr
    assert "Cannot print the result" in run.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_leave_a_resumable_run(tmp_path: Path, name: str) -> None:
    """The observer stands for the moment: a block is written when the signal comes."""
    code = f"""
import os, signal, sys
signal.signal(signal.{name}, signal.default_int_handler)  # whatever started the tests may ignore it
from llama_convert.cli import main
from llama_convert.cli.progress import ConsoleObserver
ConsoleObserver.advance = lambda self, count: os.kill(os.getpid(), signal.{name})
sys.argv = ["llama-convert", "convert", {str(FIXTURE)!r}, {str(tmp_path / "out")!r}]
main()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 128 + getattr(signal, name)
    last_line = run.stderr.splitlines()[-1]
    assert last_line.startswith("Interrupted. Saved ")
    assert last_line.endswith(" KB. Run the same command to resume.")
    assert not list((tmp_path / "out").glob("*.json"))
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert llama_convert("convert", FIXTURE, tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out/.llama-convert").exists()


def test_a_file_size_limit_is_reported(tmp_path: Path) -> None:
    command = f"ulimit -f 100; {sys.executable} -m llama_convert convert {FIXTURE} {tmp_path / 'out'}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert run.returncode == 4
    assert "File too large" in run.stderr
    assert not (tmp_path / "out").exists()
