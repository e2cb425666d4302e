"""The `.pth` writer: what it lays out is what `torch.save` writes, and every reader reads it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.serialization import config

from llama_convert.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32, WEIGHT_DTYPES, Dtype
from llama_convert.errors import InputError
from llama_convert.formats.torch_reader import read_torch_file
from llama_convert.formats.torch_writer import TorchLayout, lay_out_torch
from tests import synthetic
from tests.synthetic import LLAMA2, State
from tests.test_torch_zip import assert_as_torch, read

GB = 1 << 30
Sizes = dict[str, tuple[Dtype, tuple[int, ...]]]


def content(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def lay_out(state: State, shared: Mapping[str, str] | None = None, name: str = "x") -> TorchLayout:
    dtypes = {key: BY_NAME[str(tensor.dtype).removeprefix("torch.")] for key, tensor in state.items()}
    return lay_out_torch(((key, dtypes[key], tuple(t.shape)) for key, t in state.items()), shared, name)


def write(path: Path, state: State, shared: Mapping[str, str] | None = None) -> TorchLayout:
    """Write tensors into their places first, the last one first, and then the rest."""
    layout = lay_out(state, shared, path.stem)
    with path.open("wb") as file:
        for key, tensor in reversed(state.items()):
            os.pwrite(file.fileno(), content(tensor), layout.offsets[key])
        for offset, part in layout.parts({key: zlib.crc32(content(tensor)) for key, tensor in state.items()}):
            os.pwrite(file.fileno(), part, offset)
    assert path.stat().st_size == layout.size
    return layout


def without_id(path: Path, pieces: list[tuple[int, int]]) -> list[bytes]:
    """Pieces of a file but for the fingerprint, whose digits only torch can compute, and its CRC-32."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        info = archive.getinfo("x/.data/serialization_id")
        digits, crc = archive.read(info), info.CRC.to_bytes(4, "little")
        assert len(digits) == 40
        assert digits.isdigit()
        read = (os.pread(file.fileno(), size, offset) for offset, size in pieces)
        return [piece.replace(digits, b"#" * 40).replace(crc, b"####") for piece in read]


def assert_read_by_all(path: Path, state: State) -> None:
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert type(loaded) is OrderedDict
        assert list(loaded) == list(state)
        for key, tensor in state.items():
            assert loaded[key].dtype == tensor.dtype
            assert loaded[key].shape == tensor.shape
            assert content(loaded[key]) == content(tensor)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert all(zlib.crc32(archive.read(info)) == info.CRC for info in archive.infolist())
    for key, stored in read_torch_file(path).items():
        assert stored.storage.crc32 == (zlib.crc32(content(state[key])) or None)


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """Where to write ours and where torch writes its own: the archive's root is the file's name."""
    return both_in(tmp_path)


def both_in(folder: Path) -> tuple[Path, Path]:
    for name in ("ours", "theirs"):
        (folder / name).mkdir()
    return folder / "ours" / "x.pth", folder / "theirs" / "x.pth"


def assert_as_saved(
    both: tuple[Path, Path], state: State, shared: Mapping[str, str] | None = None
) -> TorchLayout:
    ours, theirs = both
    layout = write(ours, state, shared)
    torch.save(OrderedDict(state), theirs)
    whole = [(0, layout.size + 1)]
    assert without_id(ours, whole) == without_id(theirs, whole)
    assert_read_by_all(ours, state)
    return layout


def test_a_checkpoint_as_torch_saves_it(both: tuple[Path, Path]) -> None:
    state = synthetic.weights(LLAMA2)
    layout = assert_as_saved(both, state)
    assert_as_torch(both[0])
    assert all(offset % 64 == 0 for offset in layout.offsets.values())
    assert [entry.tensor for entry in layout.entries if entry.tensor] == list(state)


names = st.text("abc._é漢", min_size=1, max_size=300)
shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple) | st.tuples(st.integers(250, 70000))
dtypes = st.sampled_from([getattr(torch, dtype.name) for dtype in WEIGHT_DTYPES])


@settings(max_examples=80, deadline=None)
@given(tensors=st.dictionaries(names, st.tuples(shapes, dtypes), min_size=1, max_size=8))
@example(tensors={"empty": ((0,), torch.float16), "rows": ((0, 3), torch.float32), "a": ((), torch.float32)})
def test_any_names_shapes_and_dtypes(
    tensors: dict[str, tuple[Any, torch.dtype]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in tensors.items()}
    assert_as_saved(both_in(tmp_path_factory.mktemp("any")), state)


@pytest.mark.parametrize("count", [1, 40, 999, 1000, 1001, 1002, 2001])
def test_any_number_of_tensors(both: tuple[Path, Path], count: int) -> None:
    assert_as_saved(both, {f"layers.{i}.weight": torch.randn(2).half() for i in range(count)})


@pytest.mark.parametrize("owner", ["tok_embeddings.weight", "output.weight"])
def test_a_shared_storage_stays_shared(both: tuple[Path, Path], owner: str) -> None:
    state = synthetic.weights(LLAMA2.but(tied=True))
    state["output.weight"] = state["output.weight"].detach()  # as state_dict() gives tied weights
    shared = {"output.weight": "tok_embeddings.weight", "tok_embeddings.weight": "output.weight"}
    del shared[owner]
    layout = assert_as_saved(both, state, shared)
    assert layout.offsets["output.weight"] == layout.offsets["tok_embeddings.weight"]
    for mmap in (False, True):
        loaded = torch.load(both[0], weights_only=True, mmap=mmap)
        assert loaded["output.weight"].data_ptr() == loaded["tok_embeddings.weight"].data_ptr()
    found = read_torch_file(both[0])
    assert found["output.weight"].same_bytes_as(found["tok_embeddings.weight"])


BEYOND: Sizes = {
    "a": (FLOAT32, (5,)),
    "empty": (FLOAT16, (0, 3)),
    "large": (BFLOAT16, (5 * GB // 4, 2)),
    "b": (FLOAT16, (3, 7)),
    "empty beyond": (FLOAT32, (0,)),
    "large beyond": (FLOAT32, (5 * GB // 4,)),
    "c": (BFLOAT16, (9,)),
    "tied": (BFLOAT16, (5 * GB // 4, 2)),
}


def of_size(size: int) -> Sizes:
    """A tensor of that many bytes, and one after it."""
    return {"a": (BFLOAT16, (size // 2,)), "b": (FLOAT32, (3,))}


def followed_at(start: int) -> Sizes:
    """A tensor of a size that has the header of the next one begin there."""
    offset = lay_out_torch((name, *size) for name, size in of_size(4 * GB - 5000).items()).offsets["a"]
    return of_size(start - 16 - offset)


EDGES = {
    "beyond": BEYOND,
    "size below": of_size(4 * GB - 2),
    "size above": of_size(4 * GB),
    "start below": followed_at(4 * GB - 2),
    "start above": followed_at(4 * GB),
    "directory about there": followed_at(4 * GB - 400),
}


@pytest.mark.parametrize("sizes", EDGES.values(), ids=EDGES)
def test_beyond_4_gib_as_torch_saves_it(
    both: tuple[Path, Path], sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files are sparse: torch can save all but the weights, and then takes their CRC-32 to be zero."""
    state = {key: torch.empty(shape, dtype=getattr(torch, str(kind))) for key, (kind, shape) in sizes.items()}
    shared = {"tied": "large"} if "tied" in state else {}
    state |= {key: state[owner].detach() for key, owner in shared.items()}
    ours, theirs = both
    with torch.serialization.skip_data():
        torch.save(OrderedDict(state), theirs)
    layout = lay_out(state, shared)
    parts = list(layout.parts(dict.fromkeys(state, 0)))
    with ours.open("wb") as file:
        for offset, part in parts:
            os.pwrite(file.fileno(), part, offset)
    assert layout.size == ours.stat().st_size == theirs.stat().st_size
    pieces = [(offset, len(part)) for offset, part in parts]
    assert without_id(ours, pieces) == without_id(theirs, pieces)

    filled = [key for key, tensor in state.items() if tensor.numel()]
    with ours.open("r+b") as file:
        for key in filled:
            first, last = torch.tensor([2.0, 3.0], dtype=state[key].dtype)
            os.pwrite(file.fileno(), content(first), layout.offsets[key])
            os.pwrite(file.fileno(), content(last), layout.offsets[key] + state[key].nbytes - last.itemsize)
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")  # torch compares the file with its own arithmetic
    with config.patch("load.calculate_storage_offsets", True):  # type: ignore[attr-defined]
        loaded = torch.load(ours, weights_only=True, mmap=True)
    found = read_torch_file(ours)
    for key, tensor in state.items():
        assert loaded[key].shape == tensor.shape
        assert found[key].offset == layout.offsets[key]
    for key in filled:
        values = loaded[key].reshape(-1)
        assert (float(values[0]), float(values[1]), float(values[-1])) == (2.0, 0.0, 3.0)
    with zipfile.ZipFile(ours) as archive:
        archived = [info.file_size for info in archive.infolist() if "/data/" in info.filename]
    assert archived == [state[key].nbytes for key in state if key not in shared]


def test_parts_and_storages_fill_the_file_once() -> None:
    state = {"a": torch.ones(3, 5), "b": torch.ones(70).half(), "c": torch.ones(3, 5)}
    layout = lay_out(state, {"c": "a"})
    pieces = [(offset, len(part)) for offset, part in layout.parts({"a": 1, "b": 2})]
    pieces += [(layout.offsets[name], state[name].nbytes) for name in ("a", "b")]
    pieces.sort()
    assert pieces[0][0] == 0
    assert all(offset + size == after for (offset, size), (after, _) in pairwise(pieces))
    assert sum(pieces[-1]) == layout.size


def test_the_same_input_gives_the_same_bytes() -> None:
    state = synthetic.weights(LLAMA2)
    sums = {name: zlib.crc32(content(tensor)) for name, tensor in state.items()}
    first, second = lay_out(state), lay_out(state)
    assert first == second
    assert list(first.parts(sums)) == list(second.parts(sums))
    others = sums | {"norm.weight": 0}
    assert list(first.parts(sums))[-1] != list(first.parts(others))[-1]


def test_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    state = synthetic.weights(LLAMA2)
    path = tmp_path / "x.pth"
    layout = write(path, state)
    sums = {name: zlib.crc32(content(tensor)) for name, tensor in state.items()}
    sums["norm.weight"] ^= 1
    with path.open("r+b") as file:
        for offset, part in layout.parts(sums):
            os.pwrite(file.fileno(), part, offset)
    found = read_torch_file(path)
    assert read(found["output.weight"]).equal(state["output.weight"])
    with pytest.raises(InputError) as caught:
        read(found["norm.weight"])
    assert (caught.value.code, caught.value.tensor) == ("INPUT_CRC", "norm.weight")


def test_a_missing_checksum_is_an_error() -> None:
    with pytest.raises(KeyError):
        list(lay_out({"norm.weight": torch.ones(3)}).parts({}))


def test_laying_out_does_not_import_torch() -> None:
    code = (
        "import sys; from llama_convert.dtypes import FLOAT32;"
        "from llama_convert.formats.torch_writer import lay_out_torch;"
        "list(lay_out_torch([('a', FLOAT32, (3,))]).parts({'a': 0})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
