"""Memory does not depend on the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from tests import large
from tests.run import llama_convert, peak_memory

MIB = 1 << 20
OFFICIAL_SIZES = {
    "3.2-1B": [2471645608],
    "3-8B": [4976698672, 4999802720, 4915916176, 1168138808],
}


@pytest.mark.parametrize("name", ["3.2-1B", pytest.param("3-8B", marks=pytest.mark.slow)])
def test_real_shapes_in_128_mib(tmp_path: Path, llama3_tokenizer_model: Path, name: str) -> None:
    source, out = tmp_path / "meta", tmp_path / "out"
    needed = 3 * sum(OFFICIAL_SIZES[name])
    if shutil.disk_usage(tmp_path).free < needed:
        pytest.skip(f"needs {needed:,} bytes of disk")
    try:
        large.make(source, large.SHAPES[name])
        shutil.copy(llama3_tokenizer_model, source)
        assert peak_memory("convert", source, out) < 128 * MIB
        files = sorted(out.glob("*.safetensors"))
        assert [file.stat().st_size for file in files] == OFFICIAL_SIZES[name]
        for file in files:
            with safe_open(file, "pt") as tensors:
                assert tensors.metadata() == {"format": "pt"}
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_cast_in_128_mib(tmp_path: Path, dtype: str) -> None:
    source = large.make(tmp_path / "meta", large.SHAPES["3.2-1B"].but(n_layers=3))
    try:
        assert peak_memory("convert", source, tmp_path / "out", "--dtype", dtype) < 128 * MIB
    finally:
        shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3.2-1B", "3-8B"])
def test_source_and_output_run_in_one_and_a_half_gib(tmp_path: Path, name: str) -> None:
    source, out = tmp_path / "meta", tmp_path / "out"
    if shutil.disk_usage(tmp_path).free < 3 * sum(OFFICIAL_SIZES[name]):
        pytest.skip("needs disk space for both sides")
    try:
        large.make(source, large.SHAPES[name])
        assert llama_convert("convert", source, out).exit_code == 0
        assert peak_memory("verify", out, "--source", source) < 1536 * MIB
    finally:
        shutil.rmtree(tmp_path)
