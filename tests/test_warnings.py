"""What a conversion remarks on as bytes pass by; each is seen on a planted fault, and never without."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_convert import ConvertOptions, convert
from llama_convert.checkpoints.value_scan import INFINITY, ValueScan, abs_bits, max_abs_bits
from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32
from llama_convert.errors import InputError, RefusedError
from tests import synthetic
from tests.run import llama_convert
from tests.synthetic import LLAMA2

DTYPES = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16, FLOAT32: torch.float32}


@given(st.sampled_from(list(DTYPES)), st.binary(min_size=4, max_size=400))
def test_max_abs_bits(dtype: type, content: bytes) -> None:
    """As torch tells it, for any bits: NaN and infinity are beyond all, zero is nothing."""
    block = np.frombuffer(content[: len(content) // 4 * 4], np.uint8)
    values = torch.frombuffer(bytearray(block.tobytes()), dtype=DTYPES[dtype]).double()
    most = max_abs_bits(block, dtype)
    assert most == abs_bits(block, dtype).max()
    assert (most >= INFINITY[dtype]) == (not torch.isfinite(values).all())
    assert (most == 0) == (not values.any())


def test_all_patterns() -> None:
    """Each of the 65,536 bfloat16 patterns alone."""
    for pattern in range(1 << 16):
        block = np.array([pattern], np.uint16).view(np.uint8)
        value = torch.frombuffer(bytearray(block.tobytes()), dtype=torch.bfloat16).item()
        assert (max_abs_bits(block, BFLOAT16) >= 0x7F80) == (not math.isfinite(value)), pattern


def test_rows_add_up() -> None:
    blocks = [np.zeros((2, 8), np.uint8), np.zeros((3, 8), np.uint8)]
    blocks[1].view(np.uint16)[1, 2:] = 0x7F80, 0xFFFF
    odd = ValueScan()
    for row, block in zip((0, 2), blocks, strict=True):
        odd = odd.with_block(block, BFLOAT16, row)
    assert odd == ValueScan(2, (3, 2), is_zero=False)
    assert ValueScan().with_block(blocks[0], BFLOAT16, 0).is_zero


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_warned_of(tmp_path: Path, ranks: int, dtype: torch.dtype) -> None:
    """Each once, with its place; the values themselves pass unchanged; `--strict` refuses."""
    shape = LLAMA2.but(ranks=ranks, dtype=dtype)
    state = synthetic.weights(shape)
    state["layers.1.attention.wq.weight"][3, 5] = float("nan")
    state["layers.1.attention.wq.weight"][3, 6] = float("-inf")
    state["layers.0.feed_forward.w2.weight"][:] = 0
    synthetic.write(tmp_path / "meta", shape, synthetic.cut(shape, state))
    result = convert(tmp_path / "meta", tmp_path / "out")
    odd = [line for line in result.warnings if "tokenizer" not in line]
    assert len(odd) == 2
    assert "wq.weight: 2 values are NaN or infinite (first at [3, 5])" in odd[1] + odd[0]
    assert "w2.weight: All values are zero." in odd[1] + odd[0]
    with pytest.raises(RefusedError):
        convert(tmp_path / "meta", tmp_path / "strict", ConvertOptions(strict=True))
    assert not (tmp_path / "strict").exists()


def test_nothing_without_a_fault(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "meta", LLAMA2)
    assert all("tokenizer" in line for line in convert(tmp_path / "meta", tmp_path / "out").warnings)


def test_many_findings_of_a_kind_are_counted(tmp_path: Path) -> None:
    state = {name: torch.zeros_like(weight) for name, weight in synthetic.weights(LLAMA2).items()}
    synthetic.write(tmp_path / "meta", LLAMA2, [state])
    lines = [
        line for line in convert(tmp_path / "meta", tmp_path / "out").warnings if "tokenizer" not in line
    ]
    assert len(lines) == 11
    assert lines[-1] == f"{len(state) - 10} more weights have the same problem."


def test_no_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        synthetic.make(tmp_path / "meta", LLAMA2.but(ranks=2))
    finally:
        torch.serialization.set_crc32_options(True)
    lines = convert(tmp_path / "meta", tmp_path / "out").warnings
    assert [line for line in lines if "(and 1 more): 21 of 21 storages have no CRC-32" in line]


def test_scattered_bytes_are_checked(tmp_path: Path) -> None:
    """A transposed weight is read along its columns; its storage is held against its CRC-32 all the same."""
    state = synthetic.weights(LLAMA2)
    name = "layers.0.feed_forward.w2.weight"
    state[name] = state[name].T.contiguous().T
    folder = synthetic.write(tmp_path / "meta", LLAMA2, [state])
    convert(folder, tmp_path / "good")
    content = bytearray((folder / "consolidated.00.pth").read_bytes())
    place = content.index(state[name].T.contiguous().view(torch.uint8).numpy().tobytes()[:64])
    content[place + 40] ^= 4
    (folder / "consolidated.00.pth").write_bytes(content)
    with pytest.raises(InputError) as refused:
        convert(folder, tmp_path / "out")
    assert refused.value.code == "INPUT_CRC"
    assert not (tmp_path / "out").exists()


def test_a_path_stays_in_its_line(tmp_path: Path) -> None:
    """A folder's name can hold anything; a message is one line."""
    run = llama_convert("convert", tmp_path / "a\nb\x1b[31mc", tmp_path / "out")
    assert run.exit_code == 3
    (line,) = [line for line in run.stderr.splitlines() if "error" in line]
    assert "a\\nb\\x1b[31mc" in line


@pytest.mark.parametrize(
    "arguments", [["convert", "--bogus"], ["convert", "--workers", "0"], ["verify", "a", "b", "c"], ["bogus"]]
)
def test_usage_as_json(arguments: list[str]) -> None:
    run = llama_convert(*arguments, "--json")
    assert run.exit_code == 2
    assert run.json["code"] == "BAD_USAGE"
    assert run.json["message"] in run.stderr
