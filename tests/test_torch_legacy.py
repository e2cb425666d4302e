"""PyTorch files in the format from before version 1.6: the same tensors as torch loads, and no others."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_convert.errors import InputError
from llama_convert.formats.pickle_reader import MAX_PICKLE
from llama_convert.formats.torch_reader import read_torch_file
from tests.limits import cpu_limit
from tests.torch_files import as_bytes, assert_as_torch, read, refused

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {
    "protocol_version": PROTOCOL,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def save(content: object, path: Path, *, zipped: bool = False, **options: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)


def every_kind_of_tensor() -> OrderedDict[str, torch.Tensor]:
    flat = torch.randn(1000)
    head = torch.randn(3, 4).bfloat16()
    state = OrderedDict(
        bf16=head,
        fp16=torch.randn(7).half(),
        fp64=torch.randn(2).double(),
        int64=torch.arange(3),
        bool=torch.tensor([True, False]),
        complex64=torch.randn(2, dtype=torch.complex64),
        parameter=torch.nn.Parameter(torch.randn(4, 2)),
        view=flat[10:30].view(4, 5),
        transposed=flat[100:120].view(4, 5).t(),
        every_other_row=flat[200:280].view(10, 8)[::2],
        every_other_column=flat[300:380].view(10, 8)[:, ::2],
        window=flat[400:480].view(10, 8)[2:5, 3:7],
        expanded=flat[500:508].expand(6, 8),
        whole=flat,
        tied=head,
        empty=torch.empty(0, 4),
    )
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor(tmp_path: Path, protocol: int, *, zipped: bool) -> None:
    state = every_kind_of_tensor()
    save(state, tmp_path / "x.pth", zipped=zipped, pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "x.pth")
    assert found["tied"].same_bytes_as(found["bf16"])
    if protocol == 2:
        assert_as_torch(tmp_path / "x.pth")
    for name, tensor in state.items():
        assert as_bytes(read(found[name])) == as_bytes(tensor)


def test_float8(tmp_path: Path) -> None:
    """Has an untyped storage, which torch itself writes in this format but does not load."""
    state = {"a": torch.randn(3, 5).to(torch.float8_e4m3fn)}
    save(state, tmp_path / "x.pth")
    assert as_bytes(read(read_torch_file(tmp_path / "x.pth")["a"])) == as_bytes(state["a"])


def test_a_module(tmp_path: Path) -> None:
    layers = torch.nn.TransformerEncoderLayer(8, 2, 12)
    save(layers.state_dict(), tmp_path / "x.pth")
    assert_as_torch(tmp_path / "x.pth")


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_set_of_tensors(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    sizes = data.draw(
        st.lists(st.tuples(st.integers(1, 40), st.sampled_from(DTYPES)), min_size=1, max_size=25)
    )
    storages = [torch.randn(size).to(dtype) for size, dtype in sizes]
    names = data.draw(st.lists(st.text("abc.0", min_size=1), min_size=1, max_size=30, unique=True))
    state = {}
    for name in names:
        storage = data.draw(st.sampled_from(storages))
        offset = data.draw(st.integers(0, len(storage) - 1))
        rows = data.draw(st.integers(1, len(storage) - offset))
        columns = data.draw(st.integers(1, (len(storage) - offset) // rows))
        strides = data.draw(st.sampled_from([(columns, 1), (1, rows)]))
        state[name] = storage.as_strided((rows, columns), strides, offset)
    path = tmp_path_factory.mktemp("sets") / "x.pth"
    for zipped in (True, False):
        save(state, path, zipped=zipped)
        assert_as_torch(path)


def test_hundreds_of_storages(tmp_path: Path) -> None:
    save({f"layers.{n}": torch.full((n % 7 + 1,), n).half() for n in range(900)}, tmp_path / "x.pth")
    assert_as_torch(tmp_path / "x.pth")


# Files that today's torch does not write.


class Persistent:
    """A storage in a pickle."""

    def __init__(self, *reference: Any) -> None:
        self.reference = ("storage", *reference)


class Tensor:
    """A tensor in a pickle, by the function that builds it."""

    def __init__(self, *arguments: Any, build: Any = torch._utils._rebuild_tensor_v2) -> None:
        self.build = build, arguments

    def __reduce__(self) -> Any:
        return self.build


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.reference if isinstance(value, Persistent) else None


def dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def tensor(storage: Persistent, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    return Tensor(storage, offset, shape, strides, False, OrderedDict())


def container(
    content: bytes,
    storages: Sequence[tuple[str, int, bytes]],
    *,
    magic: Any = MAGIC,
    version: Any = PROTOCOL,
    machine: Any = MACHINE,
    keys: Any = None,
) -> bytes:
    """A file of a pickle and storages: key, number of elements, bytes."""
    keys = [key for key, _, _ in storages] if keys is None else keys
    data = b"".join(struct.pack("<q", numel) + values for _, numel, values in storages)
    return b"".join(map(dumps, (magic, version, machine))) + content + dumps(keys) + data


def floats(count: int) -> bytes:
    return as_bytes(torch.randn(count))


def test_keys_are_sorted_as_strings(tmp_path: Path) -> None:
    sizes = {"9": 3, "10": 5, "100": 2, "99": 7}
    state = {
        f"t{key}": tensor(Persistent(torch.FloatStorage, key, "cpu", size, None), 0, (size,), (1,))
        for key, size in sizes.items()
    }
    storages = [(key, sizes[key], floats(sizes[key])) for key in sorted(sizes)]
    (tmp_path / "x.pth").write_bytes(container(dumps(state), storages))
    assert_as_torch(tmp_path / "x.pth")


def test_views_of_old_files(tmp_path: Path) -> None:
    """Old versions of torch wrote storages that are views of another one."""
    root = ("7", "cpu", 24)
    state = {
        "whole": tensor(Persistent(torch.FloatStorage, *root, None), 0, (4, 6), (6, 1)),
        "view": tensor(Persistent(torch.FloatStorage, *root, ("8", 5, 12)), 1, (2, 3), (4, 1)),
        "again": tensor(Persistent(torch.FloatStorage, *root, ("8", 5, 12)), 0, (12,), (1,)),
        "end": tensor(Persistent(torch.FloatStorage, *root, ("9", 23, 1)), 0, (1,), (1,)),
    }
    (tmp_path / "x.pth").write_bytes(container(dumps(state), [("7", 24, floats(24))]))
    assert_as_torch(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("view", "offset", "shape"),
    [
        (("8", 5, 12), 1, (12,)),
        (("8", 5, 12), 12, (1,)),
        (("8", 20, 5), 0, (1,)),
        (("8", -1, 5), 0, (1,)),
        (("8", 1, -1), 0, (1,)),
        (("7", 0, 5), 0, (1,)),  # the key of the storage
        (("", 0, 5), 0, (1,)),
        (("8", 0), 0, (1,)),
        (8, 0, (1,)),
    ],
)
def test_tensors_outside_their_view(tmp_path: Path, view: Any, offset: int, shape: tuple[int, ...]) -> None:
    state = {"a": tensor(Persistent(torch.FloatStorage, "7", "cpu", 24, view), offset, shape, (1,))}
    (tmp_path / "x.pth").write_bytes(container(dumps(state), [("7", 24, floats(24))]))
    refused(tmp_path / "x.pth")


def test_a_view_with_two_sizes(tmp_path: Path) -> None:
    """torch uses the first for both."""
    state = {
        name: tensor(Persistent(torch.FloatStorage, "7", "cpu", 24, ("8", start, 4)), 0, (4,), (1,))
        for name, start in (("a", 0), ("b", 4))
    }
    (tmp_path / "x.pth").write_bytes(container(dumps(state), [("7", 24, floats(24))]))
    assert "two sizes" in str(refused(tmp_path / "x.pth"))


def test_the_function_of_old_files(tmp_path: Path) -> None:
    """Old versions of torch wrote tensors without a gradient flag."""
    storage = Persistent(torch.FloatStorage, "7", "cpu", 6, None)
    state = {"a": Tensor(storage, 0, (2, 3), (3, 1), build=torch._utils._rebuild_tensor)}
    (tmp_path / "x.pth").write_bytes(container(dumps(state), [("7", 6, floats(6))]))
    assert_as_torch(tmp_path / "x.pth")


def one_tensor(*, key: str = "7", numel: Any = 4, storage: Any = torch.FloatStorage) -> bytes:
    return dumps({"a": tensor(Persistent(storage, key, "cpu", numel, None), 0, (4,), (1,))})


GOOD = ("7", 4, floats(4))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (container(one_tensor(), [GOOD], version=1000), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD], machine={}), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD], machine=[True]), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD], machine=MACHINE | {"little_endian": False}), "TENSOR_UNSUPPORTED"),
        (container(one_tensor(), [("7", 3, floats(4))]), "TENSOR_INVALID"),
        (container(one_tensor(), [("7", -1, floats(4))]), "TENSOR_INVALID"),
        (container(one_tensor(), [("7", 4, floats(3))]), "INPUT_TRUNCATED"),
        (container(one_tensor(), [("7", 4, floats(5))]), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD]) + b"\0", "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD, ("8", 4, floats(4))]), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD, GOOD]), "INPUT_PICKLE"),
        (container(one_tensor(), []), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD], keys=["8"]), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD], keys=[7]), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD], keys=[["7"]]), "INPUT_PICKLE"),
        (container(one_tensor(), [GOOD], keys="7"), "INPUT_PICKLE"),
        (container(one_tensor(key="../7"), [GOOD]), "INPUT_PICKLE"),
        (container(one_tensor(key="7" * 41), [GOOD]), "INPUT_PICKLE"),
        (container(one_tensor(numel=-4), [GOOD]), "TENSOR_INVALID"),
        (container(one_tensor(numel=2**70), [GOOD]), "INPUT_TRUNCATED"),
        (container(one_tensor(numel="4"), [GOOD]), "INPUT_PICKLE"),
        (container(one_tensor(storage=torch.DoubleStorage), [GOOD]), "INPUT_TRUNCATED"),
        (container(one_tensor(storage=torch.HalfStorage), [GOOD]), "INPUT_PICKLE"),
        (container(one_tensor(storage=torch.nn.Linear), [GOOD]), "INPUT_PICKLE_OBJECT"),
        (container(dumps([1]), []), "INPUT_PICKLE"),
        (container(dumps({}), []), "INPUT_PICKLE"),
        (dumps(MAGIC), "INPUT_TRUNCATED"),
    ],
)
def test_files_that_contradict_themselves(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "x.pth").write_bytes(container(one_tensor(), [GOOD]))
    assert_as_torch(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(content)
    assert refused(tmp_path / "x.pth").code == code


def test_a_storage_with_two_dtypes(tmp_path: Path) -> None:
    """torch uses the first for both."""
    state = {
        name: tensor(Persistent(dtype, "7", "cpu", numel, None), 0, (4,), (1,))
        for name, dtype, numel in (("a", torch.FloatStorage, 4), ("b", torch.HalfStorage, 8))
    }
    (tmp_path / "x.pth").write_bytes(container(dumps(state), [GOOD]))
    assert "two sizes or dtypes" in str(refused(tmp_path / "x.pth"))


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_tar_format_is_named(tmp_path: Path, tar_format: int) -> None:
    with tarfile.open(tmp_path / "x.pth", "w:", format=tar_format) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            (tmp_path / name).write_bytes(pickle.dumps({}, 2))
            archive.add(tmp_path / name, arcname=name)
    error = refused(tmp_path / "x.pth")
    assert error.code == "INPUT_LEGACY"
    assert "tar" in str(error)
    assert "torch.load" in str(error.hint)


@pytest.mark.parametrize("protocol", [0, 1])
def test_protocols_before_2_are_named(tmp_path: Path, protocol: int) -> None:
    save({"a": torch.ones(3)}, tmp_path / "x.pth", pickle_protocol=protocol)
    assert "pickle protocol 0 or 1" in str(refused(tmp_path / "x.pth"))


def test_reading_does_not_import_torch(tmp_path: Path) -> None:
    save({"a": torch.ones(3)}, tmp_path / "x.pth")
    code = (
        "import sys; from pathlib import Path\n"
        "from llama_convert.formats.torch_reader import read_torch_file;"
        f"read_torch_file(Path({str(tmp_path / 'x.pth')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Damage.


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    shared = torch.randn(6, 4)
    state = {"a": shared, "b": torch.randn(5).bfloat16(), "c": shared[1:3, :2]}
    save(state, tmp_path / "whole.pth")
    return (tmp_path / "whole.pth").read_bytes()


def pickles_end(path: Path) -> int:
    """Offset of the first storage: of its number of elements."""
    return min(tensor.storage.offset for tensor in read_torch_file(path).values()) - 8


def test_every_truncation_is_refused(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.pth"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)


def test_bytes_after_the_end_are_refused(tmp_path: Path, whole: bytes) -> None:
    for more in (b"\0", b"x" * 8, bytes(4096), whole):
        (tmp_path / "x.pth").write_bytes(whole + more)
        assert "after its last storage" in str(refused(tmp_path / "x.pth"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_every_flipped_bit_of_the_pickles(tmp_path: Path, whole: bytes) -> None:
    """Refused, or read as torch reads it: without checksums, a name can become another."""
    path = tmp_path / "x.pth"
    outcomes: Counter[str] = Counter()
    for position in range(pickles_end(tmp_path / "whole.pth")):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            outcomes[outcome(path)] += 1
    assert outcomes["refused"] > outcomes["as torch"] > 0
    # torch.load checks the device, which has no effect on the bytes
    assert outcomes["accepted"] < 0.05 * outcomes.total(), outcomes


def outcome(path: Path) -> str:
    """What reading a damaged file results in; asserts that both readers agree if both read it."""
    try:
        found = read_torch_file(path)
    except InputError:
        return "refused"
    try:
        expected = torch.load(path, weights_only=True)
    except Exception:  # torch raises many types
        return "accepted"
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert tensor.shape == tuple(expected[name].shape)
        if 0 < len(tensor.shape) < 3 and 0 < tensor.nbytes < 1 << 20:
            assert as_bytes(read(tensor)) == as_bytes(expected[name])
    return "as torch"


def test_every_flipped_byte_of_the_storages(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.pth"
    data = {
        offset
        for tensor in read_torch_file(tmp_path / "whole.pth").values()
        for offset in range(tensor.storage.offset, tensor.storage.offset + tensor.storage.size)
    }
    for position in range(pickles_end(tmp_path / "whole.pth"), len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        if position in data:
            assert_as_torch(path)
        else:
            assert "number of elements" in str(refused(path))


INPUTS = 1500


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files(tmp_path: Path, whole: bytes) -> None:
    """1,500 inputs: bytes changed, inserted, removed and repeated in the pickles."""
    chance, end, path = random.Random(0), pickles_end(tmp_path / "whole.pth"), tmp_path / "x.pth"
    outcomes: Counter[str] = Counter()
    for _ in range(INPUTS):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 4))):
            start = chance.randrange(end)
            part = bytes(damaged[start : start + chance.choice((0, 1, 4, 30))])
            damaged[start : start + len(part)] = chance.choice(
                (b"", part * 2, chance.randbytes(len(part)), chance.choice((b"\0", b"\xff")) * 4)
            )
        path.write_bytes(damaged)
        with cpu_limit(5.0):
            outcomes[outcome(path)] += 1
    print(f"{INPUTS} inputs, {dict(outcomes)}")
    assert outcomes["refused"] > INPUTS / 2


# Attacks.


class Evil:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("function", [os.system, exec, eval, os.mkdir], ids=lambda f: f.__name__)
def test_no_function_is_called(tmp_path: Path, place: int, function: Callable[..., Any]) -> None:
    """In any of the five pickles."""
    marker = tmp_path / "marker"
    arguments = {
        "system": f"touch {marker}",
        "exec": f"open({str(marker)!r}, 'w')",
        "eval": f"open({str(marker)!r}, 'w')",
        "mkdir": str(marker),
    }
    evil = dumps(Evil(function, arguments[function.__name__]))
    parts = [dumps(MAGIC), dumps(PROTOCOL), dumps(MACHINE), one_tensor(), dumps(["7"])]
    if place == 0:
        evil = evil[:2] + dumps(MAGIC)[2:-1] + b"0" + evil[2:]  # begins like a magic number
    parts[place] = evil
    (tmp_path / "x.pth").write_bytes(b"".join(parts) + struct.pack("<q", 4) + GOOD[2])
    error = refused(tmp_path / "x.pth")
    assert error.code == ("INPUT_PICKLE" if place == 0 else "INPUT_PICKLE_OBJECT")
    assert not marker.exists()


def memo(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


NUMBERS = b"(" + b"K\0" * 200_000 + b"t"
BOMBS = {
    "a memo index of 2**28": memo(b"]", b"r\xff\xff\xff\x0f"),
    "a string of 4 GB": memo(b"X\xff\xff\xff\xff"),
    "100,000 marks": memo(b"(" * 100_000),
    "lists of lists": memo(b"]q\0", *(b"](" + b"h\0" * 50 + b"eq\0" for _ in range(1000))),
    "a long tuple of arguments": memo(
        b"ctorch\nSize\nq\0", NUMBERS, b"q\1", b"h\0h\1R" * 100_000
    ),
    "a long shape": memo(
        dumps(Persistent(torch.FloatStorage, "7", "cpu", 4, None))[2:-1], b"q\xf0",
        NUMBERS, b"q\xf1", b"ctorch._utils\n_rebuild_tensor\nq\xf2",
        b"h\xf2(h\xf0K\0h\xf1h\xf1tR" * 100_000,
    ),
    "a long storage key": memo(
        b"ctorch\nFloatStorage\nq\0", text(b"7" * 500_000), b"q\1", text(b"cpu"), b"q\2",
        b"(X\7\0\0\0storageh\0h\1h\2K\4tq\3", b"Qh\3" * 100_000,
    ),
    "more than the limit": memo(b"]" + text(b"x" * 1000) * 3000),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path: Path, name: str) -> None:
    import tracemalloc

    assert name != "more than the limit" or len(BOMBS[name]) > MAX_PICKLE
    (tmp_path / "x.pth").write_bytes(container(BOMBS[name], []))
    tracemalloc.start()
    try:
        with cpu_limit(20.0):
            refused(tmp_path / "x.pth")
        assert tracemalloc.get_traced_memory()[1] < 128 * MAX_PICKLE
    finally:
        tracemalloc.stop()


def test_a_few_bytes_do_not_describe_terabytes(tmp_path: Path) -> None:
    """As in zip files: neither by strides of zero nor by many names of one storage."""
    storage = Persistent(torch.FloatStorage, "7", "cpu", 4, None)
    for shape in ((2**20, 2**20), (2**40,)):
        content = dumps({"a": tensor(storage, 0, shape, (0,) * len(shape))})
        (tmp_path / "x.pth").write_bytes(container(content, [GOOD]))
        assert refused(tmp_path / "x.pth").code == "TENSOR_INVALID"
    vectors = {f"{n}": tensor(storage, 0, (2**20,), (0,)) for n in range(100)}
    (tmp_path / "x.pth").write_bytes(container(dumps(vectors), [GOOD]))
    assert refused(tmp_path / "x.pth").code == "TENSOR_INVALID"


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=200))
def test_no_bytes_after_the_magic_number_crash(
    noise: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.pth"
    path.write_bytes(dumps(MAGIC) + noise)
    with suppress(InputError):
        read_torch_file(path)
