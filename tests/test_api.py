"""The Python functions: keywords, progress, types of paths, examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import llama_convert
from llama_convert import ConvertOptions, convert, inspect, open_checkpoint, shard, verify
from llama_convert.api import ConvertKeywords
from llama_convert.errors import UsageError
from tests.peers import ROOT

SOURCE = ROOT / "fixtures/llama2-mp2"
MODULES = (
    "api",
    "checkpoints.lazy",
    "cli.dropin",
    "errors",
    "observer",
    "redaction",
    "stores.mount",
)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Llama-2-7B").symlink_to(SOURCE)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"llama_convert.{module}"))
    assert result.attempted
    assert not result.failed


def test_keywords_are_the_options() -> None:
    assert set(ConvertKeywords.__annotations__) == {field.name for field in fields(ConvertOptions)}


def test_keywords(tmp_path: Path) -> None:
    assert convert(SOURCE, tmp_path / "fp16", dtype="fp16").dtype == "float16"
    options = ConvertOptions(dtype="fp32", max_shard_size="100KB")
    result = convert(str(SOURCE), str(tmp_path / "both"), options, dtype="fp16")
    assert result.dtype == "float16"
    assert len([name for name in result.files if name.endswith(".safetensors")]) > 1
    assert (result.source, result.destination) == (SOURCE, tmp_path / "both")
    back = convert(tmp_path / "both", tmp_path / "back", to="meta", mp=2, checklist=False)
    assert "consolidated.01.pth" in back.files
    assert "checklist.chk" not in back.files
    assert shard(tmp_path / "back", tmp_path / "one", mp=1, dry_run=True).finalized is False
    with pytest.raises(UsageError):
        convert(SOURCE, tmp_path / "no", to="gguf")
    with pytest.raises(TypeError, match="dtpye"):
        convert(SOURCE, tmp_path / "no", dtpye="fp16")  # type: ignore[call-arg]


def test_verify_and_inspect(tmp_path: Path) -> None:
    result = convert(SOURCE, tmp_path / "out")
    report = verify(result.destination, result.source, checksums=False)
    assert report.ok
    assert (report.path, report.source) == (tmp_path / "out", SOURCE)
    assert inspect(tmp_path / "out").ok


@pytest.mark.parametrize("progress", [False, True])
def test_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str], progress: bool) -> None:
    llama_convert.convert(SOURCE, tmp_path / "out", progress=progress)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert bool(captured.err) == progress


def test_a_weight_is_an_array() -> None:
    with open_checkpoint(SOURCE) as checkpoint:
        weight = checkpoint["model.embed_tokens.weight"]
        assert repr(weight) == "LazyWeight(model.embed_tokens.weight, [400, 64], bfloat16)"
        assert np.asarray(weight).dtype == np.float32
        assert np.array_equal(np.asarray(weight), weight.numpy())
        assert np.asarray(weight, dtype=np.float16).dtype == np.float16
        with pytest.raises(ValueError, match="without a copy"):
            weight.__array__(copy=False)
