"""Every byte read is checked against the CRC-32 in the file: nothing damaged is published."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import InputError
from llama_convert.formats.torch_reader import read_torch_file
from tests import synthetic
from tests.synthetic import LLAMA2, LLAMA3, Shape, State

SHAPES = {
    "1 rank": LLAMA2,
    "4 ranks": LLAMA3.but(ranks=4),
    "KV heads twice": LLAMA3.but(ranks=8, kv_repeats=2),
    "tied": LLAMA3.but(tied=True),
}


def flat(rank: State) -> State:
    """All weights as views into one storage, with bytes before, between and after that are no weight's."""
    storage = torch.cat(
        [torch.ones(9).bfloat16(), *(torch.cat([w.reshape(-1), torch.ones(3)]) for w in rank.values())]
    )
    views, start = {}, 9
    for name, weight in rank.items():
        views[name] = storage[start : start + weight.numel()].view(weight.shape)
        start += weight.numel() + 3
    return views


def flip(file: Path, position: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("layout", ["separate", "flat"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_flipped_bits_are_refused(tmp_path: Path, shape: Shape, layout: str) -> None:
    ranks = synthetic.cut(shape, synthetic.weights(shape))
    if layout == "flat":
        ranks = [flat(rank) for rank in ranks]
    source = synthetic.write(tmp_path / "meta", shape, ranks)
    options = ConvertOptions(block_size=1000)
    convert(source, tmp_path / "out", options)
    chance = random.Random(f"{shape}{layout}")
    files = sorted(source.glob("*.pth"))
    for _ in range(25):
        file = chance.choice(files)
        storage = chance.choice(list(read_torch_file(file).values())).storage
        position, bit = storage.offset + chance.randrange(storage.size), chance.randrange(8)
        flip(file, position, bit)
        with pytest.raises(InputError) as caught:
            convert(source, tmp_path / "damaged", options)
        assert caught.value.code in ("INPUT_CRC", "RANKS_REPLICAS")
        assert caught.value.file == file or caught.value.code == "RANKS_REPLICAS"
        assert not (tmp_path / "damaged").exists()
        flip(file, position, bit)


def test_files_without_checksums_are_read_all_the_same(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        synthetic.make(tmp_path / "meta", LLAMA2)
    finally:
        torch.serialization.set_crc32_options(True)
    convert(tmp_path / "meta", tmp_path / "out")
