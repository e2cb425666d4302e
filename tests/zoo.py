"""Checkpoints that are wrong, or right in an unusual way: what is done to good folders, and what follows.

Written in a few lines of torch, zipfile and struct, without the package, as the oracle in `synthetic` is."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from tests import synthetic
from tests.plant import edit_json
from tests.synthetic import LLAMA2, State

Spoil = Callable[[Path], object]
SHAPE = LLAMA2.but(ranks=2)
ONE, TWO = "consolidated.00.pth", "consolidated.01.pth"
WQ, W1, W2, NORM = (
    f"layers.1.{part}.weight" for part in ("attention.wq", "feed_forward.w1", "feed_forward.w2", "ffn_norm")
)
OUTPUT = "output.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Q = "model.layers.1.self_attn.q_proj.weight"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
BIN_1, BIN_2 = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
EPOCH, METADATA, CHUNKS = "epoch_0.pt", ".metadata", "__0_0.distcp"
DEEP = 200_000
LEGACY = {"_use_new_zipfile_serialization": False}
"""The format of `torch.save` before version 1.6."""
MARKER = "constructed"
"""A folder that appears beside a checkpoint if an object in one of its files is constructed."""


@dataclass(frozen=True)
class Case:
    """What is done to a folder, and words that the one line of its message must hold."""

    spoil: Spoil
    words: tuple[str, ...] = ()
    base: str = "meta"
    """Which good folder: of two ranks, ``single`` for one, ``hf`` for safetensors, ``indexed`` for two, or
    one of `CONTAINERS`."""
    torch_reads: bool = True
    """Else torch reads it wrong, and the model is the good folder's."""
    structure: bool = True
    """Whether headers alone tell; else the values do."""


# Good folders.


def make(folder: Path, base: str) -> Path:
    """One of the good folders, all of them the same model, without a tokenizer."""
    shape = SHAPE.but(ranks=2 if base == "meta" else 1)
    state = synthetic.weights(shape)
    if base in CONTAINERS:
        CONTAINERS[base](folder, shape, state)
    elif base in ("meta", "single"):
        synthetic.write(folder, shape, synthetic.cut(shape, state))
    else:
        synthetic.write_huggingface(folder, shape, state)
    if base == "indexed":
        split(folder)
    return folder


def split(folder: Path) -> None:
    """One file of safetensors into two and an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    weight_map = {}
    for file, part in ((FIRST, names[: len(names) // 2]), (SECOND, names[len(names) // 2 :])):
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / SINGLE).unlink()


def a_bin(folder: Path, shape: synthetic.Shape, state: State) -> None:
    synthetic.write_huggingface(folder, shape, state)
    (folder / SINGLE).unlink()
    torch.save(synthetic.huggingface(shape, state), folder / BIN)


def two_bins(folder: Path, shape: synthetic.Shape, state: State) -> None:
    a_bin(folder, shape, state)
    (folder / BIN).unlink()
    tensors = synthetic.huggingface(shape, state)
    names = sorted(tensors)
    weight_map = {}
    for file, part in ((BIN_1, names[: len(names) // 2]), (BIN_2, names[len(names) // 2 :])):
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / BIN_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def a_pt(folder: Path, shape: synthetic.Shape, state: State) -> None:
    synthetic.make(folder, shape)
    (folder / ONE).unlink()
    torch.save({"model": state, "step": 3}, folder / EPOCH)


def distributed(folder: Path, shape: synthetic.Shape, state: State) -> None:
    import torch.distributed.checkpoint as dcp

    synthetic.make(folder, shape)
    (folder / ONE).unlink()
    dcp.save({"model": state, "step": 3}, checkpoint_id=folder, no_dist=True)


CONTAINERS: dict[str, Callable[[Path, synthetic.Shape, State], None]] = {
    "bin": a_bin,
    "bins": two_bins,
    "pt": a_pt,
    "dcp": distributed,
}
"""Good folders with other files of weights, and the settings next to them."""


def joined(ranks: list[State]) -> State:
    """The whole model of rank files that torch has read; what is no weight is left out."""
    state: State = {}
    for name in ranks[0]:
        part = name.split(".")[-2]
        if part == "rope":
            continue
        axis = {"wo": 1, "w2": 1, "tok_embeddings": 1}.get(part, 0)
        state[name] = ranks[0][name] if "norm" in part else torch.cat([rank[name] for rank in ranks], axis)
    return state


def rank_number(file: Path) -> int:
    return int(re.sub(r"\D", "", file.name) or 0)


def rank_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("consolidated*.pth"), key=rank_number)


# Ways to spoil files.


def write(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def rename(name: str, other: str) -> Spoil:
    return lambda folder: (folder / name).rename(folder / other)


def copy(name: str, other: str) -> Spoil:
    return lambda folder: shutil.copy(folder / name, folder / other)


def truncate(name: str, change: Callable[[int], int]) -> Spoil:
    return lambda folder: os.truncate(folder / name, change((folder / name).stat().st_size))


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def instead(name: str, place: Callable[[Path], object]) -> Spoil:
    """Something else under a file's name: `place` is called with the path, which is free then."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        place(folder / name)

    return spoil


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)  # a socket's address has 108 bytes at most
        try:
            listener.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


def sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def json_file(name: str, **changes: Any) -> Spoil:
    """Set keys of a JSON file; `...` removes one."""

    def change(content: dict[str, Any]) -> None:
        content.update(changes)
        for key in [key for key, value in content.items() if value is ...]:
            del content[key]

    return lambda folder: edit_json(folder / name, change)


params = partial(json_file, "params.json")
config = partial(json_file, "config.json")


def rank(number: int, change: Callable[[State], object], **options: Any) -> Spoil:
    """Change what a rank file holds, and save it anew."""

    def spoil(folder: Path) -> None:
        file = rank_files(folder)[number]
        state = torch.load(file, weights_only=True)
        torch.save(change(state) or state, file, **options)

    return spoil


def everywhere(change: Callable[[State], object], **options: Any) -> Spoil:
    return lambda folder: [rank(n, change, **options)(folder) for n in range(len(rank_files(folder)))]


def void(_: object) -> None:
    """Nothing to return: the change was made in place."""


def several(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def save(content: Any, **options: Any) -> Spoil:
    return lambda folder: torch.save(content, folder / TWO, **options)


def plant(make_object: Callable[[Path], object]) -> Spoil:
    """Save an object among the weights; it is made for the path of the marker."""
    return lambda folder: rank(1, lambda state: state.update(extra=make_object(folder.parent / MARKER)))(
        folder
    )


class Reduced:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


# Zip archives.

Entries = list[tuple[str, bytes]]


def entries_of(file: Path) -> Entries:
    with zipfile.ZipFile(file) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def saved_in(name: str, change: Callable[[Any], Any], **options: Any) -> Spoil:
    """Change what a PyTorch file contains, and save it again."""

    def spoil(folder: Path) -> None:
        content = torch.load(folder / name, weights_only=True)
        torch.save(change(content) or content, folder / name, **options)

    return spoil


def planted_in(name: str, **options: Any) -> Spoil:
    """Save an object among the weights that makes a folder when it is constructed."""

    def spoil(folder: Path) -> None:
        mkdir = Reduced(os.mkdir, str(folder.parent / MARKER))
        saved_in(name, lambda content: {**content, "extra": mkdir}, **options)(folder)

    return spoil


def dcp_metadata(change: Callable[[Any], object]) -> Spoil:
    """Change the metadata of a distributed checkpoint."""

    def spoil(folder: Path) -> None:
        content = pickle.loads((folder / METADATA).read_bytes())  # the test itself has saved it
        change(content)
        (folder / METADATA).write_bytes(pickle.dumps(content))

    return spoil


def planted_in_metadata(folder: Path) -> None:
    mkdir = Reduced(os.mkdir, str(folder.parent / MARKER))
    dcp_metadata(lambda content: setattr(content, "planner_data", mkdir))(folder)


def windows_of(content: Any, *names: str) -> list[Any]:
    """Where the chunks of tensors are stored."""
    return [place for index, place in content.storage_data.items() if index.fqn in names]


def same_window(content: Any) -> None:
    one, other = windows_of(content, f"model.{W1}", "model.layers.0.feed_forward.w1.weight")
    one.offset, one.length = other.offset, other.length


def overlapping_windows(content: Any) -> None:
    """The window of one chunk begins within that of another."""
    one, other = windows_of(content, f"model.{W1}", "model.layers.0.feed_forward.w1.weight")
    one.offset = other.offset + 64


def chunks_of(content: Any, name: str = W1) -> Any:
    return content.state_dict_metadata[f"model.{name}"].chunks


def half_a_chunk(content: Any) -> None:
    (chunk,) = chunks_of(content)
    chunk.sizes = torch.Size([chunk.sizes[0] // 2, chunk.sizes[1]])


def set_window(content: Any, **attributes: Any) -> None:
    (place,) = windows_of(content, f"model.{W1}")
    vars(place).update(attributes)


def index_of_bins(weight_map: dict[str, Any]) -> Spoil:
    return lambda folder: edit_json(folder / BIN_INDEX, lambda c: c["weight_map"].update(weight_map))


def nested_in_wrappers(content: Any) -> Any:
    for _ in range(50):
        content = {"model": content}
    return content


def one_chunk_twice(content: Any) -> None:
    chunks_of(content).append(chunks_of(content)[0])


def zipped(entries: Entries, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as zipfile writes it: without padding, descriptors or zip64."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


def entries(change: Callable[[Entries], Entries], name: str = TWO, method: int = zipfile.ZIP_STORED) -> Spoil:
    """Write a rank file anew with other entries."""
    return lambda folder: (folder / name).write_bytes(zipped(change(entries_of(folder / name)), method))


def entry(suffix: str, change: Callable[[bytes], bytes]) -> Spoil:
    """Change the content of the entries whose name ends so, CRC-32 and all."""
    return entries(lambda all_: [(n, change(c) if n.endswith(suffix) else c) for n, c in all_])


def data_offset(content: bytes, info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin."""
    name, extra = struct.unpack_from("<2H", content, info.header_offset + 26)
    return info.header_offset + 30 + int(name) + int(extra)


def filled_in_afterwards(folder: Path) -> None:
    """As `torch.serialization.skip_data` leaves files, with the storages' bytes written later."""
    for file in rank_files(folder):
        state = torch.load(file, weights_only=True)
        storages = {name: content for name, content in entries_of(file) if "/data/" in name}
        with torch.serialization.skip_data():
            torch.save(state, file)
        data = bytearray(file.read_bytes())
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if content := storages.get(info.filename):
                    assert info.CRC == 0
                    start = data_offset(data, info)
                    data[start : start + len(content)] = content
        file.write_bytes(data)


_DIRECTORY = struct.Struct("<4s6H3I5H2I")
_FIELDS = (
    "signature", "made", "needed", "flags", "method", "time", "date", "crc", "packed", "size", "name_length",
    "extra_length", "comment_length", "disk", "internal", "attributes", "offset",
)  # fmt: skip


def directory(suffix: str, name: str = TWO, **fields: int) -> Spoil:
    """Change fields of an entry in the archive's directory, and there alone."""

    def change(content: bytes) -> bytes:
        data = bytearray(content)
        start, found = data.index(b"PK\1\2"), False
        while data[start : start + 4] == b"PK\1\2":
            values = dict(zip(_FIELDS, _DIRECTORY.unpack_from(data, start), strict=True))
            end = start + _DIRECTORY.size + values["name_length"]
            if data[start + _DIRECTORY.size : end].endswith(suffix.encode()):
                _DIRECTORY.pack_into(data, start, *(values | fields).values())
                found = True
            start = end + values["extra_length"] + values["comment_length"]
        assert found
        return bytes(data)

    return change_bytes(name, change)


def at_zip64(content: bytes, field: int, value: int) -> bytes:
    """Change one of the numbers (size, place) of the directory that a zip64 end record gives."""
    start = content.rindex(b"PK\6\6") + (40 if field == 0 else 48)
    end = content.rindex(b"PK\5\6") + (12 if field == 0 else 16)
    content = content[:start] + struct.pack("<Q", value) + content[start + 8 :]
    return content[:end] + b"\xff" * 4 + content[end + 4 :]


def zip64_offset(value: int) -> Spoil:
    """A local header that lies where only a 64-bit number tells."""

    def change(content: bytes) -> bytes:
        data = bytearray(content)
        start = data.index(b"PK\1\2")
        values = dict(zip(_FIELDS, _DIRECTORY.unpack_from(data, start), strict=True))
        end = start + _DIRECTORY.size + values["name_length"]
        _DIRECTORY.pack_into(data, start, *(values | {"offset": 0xFFFFFFFF, "extra_length": 12}).values())
        data[end : end + values["extra_length"]] = struct.pack("<HHQ", 1, 8, value)
        grown = 12 - values["extra_length"]
        tail = data.rindex(b"PK\5\6")
        size, place = struct.unpack_from("<2I", data, tail + 12)
        struct.pack_into("<2I", data, tail + 12, size + grown, place)
        return bytes(data)

    return several(entries(lambda all_: all_), change_bytes(TWO, change))


def overlapping(content: bytes) -> bytes:
    """The second storage's entry lies within the first's."""
    inner = zipped([("archive/data/1", bytes(64))])[: 30 + 14 + 64]
    outer = zipped(
        [("archive/data.pkl", pickled()), ("archive/data/0", inner), ("archive/data/1", bytes(64))]
    )
    data = bytearray(outer)
    start = data.rindex(b"PK\1\2")
    data[start + 42 : start + 46] = struct.pack("<I", outer.index(inner))
    return bytes(data)


# Pickles.


class Storage:
    """Stands for torch's storage while a pickle is made."""

    def __init__(self, key: str = "0", numel: int = 16, kind: Any = torch.FloatStorage) -> None:
        self.reference: Any = ("storage", kind, key, "cpu", numel)


def pickled(
    arguments: tuple[Any, ...] = (0, (4, 4), (4, 1)), storage: Storage | None = None, name: Any = "a"
) -> bytes:
    """The pickle of one tensor, rebuilt with these arguments: offset, shape, strides."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.reference if isinstance(value, Storage) else None

    call = Reduced(torch._utils._rebuild_tensor_v2, storage or Storage(), *arguments, False, OrderedDict())
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({name: call})
    return buffer.getvalue()


def with_pickle(content: bytes) -> Spoil:
    """A rank file of this pickle and a storage of 16 floats."""
    return write(TWO, zipped([("archive/data.pkl", content), ("archive/data/0", bytes(64))]))


def tensor(*arguments: Any, **storage: Any) -> Spoil:
    return with_pickle(pickled(arguments, Storage(**storage)))


HEAD, UNICODE = b"\x80\x02", struct.Struct("<cI")


def text(value: str) -> bytes:
    return UNICODE.pack(b"X", len(value.encode())) + value.encode()


def expanded_vectors(count: int) -> Spoil:
    """A rank file of vectors of 2**20 elements, all of them the same float."""
    one = pickled((0, (1 << 20,), (0,)))
    value = one[one.index(b"ctorch") : -2]
    names = (text(str(n)) for n in range(count))
    return with_pickle(HEAD + b"}(" + b"".join(name + value for name in names) + b"u.")


DOUBLED_TUPLE = HEAD + b"}" + b")" + b"q\x00h\x00\x86" * 200 + b"K\x01s."
ORDERED_DICTS = (
    HEAD + b"](" + b"\x88\x88\x86" * 20_000 + b"eq\x000ccollections\nOrderedDict\nq\x01"
    + b"h\x01h\x00\x85R" * 20_000 + b"."
)  # fmt: skip
"""Each call copies the list once more."""


# Safetensors.


def header(change: Callable[[bytes], bytes], name: str = SINGLE) -> Spoil:
    """Change a safetensors file's header; its length follows."""

    def rewritten(content: bytes) -> bytes:
        (length,) = struct.unpack_from("<Q", content)
        new = change(content[8 : 8 + length])
        return struct.pack("<Q", len(new)) + new + content[8 + length :]

    return change_bytes(name, rewritten)


def header_json(change: Callable[[dict[str, Any]], object], name: str = SINGLE) -> Spoil:
    def rewritten(old: bytes) -> bytes:
        content = json.loads(old)
        change(content)
        return json.dumps(content).encode()

    return header(rewritten, name)


def index(change: Callable[[dict[str, Any]], object]) -> Spoil:
    return lambda folder: edit_json(folder / INDEX, change)


def manifest(**content: Any) -> Spoil:
    """A manifest that says so, under a seal that is right."""
    import xxhash

    whole = {"schema": 1, **content}
    seal = xxhash.xxh3_128_hexdigest(json.dumps(whole, sort_keys=True, ensure_ascii=False).encode())
    return write("llama-convert.json", json.dumps({**whole, "seal": seal}).encode())


def said_to_be_in(file: Any) -> Spoil:
    return index(lambda content: content["weight_map"].update({Q: file}))


def nested_json(depth: int = DEEP) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


# Tokenizers.


def tiktoken_model(words: int) -> bytes:
    import base64

    return b"".join(base64.b64encode(bytes([n % 256])) + b" %d\n" % n for n in range(words))


GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
HTML = b"<!DOCTYPE html><html><body>403 Forbidden</body></html>"
GZIP = b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(100)


def tar(path: Path) -> None:
    import tarfile

    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


# What must be refused.

_PARAMS: dict[str, Case] = {
    "params a folder": Case(instead("params.json", Path.mkdir), ("params.json",)),
    "params a pipe": Case(instead("params.json", os.mkfifo), ("params.json", "Not a regular file")),
    "params a device": Case(
        instead("params.json", link_to("/dev/zero")), ("params.json", "Not a regular file")
    ),
    "params a dangling link": Case(instead("params.json", link_to("nowhere")), ("params.json", "nowhere")),
    "params a link loop": Case(instead("params.json", link_to("params.json")), ("params.json",)),
    "params git-lfs": Case(write("params.json", GIT_LFS), ("params.json", "git-lfs")),
    "params gzip": Case(write("params.json", GZIP), ("params.json",)),
    "params a gigabyte": Case(
        instead("params.json", lambda path: sparse(path, 1 << 30)), ("params.json", "bytes")
    ),
    "params nested deeply": Case(write("params.json", nested_json(100_000)), ("params.json", "nested")),
    "params nested as far as json goes": Case(
        change_bytes("params.json", lambda c: c[:-1] + b', "x":' + b"[" * 700 + b"]" * 700 + b"}"),
        ("params.json", "nested"),
    ),
    "params nested value": Case(params(dim=json.loads("[" * 90 + "]" * 90)), ("params.json", '"dim"')),
    "params ten to the 12 layers": Case(params(n_layers=10**12), ("params.json", '"n_layers"')),
    "params a number of 4000 digits": Case(params(dim=10**4000), ("params.json", '"dim"')),
    "params a number of 9000 digits": Case(
        change_bytes("params.json", lambda c: c.replace(b'"dim": 64', b'"dim": ' + b"9" * 9000)),
        ("params.json",),
    ),
    "params theta of 400 digits": Case(params(rope_theta=10**400), ("params.json", '"rope_theta"')),
    "params width beyond floats": Case(
        params(multiple_of=32, ffn_dim_multiplier=1e308), ("params.json", "ffn_dim_multiplier")
    ),
    "params eps infinite": Case(params(norm_eps=float("inf")), ("params.json", '"norm_eps"')),
    "params key twice": Case(
        change_bytes("params.json", lambda c: c.replace(b"{", b'{"dim": 64, ', 1)), ("Duplicate", '"dim"')
    ),
    "params flag a word": Case(params(use_scaled_rope="yes"), ("params.json", '"use_scaled_rope"')),
    "params a list of flags": Case(params(use_scaled_rope=[[1]]), ("params.json", '"use_scaled_rope"')),
    "params BOM": Case(change_bytes("params.json", lambda c: b"\xef\xbb\xbf" + c), ("params.json", "BOM")),
    "params UTF-16": Case(change_bytes("params.json", lambda c: c.decode().encode("utf-16")), ("UTF-8",)),
    "params half": Case(truncate("params.json", lambda n: n // 2), ("params.json", "line 1")),
    "params unfinished": Case(write("params.json.aria2", b"x"), ("params.json", "Incomplete download")),
}

_RANKS: dict[str, Case] = {
    "a rank given twice": Case(copy(ONE, TWO), (TWO, ONE, "same")),
    "a rank twice under two names": Case(copy(TWO, "consolidated.1.pth"), ("both rank 1",)),
    "rank ten to the 12": Case(rename(TWO, "consolidated.1000000000000.pth"), ("Missing shards", TWO)),
    "rank of 200 digits": Case(rename(TWO, f"consolidated.{'9' * 200}.pth"), ("Missing shards", TWO)),
    "rank 0 missing": Case(remove(ONE), ("Missing shard", ONE)),
    "rank 1 of 2 missing": Case(remove(TWO), ("1 of 2 shards",)),
    "a whole model and a half": Case(
        lambda f: torch.save(synthetic.weights(SHAPE), f / ONE), (TWO, "tok_embeddings")
    ),
    "a rank a folder": Case(instead(TWO, Path.mkdir), (TWO, "Not a regular file")),
    "a rank a pipe": Case(instead(TWO, os.mkfifo), (TWO, "Not a regular file")),
    "a rank a socket": Case(instead(TWO, a_socket), (TWO, "Not a regular file")),
    "a rank a device": Case(instead(TWO, link_to("/dev/zero")), (TWO, "Not a regular file")),
    "a rank a dangling link": Case(instead(TWO, link_to("../blobs/0123")), (TWO, "../blobs/0123")),
    "a rank a link loop": Case(instead(TWO, link_to(TWO)), (TWO,)),
    "a rank unfinished": Case(write(f"{TWO}.aria2", b"x"), (TWO, "Incomplete download")),
    "a rank of another model": Case(
        rank(1, lambda s: s.update({NORM: -s[NORM]})), (TWO, NORM, "two models"), structure=False
    ),
}

_CONTAINER: dict[str, Case] = {
    "empty": Case(write(TWO, b""), (TWO, "empty")),
    "HTML": Case(write(TWO, b"\r\n  " + HTML), (TWO, "HTML")),
    "git-lfs": Case(write(TWO, GIT_LFS), (TWO, "git-lfs")),
    "gzip": Case(write(TWO, GZIP), (TWO, "gzip")),
    "tar": Case(instead(TWO, tar), (TWO, "a tar archive")),
    "legacy, truncated": Case(
        several(everywhere(lambda s: None, **LEGACY), truncate(TWO, lambda size: size - 1)),
        (TWO, "ends before its last storage"),
    ),
    "safetensors": Case(
        lambda f: __import__("safetensors.torch").torch.save_file({"a": torch.ones(4)}, f / TWO), (TWO,)
    ),
    "a pickle alone": Case(write(TWO, pickled()), (TWO, "a Python pickle")),
    "zeros": Case(instead(TWO, lambda path: sparse(path, 100_000)), (TWO, "zeros")),
    "a terabyte of zeros": Case(instead(TWO, lambda path: sparse(path, 1 << 40)), (TWO, "zeros")),
    "noise": Case(write(TWO, b"PK\3\4" + bytes(range(256)) * 40), (TWO, "Truncated or damaged")),
    "cut to 1 byte": Case(truncate(TWO, lambda n: 1), (TWO,)),
    "cut in the pickle": Case(truncate(TWO, lambda n: 300), (TWO, "Truncated or damaged")),
    "cut in a storage": Case(truncate(TWO, lambda n: n // 2), (TWO, "Truncated or damaged")),
    "cut in the directory": Case(truncate(TWO, lambda n: n - 200), (TWO, "Truncated or damaged")),
    "cut by 1 byte": Case(truncate(TWO, lambda n: n - 1), (TWO, "Truncated or damaged")),
    "something behind": Case(change_bytes(TWO, lambda c: c + b"x" * 10), (TWO, "at its end")),
    "something before": Case(change_bytes(TWO, lambda c: b"PK" + c), (TWO,)),
    "a comment": Case(
        change_bytes(TWO, lambda c: c[:-2] + b"\x05\0hello"), (TWO, "at its end")
    ),
    "a zip in a zip": Case(
        lambda f: (f / TWO).write_bytes(zipped([(TWO, (f / TWO).read_bytes())])), (TWO, "data.pkl")
    ),
    "compressed": Case(entries(lambda all_: all_, method=zipfile.ZIP_DEFLATED), (TWO, "compressed")),
    "one storage said to be compressed": Case(directory("data/3", method=8), (TWO, "data/3", "compressed")),
    "encrypted": Case(directory("data/3", flags=0x0809), (TWO, "data/3", "encrypted")),
    "made by a later version": Case(directory("data/3", needed=99), (TWO,)),
    "two data.pkl": Case(
        entries(lambda all_: [*all_, all_[0]]), (TWO, "Duplicate entry data.pkl")
    ),
    "two storages of one name": Case(
        entries(lambda all_: [*all_, next(e for e in all_ if e[0].endswith("data/3"))]),
        (TWO, "Duplicate entry data/3"),
    ),
    "no data.pkl": Case(entries(lambda all_: all_[1:]), (TWO, "data.pkl")),
    "no entries": Case(write(TWO, zipped([])), (TWO,)),
    "a storage missing": Case(
        entries(lambda all_: [e for e in all_ if not e[0].endswith("data/3")]), (TWO, "data/3", "not in")
    ),
    "a storage too short": Case(entry("data/3", lambda c: c[:100]), (TWO, "data/3", "Wrong size")),
    "a storage too long": Case(entry("data/3", lambda c: c + bytes(2)), (TWO, "data/3")),
    "two roots": Case(
        entries(lambda all_: [(n.replace("1/data/3", "2/data/3"), c) for n, c in all_]),
        (TWO, "several root folders"),
    ),
    "overlapping": Case(change_bytes(TWO, overlapping), (TWO, "overlap")),
    "past the end": Case(directory("data/3", size=1 << 30, packed=1 << 30), (TWO, "data/3")),
    "over the directory": Case(
        lambda f: directory("data/3", size=(s := (f / TWO).stat().st_size - 20_000), packed=s)(f), (TWO,)
    ),
    "a header elsewhere": Case(directory("data/3", offset=17), (TWO, "data/3")),
    "a header beyond the file": Case(directory("data/3", offset=0x7FFFFFFF), (TWO,)),
    "a header beyond 2**63": Case(zip64_offset(2**64 - 2), (TWO,)),
    "a directory of 2**63 bytes": Case(change_bytes(TWO, lambda c: at_zip64(c, 0, 2**63)), (TWO,)),
    "a directory at 2**63": Case(change_bytes(TWO, lambda c: at_zip64(c, 1, 2**63)), (TWO,)),
    "big-endian": Case(entry("byteorder", lambda c: b"big"), (TWO, "big-endian")),
    "a flipped bit in the pickle": Case(
        change_bytes(TWO, lambda c: c.replace(b"wq", b"wk", 1)), (TWO, "data.pkl", "damaged")
    ),
    "a flipped bit in a storage": Case(
        change_bytes(TWO, lambda c: c[:20_000] + bytes([c[20_000] ^ 1]) + c[20_001:]),
        (TWO, "damaged"),
        structure=False,
    ),
    "a flipped bit in a storage, another without a checksum": Case(
        several(
            directory("data/9", crc=0),
            change_bytes(TWO, lambda c: c[:20_000] + bytes([c[20_000] ^ 1]) + c[20_001:]),
        ),
        (TWO, "damaged"),
        structure=False,
    ),
    "a flipped bit in the pickle, storages filled in afterwards": Case(
        several(filled_in_afterwards, change_bytes(TWO, lambda c: c.replace(b"wq", b"wk", 1))),
        (TWO, "data.pkl", "damaged"),
    ),
    "a changed pickle without a checksum": Case(
        several(
            change_bytes(TWO, lambda c: c.replace(b"wq", b"wk", 1)), directory("data.pkl", crc=0)
        ),
        (TWO, "data.pkl", "damaged"),
    ),
    "a hole": Case(
        change_bytes(TWO, lambda c: c[:30_000] + bytes(2000) + c[32_000:]), (TWO,), structure=False
    ),
    "an entry with a name of many lines": Case(
        entries(lambda all_: [*all_, (all_[0][0] + "\nerror: done", b"")]), (TWO, "Invalid name of an entry"),
    ),
}  # fmt: skip

_PICKLES: dict[str, Case] = {
    "os.system": Case(plant(lambda marker: Reduced(os.system, f"mkdir {marker}")), (TWO, "system")),
    "os.mkdir": Case(plant(lambda marker: Reduced(os.mkdir, str(marker))), (TWO, "posix.mkdir")),
    "eval": Case(plant(lambda m: Reduced(eval, f"__import__('os').mkdir({str(m)!r})")), (TWO, "eval")),
    "torch.load": Case(plant(lambda m: Reduced(torch.load, str(m))), (TWO, "torch.serialization.load")),
    "Counter": Case(plant(lambda _: Counter("aab")), (TWO, "collections.Counter")),
    "Path": Case(plant(lambda _: PurePosixPath("x")), (TWO, "PurePosixPath")),
    "Namespace": Case(plant(lambda _: Namespace(a=1)), (TWO, "argparse.Namespace")),
    "partial": Case(plant(lambda _: partial(print, 1)), (TWO, "functools.partial")),
    "numpy array": Case(plant(lambda _: np.ones(3)), (TWO, "numpy")),
    "numpy scalar": Case(plant(lambda _: np.float32(3)), (TWO, "numpy")),
    "a whole module": Case(save(torch.nn.Linear(2, 2)), (TWO, "Linear")),
    "a set": Case(plant(lambda _: {1, 2}), (TWO,)),
    "a number": Case(plant(lambda _: 3), (TWO, "extra", "int")),
    "a dict": Case(plant(lambda _: {"a": torch.ones(1)}), (TWO, "extra", "dict")),
    "a list at the top": Case(save([torch.ones(2)]), (TWO, "list")),
    "two models under keys": Case(
        everywhere(lambda s: {"model": s, "ema": dict(s)}), (ONE, "several state dicts: ema, model")
    ),
    "an empty dict": Case(save({}), (TWO, "empty")),
    "sparse": Case(rank(1, lambda s: s.update({WQ: s[WQ].float().to_sparse()})), (TWO, "sparse")),
    "meta": Case(rank(1, lambda s: s.update({WQ: s[WQ].to("meta")})), (TWO, "meta")),
    "a name twice": Case(
        with_pickle(HEAD + b"}(" + 2 * (text("a") + pickled()[pickled().index(b"ctorch") : -2]) + b"u."),
        (TWO, "Duplicate"),
    ),
    "a key that is a number": Case(with_pickle(pickled(name=3)), (TWO, "not a name but")),
    "a key of doubled tuples": Case(with_pickle(DOUBLED_TUPLE), (TWO, "not a name but")),
    "a name of many lines": Case(
        with_pickle(pickled(name="a\nerror: done")), (TWO, "name")
    ),
    "a name that rings": Case(rank(1, lambda s: s.update({"\x1b]0;\a": s[WQ]})), (TWO, "name")),
    "a name of a megabyte": Case(rank(1, lambda s: s.update({"x" * 1_000_000: s[WQ]})), (TWO, "name")),
    "a class of a megabyte": Case(with_pickle(HEAD + b"c" + b"x" * 1_000_000 + b"\ny\n."), (TWO,)),
    "a class of a name of many colours": Case(with_pickle(HEAD + b"c\x1b[31mx\ny\n."), (TWO,)),
    "no bytes": Case(with_pickle(b""), (TWO, "pickle is truncated at byte 0")),
    "unfinished": Case(with_pickle(pickled()[:-30]), (TWO, "pickle is")),
    "nested deeply in lists": Case(with_pickle(HEAD + b"]" * DEEP + b"a" * (DEEP - 1) + b"."), (TWO, "list")),
    "nested deeply in tuples": Case(with_pickle(HEAD + b")" + b"\x85" * DEEP + b"."), (TWO, "tuple")),
    "nested deeply in marks": Case(with_pickle(HEAD + b"(" * DEEP + b"t" * DEEP + b"."), (TWO, "nested")),
    "nested deeply under a name": Case(
        with_pickle(HEAD + b"}" + text("a") + b")" + b"\x85" * DEEP + b"s."), (TWO, "tuple")
    ),
    "a list within itself": Case(with_pickle(HEAD + b"]q\x00h\x00a."), (TWO, "list")),
    "a memo index of 2**28": Case(with_pickle(HEAD + b"]r\xff\xff\xff\x0f."), (TWO,)),
    "a string of 2**64 bytes": Case(with_pickle(b"\x80\x04\x8d" + b"\xff" * 8 + b"x."), (TWO, "at byte 13")),
    "a frame of 2**63 bytes": Case(with_pickle(b"\x80\x04\x95" + b"\xff" * 8 + b"}."), (TWO,)),
    "no such instruction": Case(with_pickle(HEAD + b"\xfe."), (TWO, "0xfe")),
    "a memo that is not there": Case(with_pickle(HEAD + b"h\x07."), (TWO,)),
    "a flood of OrderedDicts": Case(with_pickle(ORDERED_DICTS), (TWO,)),
    "a flood of lists": Case(with_pickle(HEAD + b"]" * 40_000_000 + b"."), (TWO, "bytes")),
    "a flood of memos": Case(with_pickle(b"\x80\x04]" + b"\x94" * 3_900_000 + b"."), (TWO,)),
    "past the storage by its shape": Case(tensor(1, (4, 4), (4, 1)), (TWO, "a", "outside")),
    "past the storage by its strides": Case(tensor(0, (4, 4), (100, 1)), (TWO, "a", "outside")),
    "past the storage by its offset": Case(tensor(2**62, (1,), (1,)), (TWO, "a", "outside")),
    "a negative offset": Case(tensor(-1, (4,), (1,)), (TWO, "Negative")),
    "a negative stride": Case(tensor(3, (4,), (-1,)), (TWO, "Negative")),
    "a negative length": Case(tensor(0, (-4,), (1,)), (TWO, "Negative")),
    "an axis without a stride": Case(tensor(0, (4, 4), (1,)), (TWO, "strides")),
    "more elements than there are numbers": Case(tensor(0, (2**40, 2**40), (0, 0)), (TWO, "a")),
    "a length of 2000 bits": Case(tensor(0, (2**2000,), (0,)), (TWO,)),
    "an expanded weight": Case(
        everywhere(lambda s: s.update({WQ: s[WQ][:1].clone().expand(*s[WQ].shape)})), (ONE, WQ, "its storage")
    ),
    "an expanded vector longer than any": Case(tensor(0, (2**20 + 1,), (0,)), (TWO, "a", "its storage")),
    "an expanded matrix of a vector's size": Case(tensor(0, (16, 4), (0, 1)), (TWO, "its storage")),
    "many expanded vectors": Case(expanded_vectors(300), (TWO, "have 1,258,291,200 bytes", "only 64")),
    "an expanded vocabulary": Case(
        several(
            params(vocab_size=-1),
            everywhere(lambda s: s.update({OUTPUT: s[OUTPUT][:1].clone().expand(2**40, -1)})),
        ),
        (ONE, "output.weight"),
    ),
    "many axes": Case(tensor(0, (1,) * 200, (1,) * 200), (TWO, "at most 64")),
    "a storage of 2**60 elements": Case(tensor(0, (4,), (1,), numel=2**60), (TWO, "data/0")),
    "a storage of -1 elements": Case(tensor(0, (4,), (1,), numel=-1), (TWO,)),
    "a key with ..": Case(tensor(0, (4,), (1,), key="../0"), (TWO, "Invalid storage key")),
    "an absolute key": Case(tensor(0, (4,), (1,), key="/etc/passwd"), (TWO, "Invalid storage key")),
    "a key of a megabyte": Case(tensor(0, (4,), (1,), key="/" * 1_000_000), (TWO, "Invalid storage key")),
    "a storage of integers": Case(
        tensor(0, (4,), (1,), kind=torch.LongStorage, numel=8), (TWO,)
    ),
    "a storage of a class": Case(tensor(0, (4,), (1,), kind=OrderedDict), (TWO, "storage")),
    "offset as a fraction": Case(tensor(0.5, (4,), (1,)), (TWO,)),
    "offset as a truth": Case(tensor(True, (4,), (1,)), (TWO,)),
}  # fmt: skip

_WEIGHTS: dict[str, Case] = {
    "int8": Case(everywhere(lambda s: s.update({W1: s[W1].to(torch.int8)})), (ONE, W1, "int8")),
    "float64": Case(everywhere(lambda s: s.update({W1: s[W1].double()})), (ONE, W1, "float64")),
    "bool": Case(everywhere(lambda s: s.update({W1: s[W1] > 0})), (ONE, W1, "bool")),
    "layer 10**9": Case(
        everywhere(lambda s: s.update({f"layers.{10**9}.ffn_norm.weight": s[NORM]})), ("n_layers",)
    ),
    "layer 01": Case(
        everywhere(lambda s: s.update({"layers.01.ffn_norm.weight": s[NORM]})), ("layers.01.ffn_norm",)
    ),
    "a bias": Case(everywhere(lambda s: s.update({"output.bias": s[NORM]})), ("output.bias",)),
    "empty axis": Case(everywhere(lambda s: s.update({W2: s[W2][:, :0]})), (ONE, W2, "empty")),
    "no weights at all": Case(everywhere(lambda s: {"rope.freqs": torch.ones(4)}), ("layers.0",)),
}

_HUGGINGFACE: dict[str, Case] = {
    f"hf: {name}": Case(spoil, words, base)
    for name, (spoil, words, base) in {
        "config missing": (remove("config.json"), ("config.json", "Not found"), "hf"),
        "config a pipe": (instead("config.json", os.mkfifo), ("config.json", "Not a regular file"), "hf"),
        "config a folder": (instead("config.json", Path.mkdir), ("config.json",), "hf"),
        "config nested deeply": (write("config.json", nested_json(100_000)), ("config.json", "nested"), "hf"),
        "config half": (truncate("config.json", lambda n: n // 2), ("config.json", "line 1"), "hf"),
        "ten to the 12 layers": (config(num_hidden_layers=10**12), ("num_hidden_layers",), "hf"),
        "theta of 400 digits": (config(rope_theta=10**400), ("rope_theta",), "hf"),
        "another model": (config(model_type="mistral"), ("config.json", "mistral"), "hf"),
        "another model, nested": (config(model_type=[{"a": ["x" * 999]}]), ("config.json",), "hf"),
        "quantised": (config(quantization_config={}), ("quantized",), "hf"),
        "rope a list": (config(rope_parameters=[1]), ("rope_parameters",), "hf"),
        "weights a pipe": (instead(SINGLE, os.mkfifo), (SINGLE, "Not a regular file"), "hf"),
        "weights a folder": (instead(SINGLE, Path.mkdir), (SINGLE, "Not a regular file"), "hf"),
        "weights a dangling link": (instead(SINGLE, link_to("x/y")), (SINGLE, "x/y"), "hf"),
        "weights unfinished": (write(f"{SINGLE}.aria2", b""), (SINGLE, "Incomplete download"), "hf"),
        "weights git-lfs": (write(SINGLE, GIT_LFS), (SINGLE, "git-lfs"), "hf"),
        "weights HTML": (write(SINGLE, HTML), (SINGLE, "HTML"), "hf"),
        "weights empty": (write(SINGLE, b""), (SINGLE, "empty"), "hf"),
        "weights 7 bytes": (write(SINGLE, b"1234567"), (SINGLE, "only 7 bytes"), "hf"),
        "weights cut": (truncate(SINGLE, lambda n: n - 1), (SINGLE, "truncated"), "hf"),
        "weights longer": (change_bytes(SINGLE, lambda c: c + b"x"), (SINGLE, "longer than"), "hf"),
        "a header of 2**60 bytes": (
            change_bytes(SINGLE, lambda c: struct.pack("<Q", 2**60) + c[8:]), (SINGLE, "header"), "hf",
        ),
        "a header of 2**64 - 1 bytes": (
            change_bytes(SINGLE, lambda c: b"\xff" * 8 + c[8:]), (SINGLE, "header"), "hf",
        ),
        "a header of 50 MB": (header(lambda c: b"{" + b" " * 50_000_000 + c[1:]), (SINGLE, "header"), "hf"),
        "a header cut": (header(lambda c: c[:-9]), (SINGLE, "JSON"), "hf"),
        "a header of many lists": (
            header(lambda c: b'{"a": [' + b"[]," * 690_000 + b"1]}"), (SINGLE, "Malformed header"), "hf",
        ),
        "a header of a list": (header(lambda c: b"[]"), (SINGLE, "JSON object"), "hf"),
        "a header nested deeply": (header(lambda c: nested_json()), (SINGLE, "Malformed header"), "hf"),
        "a header of NaN": (header(lambda c: b'{"a": NaN}'), (SINGLE,), "hf"),
        "a name twice": (
            header(lambda c: c.replace(b"{", b'{"lm_head.weight":1,', 1)), (SINGLE, "lm_head.weight"), "hf",
        ),
        "many names and one twice": (
            header(lambda c: b'{%s,"z":1,"z":2}' % b",".join(b'"%d":0' % n for n in range(200_000))),
            (SINGLE, "z", "Duplicate"), "hf",
        ),
        **{
            f"metadata {value}": (
                header_json(lambda h, value=value: h.update(__metadata__=json.loads(value))),
                (SINGLE, "__metadata__"), "hf",
            )
            for value in ("[]", "0", "false", '""', '{"a": 1}', '{"a": null}', '[["a", "b"]]')
        },
        "a name of many lines": (
            header_json(lambda h: h.update({"a\nerror: done": h.pop("lm_head.weight")})),
            (SINGLE, "name"), "hf",
        ),
        "half a character for a name": (
            header_json(lambda h: h.update({"a\ud800": h.pop("lm_head.weight")})), (SINGLE, "name"), "hf",
        ),
        "an entry a number": (header_json(lambda h: h.update({Q: 3})), (SINGLE, Q, "Malformed entry"), "hf"),
        "an entry without a shape": (header_json(lambda h: h[Q].pop("shape")), (SINGLE, Q), "hf"),
        "a shape of fractions": (header_json(lambda h: h[Q].update(shape=[64.0, 64])), (SINGLE, Q), "hf"),
        "a shape of truths": (header_json(lambda h: h[Q].update(shape=[True])), (SINGLE, Q), "hf"),
        "a shape that overflows": (
            header_json(lambda h: h[Q].update(shape=[2**40, 2**40])), (SINGLE, Q, "bytes"), "hf",
        ),
        "a shape of many digits": (
            header_json(lambda h: h[Q].update(shape=[10**4000] * 400)), (SINGLE, Q), "hf",
        ),
        "a dtype of many lines": (
            header_json(lambda h: h[Q].update(dtype="F\n7")), (SINGLE, Q, "Unknown dtype"), "hf",
        ),
        "offsets that overlap": (
            header_json(lambda h: h[Q].update(data_offsets=[0, 64 * 64 * 2])), (SINGLE, "Overlaps"), "hf",
        ),
        "offsets the wrong way": (
            header_json(lambda h: h[Q].update(data_offsets=[64 * 64 * 2, 0])), (SINGLE, Q), "hf",
        ),
        "offsets beyond the file": (
            header_json(lambda h: h[Q].update(data_offsets=[2**60, 2**60 + 64 * 64 * 2])), (SINGLE,), "hf",
        ),
        "integers": (
            header_json(lambda h: h[Q].update(dtype="I16")), (SINGLE, Q, "int16"), "hf",
        ),
        "index a pipe": (instead(INDEX, os.mkfifo), (INDEX, "Not a regular file"), "indexed"),
        "index HTML": (write(INDEX, HTML), (INDEX, "HTML"), "indexed"),
        "index nested deeply": (write(INDEX, nested_json()), (INDEX, "nested"), "indexed"),
        "index without a map": (write(INDEX, b"{}"), (INDEX, "weight_map"), "indexed"),
        "index of many lists": (
            write(INDEX, b'{"weight_map": [' + b"[]," * 690_000 + b"1]}"), (INDEX, "20,000 lists"), "indexed",
        ),
        "index of a list": (write(INDEX, b'{"weight_map": []}'), (INDEX, "weight_map"), "indexed"),
        "index total of a list": (
            index(lambda c: c["metadata"].update(total_size=[["x" * 999]])), (INDEX, "total_size"), "indexed",
        ),
        "index twice": (
            change_bytes(INDEX, lambda c: c.replace(b'"weight_map"', b'"weight_map": {}, "weight_map"')),
            (INDEX, "Duplicate"), "indexed",
        ),
        "up": (said_to_be_in(f"../{FIRST}"), (INDEX, Q), "indexed"),
        "absolute": (said_to_be_in(f"/tmp/{FIRST}"), (INDEX, Q), "indexed"),
        "below": (said_to_be_in(f"a/{FIRST}"), (INDEX, Q), "indexed"),
        "here": (said_to_be_in("."), (INDEX, Q), "indexed"),
        "nothing": (said_to_be_in(""), (INDEX, Q), "indexed"),
        "a number": (said_to_be_in(3), (INDEX, Q), "indexed"),
        "a NUL": (said_to_be_in("a\0.safetensors"), (INDEX, Q), "indexed"),
        "half a character": (said_to_be_in("\ud800.safetensors"), (INDEX, Q), "indexed"),
        "many lines": (said_to_be_in("a\nb.safetensors"), (INDEX, Q), "indexed"),
        "a long name": (said_to_be_in("a" * 5000), (INDEX, Q), "indexed"),
        "a file missing": (remove(SECOND), (SECOND, "Not found"), "indexed"),
        "a file of the other's": (said_to_be_in(FIRST), (Q,), "indexed"),
        "a file given twice": (copy(FIRST, SECOND), (SECOND,), "indexed"),
    }.items()
}  # fmt: skip

_TOKENIZERS: dict[str, Case] = {
    f"tokenizer {name}": Case(spoil, ("tokenizer.model", *words))
    for name, (spoil, words) in {
        "empty": (write("tokenizer.model", b""), ("empty",)),
        "git-lfs": (write("tokenizer.model", GIT_LFS), ("git-lfs",)),
        "HTML": (write("tokenizer.model", HTML), ("HTML page",)),
        "a folder": (instead("tokenizer.model", Path.mkdir), ("Not a regular file",)),
        "a pipe": (instead("tokenizer.model", os.mkfifo), ("Not a regular file",)),
        "a device": (instead("tokenizer.model", link_to("/dev/zero")), ("Not a regular file",)),
        "a dangling link": (instead("tokenizer.model", link_to("../blobs/1")), ("../blobs/1",)),
        "a terabyte": (instead("tokenizer.model", lambda p: sparse(p, 1 << 40)), ("bytes",)),
        "unfinished": (
            several(write("tokenizer.model", tiktoken_model(256)), write("tokenizer.model.aria2", b"")),
            ("Incomplete download",),
        ),
        "a line cut": (write("tokenizer.model", tiktoken_model(256)[:-5]), ()),
        "a rank twice": (write("tokenizer.model", tiktoken_model(256) + b"YWI= 7\n"), ("Duplicate rank",)),
        "a rank of 5000 digits": (write("tokenizer.model", b"YQ== " + b"9" * 5000 + b"\n"), ("line 1",)),
        "a token twice": (write("tokenizer.model", tiktoken_model(257)), ("two ranks",)),
        "of many pieces": (write("tokenizer.model", b"\n\x03\n\x01a" * 1_600_000), ()),
        "of many ranks": (write("tokenizer.model", b"".join(b"YQ== %d\n" % n for n in range(650_000))), ()),
        "a piece of 4 MB": (
            write("tokenizer.model", b"\n\x84\x80\x80\x02\n\xff\xff\xff\x01" + b"a" * 4194303), ()
        ),
    }.items()
}  # fmt: skip

_OTHER_CONTAINERS: dict[str, Case] = {
    f"{base}: {name}": Case(spoil, words, base)
    for base, name, spoil, words in (
        ("bin", "os.mkdir", planted_in(BIN), (BIN, "posix.mkdir")),
        ("bin", "os.mkdir, before 1.6", planted_in(BIN, **LEGACY), (BIN, "posix.mkdir")),
        ("bin", "legacy, cut by 1 byte",
         several(saved_in(BIN, void, **LEGACY), truncate(BIN, lambda n: n - 1)), (BIN, "last storage")),
        ("bin", "legacy, cut in half",
         several(saved_in(BIN, void, **LEGACY), truncate(BIN, lambda n: n // 2)), (BIN, "storage")),
        ("bin", "legacy, cut in the pickle",
         several(saved_in(BIN, void, **LEGACY), truncate(BIN, lambda n: 300)), (BIN, "truncated")),
        ("bin", "legacy, a byte more",
         several(saved_in(BIN, void, **LEGACY), change_bytes(BIN, lambda c: c + b"x")), (BIN,)),
        ("bin", "two state dicts", saved_in(BIN, lambda s: {"model": s, "ema": s | {Q: -s[Q]}}),
         (BIN, "several")),
        ("bin", "cut", truncate(BIN, lambda n: n // 2), (BIN, "Truncated or damaged")),
        ("bin", "git-lfs", write(BIN, GIT_LFS), (BIN, "git-lfs")),
        ("bin", "a pipe", instead(BIN, os.mkfifo), (BIN, "Not a regular file")),
        ("bin", "a tensor missing", saved_in(BIN, lambda s: void(s.pop(Q))), (Q, "in no file")),
        ("bin", "a tensor more", saved_in(BIN, lambda s: {**s, "extra": s[Q]}),
         (BIN, "extra", "Not a Llama tensor")),
        ("bin", "two names of a weight",
         saved_in(BIN, lambda s: {**s, f"module.{Q}": s[Q]}), (Q, "the names differ only in prefixes")),
        *(("bins", f"index: {name!r:.20}", index_of_bins({Q: name}), (Q,)) for name in (
            f"../{BIN_1}", f"/tmp/{BIN_1}", f"a/{BIN_1}", ".", "", 3, "a\0.bin", "a\nb.bin", BIN_1
        )),
        ("bins", "index of nothing", write(BIN_INDEX, b'{"weight_map": {}}'), ()),
        ("bins", "a file missing", remove(BIN_2), (BIN_2, "Not found")),
        ("bins", "one file twice", copy(BIN_1, BIN_2), (BIN_2,)),
        ("bins", "os.mkdir", planted_in(BIN_2), (BIN_2, "posix.mkdir")),
        ("pt", "os.mkdir", planted_in(EPOCH), (EPOCH, "posix.mkdir")),
        ("pt", "two epochs", copy(EPOCH, "epoch_1.pt"), ("several checkpoints: epoch_0.pt and epoch_1.pt",)),
        ("pt", "an epoch cut", several(copy(EPOCH, "epoch_1.pt"), truncate("epoch_1.pt", lambda n: n // 2)),
         ("epoch_1.pt", "Truncated or damaged")),
        ("pt", "model and ema", saved_in(EPOCH, lambda c: {**c, "ema": c["model"] | {WQ: -c["model"][WQ]}}),
         (EPOCH, "several state dicts: ema, model")),
        ("pt", "cut", truncate(EPOCH, lambda n: n - 1), (EPOCH, "Truncated or damaged")),
        ("pt", "nested deeply", saved_in(EPOCH, nested_in_wrappers), (EPOCH,)),
        ("dcp", "os.mkdir", planted_in_metadata, (METADATA, "posix.mkdir")),
        ("dcp", "metadata cut", truncate(METADATA, lambda n: n // 2), (METADATA, "truncated")),
        ("dcp", "metadata missing", remove(METADATA), ("Interrupted save or copy",)),
        ("dcp", "metadata a pipe", instead(METADATA, os.mkfifo), (METADATA, "Not a regular file")),
        ("dcp", "metadata with more", change_bytes(METADATA, lambda c: c + b"x"),
         (METADATA, "after the pickle")),
        ("dcp", "chunks missing", remove(CHUNKS), ("Missing shard", CHUNKS)),
        ("dcp", "chunks cut", truncate(CHUNKS, lambda n: n // 2), (CHUNKS,)),
        ("dcp", "chunks a device", instead(CHUNKS, link_to("/dev/zero")), (CHUNKS, "Not a regular file")),
        ("dcp", "one window twice", dcp_metadata(same_window), (CHUNKS,)),
        ("dcp", "overlapping windows", dcp_metadata(overlapping_windows), (CHUNKS,)),
        ("dcp", "half a chunk", dcp_metadata(half_a_chunk), (f"model.{W1}",)),
        ("dcp", "a chunk twice", dcp_metadata(one_chunk_twice), (f"model.{W1}", "overlap")),
        ("dcp", "no chunks", dcp_metadata(lambda c: chunks_of(c).clear()), (f"model.{W1}",)),
        *(("dcp", f"a length of {length}", dcp_metadata(partial(set_window, length=length)), ())
          for length in (-1, 0, 1, 100, 2**40, 2**62)),
        *(("dcp", f"an offset of {offset}", dcp_metadata(partial(set_window, offset=offset)), ())
          for offset in (-1, 1, 2**40, 2**62)),
        *(("dcp", f"a file {name!r}", dcp_metadata(partial(set_window, relative_path=name)), (METADATA,))
          for name in (f"../{CHUNKS}", f"/tmp/{CHUNKS}", "a/b.distcp", "..", "", "a\nb")),
    )
}  # fmt: skip

REFUSED = _PARAMS | _RANKS | _CONTAINER | _PICKLES | _WEIGHTS | _HUGGINGFACE | _TOKENIZERS | _OTHER_CONTAINERS


# What must be accepted, bit by bit.


def flat(state: State) -> State:
    """All weights as views into one storage, with other numbers before, between and behind."""
    gap = torch.ones(5).bfloat16()
    storage = torch.cat([gap, *(torch.cat([weight.reshape(-1), gap]) for weight in state.values())])
    views, start = {}, 5
    for name, weight in state.items():
        views[name] = storage[start : start + weight.numel()].view(weight.shape)
        start += weight.numel() + 5
    return views


def strided(state: State) -> State:
    """Matrices transposed in memory; vectors every third element of a larger one."""

    def vector(weight: torch.Tensor) -> torch.Tensor:
        return torch.stack([weight, -weight, weight * 2], 1).reshape(-1)[::3]

    return {n: vector(w) if w.dim() == 1 else w.t().contiguous().t() for n, w in state.items()}


def windows(state: State) -> State:
    """Each matrix a window of a larger one."""

    def window(weight: torch.Tensor) -> torch.Tensor:
        if weight.dim() == 1:
            return weight
        larger = torch.ones(weight.shape[0] + 3, weight.shape[1] + 5).to(weight.dtype)
        larger[2:-1, 3:-2] = weight
        return larger[2:-1, 3:-2]

    return {name: window(weight) for name, weight in state.items()}


def frequencies(state: State) -> None:
    state["rope.freqs"] = torch.arange(4.0).bfloat16()


def norms_in_fp32(state: State) -> None:
    state.update({name: weight.float() for name, weight in state.items() if "norm" in name})


def odd_bits(state: State) -> None:
    """Bits that arithmetic would change: a NaN with a payload, minus zero, the smallest subnormal."""
    state[WQ].view(torch.int16)[0, :3] = torch.tensor([0x7FA5, -0x8000, 1], dtype=torch.int16)


def metadata(state: State) -> State:
    ordered = OrderedDict(state)
    ordered._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    return ordered


def on_cuda(file: Path) -> None:
    """As if it was saved from a GPU: every storage says so."""

    def moved(content: bytes) -> bytes:
        return content.replace(text("cpu"), text("cuda:1"))

    file.write_bytes(zipped([(n, moved(c) if n.endswith("data.pkl") else c) for n, c in entries_of(file)]))


def without_checksums(folder: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        everywhere(lambda state: None)(folder)
    finally:
        torch.serialization.set_crc32_options(True)


def linked(folder: Path) -> None:
    """As the Hub's cache has it: every file a link to a blob elsewhere."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../blobs/{number}")


def read_only(folder: Path) -> None:
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)


def moved(name: str) -> Spoil:
    """The folder under another name; what it was called is a link to it."""

    def spoil(folder: Path) -> None:
        folder.rename(folder.parent / name)
        folder.symlink_to(name)

    return spoil


def reordered(folder: Path) -> None:
    content = json.loads((folder / "params.json").read_text())
    extra = {"comment": "ünïcode", "max_seq_len": 2048, "nested": {"deep": [[[1]]]}}
    content = extra | dict(reversed(content.items()))
    (folder / "params.json").write_text(json.dumps(content, indent=8) + "\n\n")


def in_parts(numbers: list[str]) -> Spoil:
    """Rank files under other spellings of their numbers."""
    return lambda folder: [
        file.rename(folder / f"consolidated{number}.pth")
        for file, number in zip(rank_files(folder), numbers, strict=True)
    ]


def training(state: State) -> Any:
    """A training checkpoint, with the names of a compiled model."""
    wrapped = {f"module._orig_mod.{name}": weight for name, weight in state.items()}
    return {"model": wrapped, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "step": 3}


ACCEPTED: dict[str, Case] = {
    "as it is": Case(lambda _: None),
    "one rank": Case(lambda _: None, base="single"),
    "consolidated.pth": Case(in_parts([""]), base="single"),
    "ranks without padding": Case(in_parts([".0", ".1"])),
    "ranks with much padding": Case(in_parts([".0000", ".0001"])),
    "one storage for all": Case(everywhere(flat)),
    "one storage, without checksums": Case(several(everywhere(flat), without_checksums)),
    "transposed in memory": Case(everywhere(strided)),
    "windows of larger ones": Case(everywhere(windows)),
    "rope.freqs": Case(everywhere(frequencies)),
    "norms in fp32": Case(everywhere(norms_in_fp32)),
    "odd bits": Case(everywhere(odd_bits)),
    "NaN": Case(everywhere(lambda s: void(s[WQ].view(-1)[5].fill_(float("nan"))))),
    "infinity": Case(everywhere(lambda s: void(s[WQ].view(-1)[5].fill_(float("-inf"))))),
    "nothing but zeros": Case(everywhere(lambda s: void(s[W2].zero_()))),
    "an OrderedDict": Case(everywhere(OrderedDict)),
    "an OrderedDict with metadata": Case(everywhere(metadata)),
    "parameters": Case(everywhere(lambda s: {n: torch.nn.Parameter(w) for n, w in s.items()})),
    "training checkpoints": Case(everywhere(training), torch_reads=False),
    "one training checkpoint": Case(rank(1, training), torch_reads=False),
    "in another order": Case(everywhere(lambda s: dict(reversed(s.items())))),
    "ranks in two orders": Case(rank(1, lambda s: dict(reversed(s.items())))),
    "the format before 1.6": Case(everywhere(lambda s: None, **LEGACY)),
    "the format before 1.6, transposed in memory": Case(everywhere(strided, **LEGACY)),
    "one rank in the format before 1.6": Case(rank(1, lambda s: None, **LEGACY)),
    "protocol 3": Case(everywhere(lambda s: None, pickle_protocol=3)),
    "protocol 4": Case(everywhere(lambda s: None, pickle_protocol=4)),
    "protocol 5": Case(everywhere(lambda s: None, pickle_protocol=5)),
    "saved from a GPU": Case(lambda f: [on_cuda(file) for file in rank_files(f)]),
    "written by zipfile": Case(several(entries(lambda e: e, ONE), entries(lambda e: e, TWO))),
    "entries in another order": Case(entries(lambda e: e[::-1])),
    "an entry more": Case(entries(lambda e: [*e, (e[0][0].replace("data.pkl", "notes"), b"hello")])),
    "no byteorder": Case(entries(lambda e: [x for x in e if not x[0].endswith("byteorder")])),
    "without checksums": Case(without_checksums),
    "storages filled in afterwards": Case(filled_in_afterwards),
    "one storage without a checksum": Case(directory("data/3", crc=0)),
    "expanded norms": Case(everywhere(lambda s: s.update({NORM: s[NORM][:1].clone().expand(SHAPE.dim)}))),
    "attributes of a folder": Case(directory("data/3", attributes=0x10), torch_reads=False),
    "another root": Case(entries(lambda e: [(n.replace("consolidated.01", "süß ☃"), c) for n, c in e])),
    "params in another order": Case(reordered),
    "no vocab_size": Case(params(vocab_size=...)),
    "vocab_size -1": Case(params(vocab_size=-1)),
    "n_kv_heads null": Case(params(n_kv_heads=None)),
    "n_kv_heads said": Case(params(n_kv_heads=8)),
    "whole numbers as fractions": Case(params(rope_theta=10000, norm_eps=1e-5)),
    "under a key": Case(lambda f: edit_json(f / "params.json", lambda c: c.update(model=dict(c)))),
    "spaces in the path": Case(moved("a  folder with spaces ")),
    "letters in the path": Case(moved("Łłama–Ⅱ–模型–🦙")),
    "a line break in the path": Case(moved("first\nsecond")),
    "quotes in the path": Case(moved("""a'b"c$(d)[red]*""")),
    "links": Case(linked),
    "read-only": Case(read_only),
    "other files beside": Case(several(write("README.md", HTML), instead("notes", Path.mkdir))),
    "a pipe beside": Case(instead("pipe", os.mkfifo)),
}

ACCEPTED_HUGGINGFACE: dict[str, Case] = {
    "as it is": Case(lambda _: None, base="hf"),
    "two files": Case(lambda _: None, base="indexed"),
    "header with spaces": Case(header(lambda c: c + b" " * 1001), base="hf"),
    "header indented": Case(header(lambda c: json.dumps(json.loads(c), indent=4).encode()), base="hf"),
    "metadata of any kind": Case(
        header_json(lambda h: h.update(__metadata__={"format": "pt", "a": "ünïcode\n"})), base="hf"
    ),
    "metadata null": Case(header_json(lambda h: h.update(__metadata__=None)), base="hf"),
    "no metadata": Case(header_json(lambda h: h.pop("__metadata__", None)), base="hf"),
    "index without a total": Case(index(lambda c: c.pop("metadata")), base="indexed"),
    "index with more": Case(index(lambda c: c.update(more=[1, {"a": 2}])), base="indexed"),
    "links": Case(linked, base="indexed"),
    "read-only": Case(read_only, base="indexed"),
    "letters in the path": Case(moved("Łłama 模型"), base="indexed"),
    "transformers 5's settings": Case(
        config(
            rope_parameters={"rope_theta": 1e4, "rope_type": "default"}, torch_dtype=..., dtype="bfloat16"
        ),
        base="hf",
    ),
}  # fmt: skip

# What is accepted with a warning that has these words.

WARNED: dict[str, Case] = {
    "no tokenizer": Case(lambda _: None, ("No tokenizer.model",)),
    "storages filled in afterwards": Case(filled_in_afterwards, (ONE, "(and 1 more)", "21 of 21 storages")),
    "one storage without a checksum": Case(directory("data/3", crc=0), (TWO, "1 of 21 storages")),
    "no output head": Case(
        several(
            everywhere(lambda s: s.update({OUTPUT: s["tok_embeddings.weight"]})),
            everywhere(lambda s: void(s.pop(OUTPUT))),
        ),
        ("output.weight", "tied"),
    ),
    "norms that differ by rounding": Case(
        rank(1, lambda s: s.update({NORM: s[NORM] * (1 + 2**-8)})), ("post_attention_layernorm", "rounding")
    ),
}

# What a conversion leaves aside, and verify must refuse.

MANIFESTS: dict[str, Spoil] = {
    "a list of files": manifest(files=[1]),
    "a number for a file": manifest(files={"config.json": 1}),
    "up": manifest(files={"../config.json": {}}),
    "absolute": manifest(files={"/dev/zero": {}}),
    "many lines": manifest(files={"a\nb": {}}),
    "a number of tensors": manifest(tensors=3),
    "a number for a tensor": manifest(tensors={"model.norm.weight": 5}),
    "a list for a tensor": manifest(tensors={"model.norm.weight": [[1]]}),
    "another schema": manifest(schema=[[2]]),
    "no seal": write("llama-convert.json", b'{"schema": 1}'),
    "a seal of another kind": write("llama-convert.json", b'{"schema": 1, "seal": [1]}'),
    "nested deeply": write("llama-convert.json", nested_json()),
    "HTML": write("llama-convert.json", HTML),
    "a pipe": lambda folder: os.mkfifo(folder / "llama-convert.json"),
    "a folder": lambda folder: (folder / "llama-convert.json").mkdir(),
    "a device": lambda folder: (folder / "llama-convert.json").symlink_to("/dev/zero"),
}
