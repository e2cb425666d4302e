"""The `.pth` reader: finds every tensor that torch finds, and nothing that torch should not have built."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_convert.formats.torch_reader import read_torch_file
from tests.torch_files import assert_as_torch, read, refused


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_view_of_a_storage(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    strides = data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    offset = data.draw(st.integers(0, 20))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    storage = torch.randn(120).to(dtype)
    path = tmp_path_factory.mktemp("views") / "x.pth"
    torch.save({"x": storage.as_strided((rows, columns), strides, offset)}, path)
    assert_as_torch(path)


@pytest.mark.parametrize("name", ["consolidated.00.pth", "renamed", "archive.pth"])
def test_any_archive_root_and_file_name(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / name)
    (tmp_path / name).rename(tmp_path / "other.pth")
    assert_as_torch(tmp_path / "other.pth")
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)  # root "archive"
    (tmp_path / "buffer.pth").write_bytes(buffer.getvalue())
    assert_as_torch(tmp_path / "buffer.pth")


def test_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_torch_file(tmp_path / "x.pth")["a"].storage.crc32 is None


def test_protocols_up_to_the_newest(tmp_path: Path) -> None:
    for protocol in (2, 3, 4, 5):
        path = tmp_path / f"{protocol}.pth"
        torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path, pickle_protocol=protocol)
        found = read_torch_file(path)
        assert read(found["a"]).equal(torch.ones(3))
        assert read(found["b"]).equal(torch.zeros(2, 2))


def test_reading_imports_neither_torch_nor_what_the_file_names(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth")
    code = (
        "import sys; from pathlib import Path\n"
        "from llama_convert.formats.torch_reader import read_torch_file;"
        f"read_torch_file(Path({str(tmp_path / 'x.pth')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


def test_pickled_objects_are_named_and_never_built(tmp_path: Path) -> None:
    path, marker = tmp_path / "x.pth", tmp_path / "marker"
    torch.save({"a": torch.ones(3), "b": Evil(marker)}, path)
    error = refused(path)
    assert error.code == "INPUT_PICKLE_OBJECT"
    assert "posix.mkdir" in str(error)
    assert not marker.exists()
    torch.save({"a": torch.ones(3), "b": Counter("aab")}, path)
    assert "collections.Counter" in str(refused(path))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ([torch.ones(2)], "INPUT_PICKLE"),
        (torch.ones(2), "INPUT_PICKLE"),
        ({}, "INPUT_PICKLE"),
        ({"a": 3}, "INPUT_PICKLE"),
        ({"a": {"b": torch.ones(1)}}, "INPUT_PICKLE"),
        ({3: torch.ones(1)}, "INPUT_PICKLE"),
        ({"a": torch.eye(3).to_sparse()}, "TENSOR_UNSUPPORTED"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "TENSOR_UNSUPPORTED"),
        ({"a": torch.ones(2, device="meta")}, "TENSOR_UNSUPPORTED"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_other_contents_are_refused(tmp_path: Path, content: Any, code: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert refused(tmp_path / "x.pth").code == code


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"\0" * 4096, "zeros"),
        (b"\x1f\x8b\x08\0\0\0", "gzip"),
        (b"garbage" * 50, "Not a PyTorch file"),
        (b"PK\3\4 and then nothing", "Truncated or damaged PyTorch file"),
    ],
)
def test_other_files_are_named(tmp_path: Path, head: bytes, words: str) -> None:
    (tmp_path / "x.pth").write_bytes(head)
    assert words in str(refused(tmp_path / "x.pth"))


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    torch.save({"a": torch.randn(64, 8), "b": torch.randn(5)}, tmp_path / "whole.pth")
    return (tmp_path / "whole.pth").read_bytes()


def test_every_truncation_is_refused(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.pth"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)


def test_every_flipped_bit_of_the_pickle_is_refused(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("whole/data.pkl")
    start = whole.index(pickled)
    for position in range(start, start + len(pickled)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            refused(path)


def rewrite(path: Path, change: Any) -> None:
    """Write the archive anew with `change(name, data, info)` giving what to write for each entry."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in entries:
            for name, content, compression in change(info.filename, data):
                archive.writestr(name, content, compress_type=compression)


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, d: [(n, d, DEFLATED)], "compressed"),
        (
            lambda n, d: [] if n.endswith("data/0") else [(n, d, STORED)],
            "data/0 is not in the file",
        ),
        (
            lambda n, d: [(n, d[:100], STORED)] if n.endswith("data/0") else [(n, d, STORED)],
            "Wrong size of the storage data/0",
        ),
        (lambda n, d: [(n, d + b"more", STORED)] if n.endswith("data/0") else [(n, d, STORED)], "data/0"),
        (lambda n, d: [] if n.endswith("data.pkl") else [(n, d, STORED)], "no data.pkl"),
        (lambda n, d: [(n, d, STORED)] * (2 if n.endswith("data/0") else 1), "Duplicate entry"),
        (lambda n, d: [(n.replace("whole", "other") if "/0" in n else n, d, STORED)], "several root folders"),
        (
            lambda n, d: [(n, b"big\0\0\0", STORED)] if n.endswith("byteorder") else [(n, d, STORED)],
            "big-endian",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_torch_never_writes(tmp_path: Path, whole: bytes, change: Any, words: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(whole)
    rewrite(path, change)
    assert words in str(refused(path))


def with_pickle(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", bytes(64))


class Storage:
    """Stands for torch's storage while a hostile pickle is made."""


def hostile(*arguments: Any, key: str = "0", numel: int = 16) -> bytes:
    """The pickle of one tensor rebuilt with `arguments` (offset, shape, strides)."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", numel) if isinstance(value, Storage) else None

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), *arguments, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"a": Rebuilt()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "pickled",
    [
        hostile(1, (4, 4), (4, 1)),  # one element past the end
        hostile(0, (4, 4), (100, 1)),
        hostile(-1, (4,), (1,)),
        hostile(0, (-4,), (1,)),
        hostile(0, (4,), (-1,)),
        hostile(0, (4, 4), (1,)),
        hostile(0, (2**40, 2**40), (1, 1)),
        hostile(2**62, (1,), (1,)),
        hostile(0, (1,) * 20, (1,) * 20),
        hostile(0, (4,), (1,), numel=2**60),
        hostile(0, (4,), (1,), key="../0"),
        hostile(0, (4,), (1,), key=""),
        b"",
        b"\x80\x02",
        b"\x80\x02}q\x00.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02]" + b"r\xff\xff\xff\x0f" + b".",  # a memo index of 2**28
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
        pickle.dumps({"a": 1}, protocol=0),
    ],
)
def test_hostile_pickles_are_refused(tmp_path: Path, pickled: bytes) -> None:
    with_pickle(tmp_path / "x.pth", pickled)
    refused(tmp_path / "x.pth")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_pickle_machine(noise: bytes) -> None:
    from llama_convert.formats.pickle_objects import PickleRefusedError
    from llama_convert.formats.pickle_reader import read_pickle

    for data in (noise, b"\x80\x02" + noise + b"."):
        with suppress(PickleRefusedError):
            read_pickle(data)


def test_a_name_twice(tmp_path: Path) -> None:
    """Python's dict would keep the last in silence."""
    torch.save({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "x.pth")
    rewrite(
        tmp_path / "x.pth",
        lambda n, d: [
            (n, d.replace(b"\x01\x00\x00\x00b", b"\x01\x00\x00\x00a") if n.endswith(".pkl") else d, STORED)
        ],
    )
    assert "twice" in str(refused(tmp_path / "x.pth"))


def test_pipes_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pth")
    assert refused(tmp_path / "x.pth").code == "INPUT_NOT_REGULAR"
    (tmp_path / "y.pth").mkdir()
    assert refused(tmp_path / "y.pth").code == "INPUT_NOT_REGULAR"
    (tmp_path / "z.pth").symlink_to(tmp_path / "nowhere")
    assert "does not exist" in str(refused(tmp_path / "z.pth"))
