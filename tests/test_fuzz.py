"""Damaged on purpose, by the thousand: a reader may refuse a file, and may do nothing else wrong.

Seeded, so that a failure can be run again.  `-s` shows how many inputs were tried.
"""

from __future__ import annotations

import json
import random
import re
import resource
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from llama_convert.checkpoints.huggingface import read_headers
from llama_convert.checkpoints.huggingface_config import read_config
from llama_convert.checkpoints.manifest import MANIFEST, manifest_json, read_manifest
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.meta_folder import find_meta_folder
from llama_convert.checkpoints.params import read_params
from llama_convert.checkpoints.row_reader import read_rows
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight, matrix_shape
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.source_checks import compare_with_checklist
from llama_convert.errors import LlamaConvertError
from llama_convert.formats.pickle_objects import PickleRefusedError
from llama_convert.formats.pickle_reader import read_pickle
from llama_convert.formats.safetensors import read_safetensors_file
from llama_convert.formats.tensors import StoredTensor
from llama_convert.formats.torch_reader import read_torch_file
from llama_convert.observer import Observer
from llama_convert.tokenizers import convert_tokenizer, open_tokenizer, ranks_of_tokenizer_json
from tests import synthetic, zoo
from tests.limits import cpu_limit
from tests.peers import ROOT

SECONDS = 5.0
"""Processor time that one input may take."""
MEMORY = 256 << 20
LONGEST = 1000
SHAPE = synthetic.Shape(dim=8, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=12, vocab_size=10)

Mutate = Callable[[random.Random, bytes], bytes]
Read = Callable[[Path], object]

# Mutations.

NUMBERS = (
    0,
    1,
    2,
    1 << 40,
    *((1 << bits) - one for bits in (7, 8, 15, 16, 31, 32, 63, 64) for one in (0, 1)),
)


def _place(chance: random.Random, data: bytes) -> int:
    return chance.randrange(len(data) + 1)


def _flip(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: _place(chance, data)]


def _drop(chance: random.Random, data: bytes) -> bytes:
    start = _place(chance, data)
    return data[:start] + data[start + chance.choice((1, 2, 8, 100)) :]


def _repeat(chance: random.Random, data: bytes) -> bytes:
    start = _place(chance, data)
    part = data[start : start + chance.choice((1, 4, 30, 200))]
    return data[:start] + part * chance.choice((2, 3, 50)) + data[start + len(part) :]


def _splice(chance: random.Random, data: bytes) -> bytes:
    start, other = _place(chance, data), _place(chance, data)
    part = data[other : other + chance.choice((1, 4, 30, 200))]
    return data[:start] + part + data[start + len(part) :]


def _number(chance: random.Random, data: bytes) -> bytes:
    start = _place(chance, data)
    layout = chance.choice(("<B", "<H", "<I", "<Q", ">Q"))
    size = struct.calcsize(layout)
    number = chance.choice((*NUMBERS, len(data), chance.getrandbits(64))) & ((1 << 8 * size) - 1)
    return data[:start] + struct.pack(layout, number) + data[start + size :]


def _noise(chance: random.Random, data: bytes) -> bytes:
    start = _place(chance, data)
    return data[:start] + chance.randbytes(chance.choice((1, 4, 40))) + data[start:]


MUTATIONS: tuple[Mutate, ...] = (_flip, _flip, _cut, _drop, _repeat, _splice, _number, _number, _noise)


def damage(chance: random.Random, data: bytes) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(MUTATIONS)(chance, data)
    return data


VALUES = (
    *b"null true false 0 -1 1 0.5 1e999 -1e999 NaN Infinity 1e308 1e-320 18446744073709551616 [] {}".split(),
    *b'[0] "" "x" ".." "/etc/passwd" "a/b" "a\\u0000b" "\\ud800" "\\n" {"a":{"a":1}} [1,[2,[3]]]'.split(),
    b"9" * 400, b"9" * 5000, b'"' + b"x" * 5000 + b'"', b"[" * 300 + b"]" * 300, b"[" * 5000,
)  # fmt: skip
_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?|"[^"]*"|true|false|null|\[[^\[\]]*\]')


def misstate(chance: random.Random, text: bytes) -> bytes:
    """JSON with other values, keys or structure; now and then damaged as bytes."""
    if chance.random() < 0.3:
        return damage(chance, text)
    for _ in range(chance.choice((1, 1, 2, 4))):
        tokens = list(_TOKEN.finditer(text))
        if tokens:
            token = chance.choice(tokens)
            text = text[: token.start()] + chance.choice(VALUES) + text[token.end() :]
    return text


def damaged_directory(chance: random.Random, data: bytes) -> bytes:
    """Damage what is not storage: the headers and the directory of an archive."""
    start = data.index(b"PK\1\2")
    if chance.random() < 0.7:
        return data[:start] + damage(chance, data[start:])
    return damage(chance, data[:100]) + data[100:]


def damaged_pickle(chance: random.Random, data: bytes) -> bytes:
    """A pickle that says something else under a CRC-32 that is right."""
    with zipfile.ZipFile(_file(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    return zoo.zipped([(n, damage(chance, c) if n.endswith("data.pkl") else c) for n, c in entries])


def _file(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def misstated_header(chance: random.Random, data: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    header = misstate(chance, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


# Readers.


def values(tensor: StoredTensor) -> bytes:
    """A tensor's bytes, read through our own gather and checked against the checksum."""
    rows, columns = matrix_shape(tensor.shape)
    block = np.empty((rows, columns * tensor.dtype.itemsize), np.uint8)
    weight = StoredWeight(tensor.name, tensor.shape, tensor.dtype, (Piece(0, 0, Slab.of(tensor)),))
    with SourceFiles() as files:
        read_rows(files, weight, 0, rows, block)
        files.check_partly_read(1 << 20)
    return block.tobytes()


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def readable(tensor: StoredTensor) -> bool:
    return len(tensor.shape) < 3 and 0 < tensor.nbytes < 1 << 20


def read_torch(path: Path) -> bool:
    """Read it, and where torch reads it too, the same; True if it did."""
    found = read_torch_file(path)
    ours = {name: values(tensor) for name, tensor in found.items() if readable(tensor)}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(info.external_attr for info in archive.infolist()):
                return False  # of a "folder" torch returns memory that it never filled
    try:
        expected = torch.load(path, weights_only=True)
    except Exception:
        return False
    assert list(found) == list(expected)
    for name, data in ours.items():
        assert tuple(expected[name].shape) == found[name].shape
        assert as_bytes(expected[name]) == data, name
    return True


def read_safetensors(path: Path) -> bool:
    found = read_safetensors_file(path)
    expected = safetensors.safe_open(path, "pt")
    assert set(found) == set(expected.keys())
    for name, tensor in found.items():
        if readable(tensor):
            assert as_bytes(expected.get_tensor(name)) == values(tensor)
    return True


def read_index(path: Path) -> None:
    checkpoint, problems = read_headers(path.parent)
    assert checkpoint is not None or problems
    for problem in problems:
        assert len(str(problem)) < LONGEST + len(str(path))
    if problems:
        raise problems[0]


def read_tokenizer(path: Path) -> None:
    tokenizer = open_tokenizer(path)
    (path.parent / "out").mkdir(exist_ok=True)
    convert_tokenizer(tokenizer, path.parent / "out")


def read_tokenizer_json(path: Path) -> None:
    try:
        ranks_of_tokenizer_json(json.loads(path.read_bytes()))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise LlamaConvertError("TOKENIZER_JSON", "as it says") from None


def read_bare_pickle(path: Path) -> None:
    try:
        read_pickle(path.read_bytes())
    except PickleRefusedError as error:
        raise LlamaConvertError(error.code, str(error)) from None


# What is read.


@dataclass(frozen=True)
class Kind:
    """Good files, what is done to them, and what reads them."""

    name: str
    """Of the file."""
    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    read: Read
    share: int
    """Of a budget of a hundred."""
    beside: Callable[[Path], object] = lambda folder: None
    """Makes the other files of the folder."""


@cache
def small_pth() -> list[bytes]:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.randn(4, 4).bfloat16(), "c": torch.ones(5).half()}
    state["d"] = state["b"][1:3, :2]
    return [
        saved(state),
        saved(state, pickle_protocol=4),
        saved(state, crc32=False),
        zoo.zipped(entries_of(saved(state))),
    ]


@cache
def small_legacy() -> list[bytes]:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.randn(4, 4).bfloat16(), "c": torch.ones(5).half()}
    state["d"] = state["b"][1:3, :2]
    options: tuple[dict[str, int], ...] = ({}, {"pickle_protocol": 4})
    return [saved(state, _use_new_zipfile_serialization=False, **more) for more in options]


def with_checksums() -> list[bytes]:
    return small_pth()[:2]


def saved(state: Any, *, crc32: bool = True, **options: Any) -> bytes:
    buffer = _file(b"")
    torch.serialization.set_crc32_options(crc32)
    try:
        torch.save(state, buffer, **options)
    finally:
        torch.serialization.set_crc32_options(True)
    content: bytes = buffer.getvalue()
    return content


def entries_of(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(_file(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def pickles() -> list[bytes]:
    return [
        content
        for data in with_checksums()
        for name, content in entries_of(data)
        if name.endswith("data.pkl")
    ]


@cache
def small_safetensors() -> list[bytes]:
    from safetensors.torch import save

    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.randn(4, 4).bfloat16(), "c": torch.ones(5).half()}
    return [save(state), save(state, {"format": "pt"})]


PARAMS = [
    json.dumps(content).encode()
    for content in (
        synthetic.params(SHAPE) | {"multiple_of": 4, "ffn_dim_multiplier": 1.0, "n_kv_heads": 2},
        {
            "model": synthetic.params(SHAPE) | {"rope_theta": 5e5, "use_scaled_rope": True},
            "other": [1, {"a": 2}],
        },
    )
]
LLAMA3 = SHAPE.but(params={"use_scaled_rope": True})


@cache
def huggingface_files() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder = synthetic.write_huggingface(Path(place) / "hf", LLAMA3, synthetic.weights(LLAMA3))
        zoo.split(folder)
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def beside_index(folder: Path) -> None:
    for name, content in huggingface_files().items():
        (folder / name).write_bytes(content)


@cache
def rank_file() -> bytes:
    return saved(synthetic.weights(SHAPE))


def tokenizers() -> list[bytes]:
    folders = ("llama2-mp2", "llama3.1-mp2")
    return [(ROOT / "fixtures" / folder / "tokenizer.model").read_bytes() for folder in folders]


def tokenizer_jsons() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        convert_tokenizer(open_tokenizer(ROOT / "fixtures" / "llama3.1-mp2" / "tokenizer.model"), Path(place))
        return [(Path(place) / "tokenizer.json").read_bytes()]


def manifests() -> list[bytes]:
    weights = {"a": {"xxh3_128": "0" * 32, "shape": [2, 3]}, "ü": {"xxh3_128": "f" * 32}}
    return [manifest_json({"version": "1", "weights": weights, "files": {"x": {"bytes": 1}}})]


def checklists() -> list[bytes]:
    line = b"d41d8cd98f00b204e9800998ecf8427e  "  # of nothing
    return [line + b"params.json\n" + line + b"consolidated.00.pth\n"]


def beside_checklist(folder: Path) -> None:
    (folder / "params.json").touch()
    (folder / "consolidated.00.pth").touch()


def read_checklist(path: Path) -> None:
    compare_with_checklist(path.parent, 1, Messages(Observer()))


def open_folder(path: Path) -> None:
    open_meta(find_meta_folder(path.parent))


KINDS: dict[str, Kind] = {
    "archive": Kind("x.pth", small_pth, damage, read_torch, 15),
    "archive's directory": Kind("x.pth", small_pth, damaged_directory, read_torch, 15),
    "archived pickle": Kind("x.pth", with_checksums, damaged_pickle, read_torch, 15),
    "format before 1.6": Kind("x.pth", small_legacy, damage, read_torch, 15),
    "pickle": Kind("data.pkl", pickles, damage, read_bare_pickle, 10),
    "safetensors": Kind("x.safetensors", small_safetensors, damage, read_safetensors, 10),
    "safetensors' header": Kind("x.safetensors", small_safetensors, misstated_header, read_safetensors, 10),
    "params": Kind("params.json", lambda: PARAMS, misstate, read_params, 5),
    "params beside weights": Kind(
        "params.json",
        lambda: [json.dumps(synthetic.params(SHAPE)).encode()],
        misstate,
        open_folder,
        5,
        lambda folder: (folder / "consolidated.00.pth").write_bytes(rank_file()),
    ),
    "config": Kind("config.json", lambda: [huggingface_files()["config.json"]], misstate, read_config, 5),
    "config beside weights": Kind(
        "config.json", lambda: [huggingface_files()["config.json"]], misstate, read_index, 3, beside_index
    ),
    "index": Kind(zoo.INDEX, lambda: [huggingface_files()[zoo.INDEX]], misstate, read_index, 3, beside_index),
    "manifest": Kind(MANIFEST, manifests, misstate, lambda path: read_manifest(path.parent), 5),
    "tokenizer": Kind("tokenizer.model", tokenizers, damage, read_tokenizer, 2),
    "tokenizer.json": Kind("tokenizer.json", tokenizer_jsons, misstate, read_tokenizer_json, 1),
    "checklist": Kind("checklist.chk", checklists, damage, read_checklist, 3, beside_checklist),
}


def fuzz(kind: Kind, folder: Path, count: int, seed: str) -> Counter[str]:
    """Read so many damaged files; what came of them."""
    chance, seeds, path = random.Random(seed), kind.seeds(), folder / kind.name
    ended: Counter[str] = Counter()
    for number in range(count):
        data = kind.mutate(chance, chance.choice(seeds))
        path.write_bytes(data)
        said, faulty = "", False
        try:
            with cpu_limit(SECONDS):
                agreed = kind.read(path)
            ended["as torch reads it" if agreed is True else "accepted"] += 1
        except LlamaConvertError as error:
            said = str(error).replace(str(path), "")
            faulty = not said.isprintable() or len(said) > LONGEST
            ended["refused"] += 1
        except TimeoutError:
            raise AssertionError(f"input {number} took too long") from None
        assert not faulty, f"input {number} says {said[:500]!r}"
    return ended


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("budget", [80, pytest.param(800, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(
    tmp_path: Path, name: str, budget: int, record_property: Callable[[str, object], None]
) -> None:
    kind = KINDS[name]
    kind.beside(tmp_path)
    (tmp_path / kind.name).write_bytes(kind.seeds()[0])
    kind.read(tmp_path / kind.name)  # the good file is read, and whatever is imported late
    before, count = peak(), budget * kind.share
    ended = fuzz(kind, tmp_path, count, f"{name} {budget}")
    record_property("inputs", dict(ended))
    print(f"{name}: {count} inputs, {dict(ended)}")
    assert peak() - before < MEMORY
    assert ended["refused"]
