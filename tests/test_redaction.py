"""No secret of a URL is printed or written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from llama_convert import ConvertOptions, convert
from llama_convert.json_output import to_json
from llama_convert.redaction import redact, redact_url
from llama_convert.stores import retry
from tests import synthetic
from tests.run import llama_convert
from tests.stores import RangeServer
from tests.synthetic import LLAMA2

SECRET = "hunter2"
URLS = {
    "https://me:hunter2@host/a/b?X-Amz-Signature=hunter2#c": "https://host/a/b",
    "https://hunter2@host/a": "https://host/a",
    "https://me:hunter2@host:8080/a@b": "https://host:8080/a@b",
    "https://host/a/model.safetensors?token=hunter2": "https://host/a/model.safetensors",
    "https://host?token=hunter2": "https://host",
    "https://[::1]:9000/a": "https://[::1]:9000/a",
    "https://me:hunter2@[::1]:9000/a": "https://[::1]:9000/a",
    "https://me:hunter2/x@host/a": "https://host/a",
    "https://me:hun?ter2@host/a": "https://host/a",
    "https://me:hun#hunter2@host/a": "https://host/a",
    "https://me:hunter2": "https://me",
    "s3://key:hunter2@bucket/a": "s3://bucket/a",
    "s3://key:hunter2/hunter2+x@bucket/a": "s3://bucket/a",
    "s3://bucket/a@b/c": "s3://bucket/a@b/c",
    "hf://org/repo@main/original": "hf://org/repo@main/original",
    "HTTPS://me:hunter2@host/a": "HTTPS://host/a",
    "https:/me:hunter2@host/a?hunter2": "https:/host/a",
    "file:///home/me@work/a": "file:///home/me@work/a",
    "https://host:8080/a": "https://host:8080/a",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url(url: str) -> None:
    assert redact_url(url) == URLS[url]
    assert redact(url) == URLS[url]
    assert redact(redact(url)) == URLS[url]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "text", ["{}: not found", "cannot read '{}'", '{{"source": "{}", "a": 1}}', "<{}>\n{}"]
)
def test_a_text(url: str, text: str) -> None:
    assert redact(text.format(url, url)) == text.format(URLS[url], URLS[url])


@pytest.mark.parametrize("url", ["https://me:hun ter2@host/a", "https://me:it's hunter2@host/a?b c"])
def test_a_url_of_any_letters(url: str) -> None:
    assert redact_url(f"--source={url}") == "--source=https://host/a"


@pytest.mark.parametrize("text", ["a:/b?c#d", "C:/a?b", "user@host", "see http: //a?b", "", "1:2@3", "x://"])
def test_no_url(text: str) -> None:
    assert redact(text) == text


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RangeServer, Path]]:
    folder = tmp_path_factory.mktemp("served")
    synthetic.make(folder / "models/meta", LLAMA2)
    convert(folder / "models/meta", folder / "models/hf")
    (folder / "models/empty").mkdir()
    (folder / "models/bad").mkdir()
    (folder / "models/bad/params.json").write_text("{")
    with RangeServer(folder) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "_FIRST_PAUSE", 0.001)
        yield server, folder


COMMANDS: dict[str, list[str]] = {
    "convert": ["convert", "{meta}", "{out}"],
    "dry run": ["convert", "{meta}", "{out}", "--dry-run"],
    "convert and verify": ["convert", "{meta}", "{out}", "--verify"],
    "back": ["convert", "{hf}", "{out}", "--to", "meta"],
    "other format": ["convert", "{hf}", "{out}"],
    "shard": ["shard", "{meta}", "{out}", "--mp", "2"],
    "shard other format": ["shard", "{hf}", "{out}", "--mp", "2"],
    "verify": ["verify", "{hf}", "--source", "{meta}"],
    "record": ["verify", "{hf}", "--source={meta}", "--record"],
    "verify the same": ["verify", "{hf}", "{hf}"],
    "verify with a report": ["verify", "{hf}", "--source", "{meta}", "--report", "{out}.html"],
    "inspect": ["inspect", "{meta}", "--stats"],
    "inspect with a report": ["inspect", "{meta}", "--report", "{out}.html"],
    "inspect a file": ["inspect", "{meta}/consolidated.00.pth", "--tensors"],
    "inspect two": ["inspect", "{meta}", "{hf}"],
    "empty": ["inspect", "{empty}"],
    "damaged": ["convert", "{bad}", "{out}", "--debug"],
    "into a web server": ["convert", "{meta}", "{hf}"],
    "no such host": ["convert", "http://me:hunter2@host.invalid/a?token=hunter2", "{out}"],
    "no such scheme": ["convert", "nonsense://me:hunter2@host/a?hunter2", "{out}"],
    "a page of the Hub": ["convert", "https://me:hunter2@huggingface.co/a/b?hunter2", "{out}"],
    "no destination": ["convert", "{meta}"],
    "no destination, and no path": ["convert", "https://me:hunter2@host"],
    "no command": ["{meta}", "{out}"],
    "an unknown option": ["convert", "{meta}", "{out}", "--sorce", "{hf}"],
    "an unknown option with a value": ["convert", "{meta}", "{out}", "--sorce={hf}"],
    "one argument too many": ["verify", "{hf}", "{meta}"],
    "twice": ["convert", "{meta}", "{out}", "--input-dir", "{hf}"],
    "a tokenizer": ["convert", "{meta}", "{out}", "--tokenizer", "{meta}/tokenizer.model"],
    "a template": ["convert", "{meta}", "{out}", "--chat-template", "{meta}/chat.jinja"],
    "an integer": ["shard", "{meta}", "{out}", "--mp", "{hf}"],
}


@pytest.mark.parametrize("query", ["", "?token=hunter2&X-Amz-Signature=hunter2"], ids=["plain", "query"])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_output_has_a_secret(
    served: tuple[RangeServer, Path],
    name: str,
    query: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server, _ = served
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where a traceback would go
    monkeypatch.chdir(tmp_path)
    base = re.sub("//", f"//me:{SECRET}@", server.url)
    places: dict[str, Any] = {
        folder: f"{base}/models/{folder}{query}" for folder in ("meta", "hf", "empty", "bad")
    }
    words = [word.format(**places, out=tmp_path / "out") for word in COMMANDS[name]]
    for more in ([], ["--json"]):
        run = llama_convert(*words, *more)
        captured = capfd.readouterr()
        for text in (run.stdout, run.stderr, captured.out, captured.err):
            assert SECRET not in text
        assert "internal error" not in run.stderr
    for file in tmp_path.rglob("*"):
        assert SECRET not in str(file)
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


def test_the_api(served: tuple[RangeServer, Path], tmp_path: Path) -> None:
    server, _ = served
    url = f"{server.url.replace('//', f'//me:{SECRET}@')}/models/meta?token={SECRET}"
    result = convert(url, tmp_path / "out", ConvertOptions())
    assert result.source == url  # for the caller that continues with it
    assert SECRET not in str(to_json(result))
    assert to_json(result)["source"] == f"{server.url}/models/meta"


def test_an_internal_error(
    served: tuple[RangeServer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback that is saved repeats what a library says."""
    import llama_convert.inspection.inspect as module

    url = f"https://me:{SECRET}@host/a?token={SECRET}"

    def fail(*_: object) -> None:
        raise RuntimeError(f"no answer from {url!r}")

    monkeypatch.setattr(module, "open_any", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = llama_convert("inspect", ".", "--debug", "--json")
    assert run.exit_code == 70
    (saved,) = tmp_path.glob("llama-convert-*.txt")
    assert "no answer from" in saved.read_text()
    for text in (run.stdout, run.stderr, saved.read_text()):
        assert SECRET not in text
