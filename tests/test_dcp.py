"""Checkpoints of torch.distributed.checkpoint: tensors are read as they were saved, faults are refused."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import random
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor import metadata as old_metadata
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from llama_convert.checkpoints.dcp import open_chunks, open_dcp
from llama_convert.checkpoints.folders import is_dcp
from llama_convert.checkpoints.row_reader import rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight, matrix_shape
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats import dcp_chunks, dcp_metadata, files
from llama_convert.formats.dcp_metadata import METADATA, DcpChunk, DcpMetadata, DcpTensor, read_dcp
from llama_convert.formats.pickle_objects import PickleRefusedError
from llama_convert.formats.pickle_reader import read_pickle
from tests import dcp_writer
from tests.limits import cpu_limit
from tests.peers import ROOT
from tests.test_fuzz import LONGEST, SECONDS, as_bytes, damage

EMBEDDING = "model.tok_embeddings.weight"
Change = Callable[[torch_metadata.Metadata], object]


@pytest.fixture(scope="module", params=["alone", 2, 3])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that torch wrote without ranks, and on 2 and 3 ranks."""
    folder = tmp_path_factory.mktemp("dcp") / "step-3"
    if request.param == "alone":
        dcp_writer.save_alone(folder)
    else:
        command = [sys.executable, "-m", "tests.dcp_writer", str(folder), str(request.param)]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return folder


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    dcp_writer.save_alone(tmp_path / "alone")
    return tmp_path / "alone"


def model_names(metadata: DcpMetadata) -> list[str]:
    return [name for name, tensor in metadata.tensors.items() if tensor.path[0] == "model"]


def values(weight: StoredWeight, step: int = 1000) -> bytes:
    """Its bytes, a few rows at a time, each storage verified by its CRC-32."""
    with SourceFiles() as source:
        rows = matrix_shape(weight.shape)[0]
        ranges = [(start, min(start + step, rows)) for start in range(0, rows, step)]
        blocks = [rows_of(source, weight, *each).tobytes() for each in ranges]
        source.check_partly_read(1 << 20)
        return b"".join(blocks)


def read_model(folder: Path) -> dict[str, bytes]:
    metadata = open_dcp(folder)
    weights = open_chunks(metadata, model_names(metadata))
    return {name.removeprefix("model."): values(weight) for name, weight in weights.items()}


def expected(folder: Path) -> dict[str, bytes]:
    return {name: as_bytes(value) for name, value in torch.load(folder / dcp_writer.TRUTH).items()}


# What torch wrote.


def test_every_tensor_is_read(saved: Path) -> None:
    metadata = open_dcp(saved)
    weights = open_chunks(metadata, model_names(metadata))
    truth = torch.load(saved / dcp_writer.TRUTH)
    assert {name.removeprefix("model.") for name in weights} == set(truth)
    for name, value in truth.items():
        weight = weights[f"model.{name}"]
        assert (weight.shape, weight.dtype.name) == (tuple(value.shape), str(value.dtype)[6:])
        assert all(slab.storage.crc32 is not None for slab in weight.slabs)
        for step in (1, 2, 1000):
            assert values(weight, step) == as_bytes(value), name


def test_the_state_of_the_optimizer_can_be_read(saved: Path) -> None:
    metadata = open_dcp(saved)
    for weight in open_chunks(metadata, metadata.tensors).values():
        assert len(values(weight)) == weight.nbytes


def test_metadata_is_what_torch_reads(saved: Path) -> None:
    metadata, theirs = open_dcp(saved), load(saved)
    assert metadata.tensors.keys() | metadata.objects.keys() == theirs.state_dict_metadata.keys()
    for name, item in theirs.state_dict_metadata.items():
        if isinstance(item, torch_metadata.BytesStorageMetadata):
            assert metadata.objects[name] == theirs.planner_data[name]
            continue
        tensor = metadata.tensors[name]
        assert tensor.path == theirs.planner_data[name]
        assert (tensor.dtype, tensor.shape) == (str(item.properties.dtype)[6:], tuple(item.size))
        chunks = [chunk for chunk in item.chunks if 0 not in chunk.sizes]
        assert [(c.offsets, c.sizes) for c in tensor.chunks] == [(c.offsets, c.sizes) for c in chunks]
        for chunk in tensor.chunks:
            info = theirs.storage_data[MetadataIndex(name, chunk.offsets)]
            assert (chunk.file, chunk.start, chunk.length) == (info.relative_path, info.offset, info.length)
    assert metadata.objects["extra.0.lr"] == ("extra", 0, "lr")
    assert metadata.objects["step"] == ("step",)


def test_only_selected_tensors_are_opened(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file at a time, and of each archive only its ends."""
    metadata = open_dcp(saved)
    names, opened, left = model_names(metadata), Counter[str](), []

    def opening(path: Path) -> Any:
        opened[path.name] += 1
        reader = open_regular(path)
        left.append(reader)
        read_some, close = reader.read_some, reader.close

        def read(target: memoryview, offset: int) -> int:
            ranges = [(c.start, c.start + c.length) for name in names for c in metadata.tensors[name].chunks]
            assert any(start <= offset and offset + len(target) <= end for start, end in ranges)
            return read_some(target, offset)

        monkeypatch.setattr(reader, "read_some", read)
        monkeypatch.setattr(reader, "close", lambda: (left.remove(reader), close()))
        assert len(left) == 1
        return reader

    open_regular = files.open_regular
    monkeypatch.setattr(files, "open_regular", opening)
    open_chunks(metadata, names)
    assert set(opened.values()) == {1}
    assert not left


@pytest.mark.parametrize("options", [{"thread_count": 3}, {"single_file_per_rank": False}], ids=str)
def test_several_files_per_rank(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = tmp_path / "dcp"
    dcp_writer.save_alone(folder, storage_writer=dcp.FileSystemWriter(folder, **options))
    assert len(list(folder.glob("*.distcp"))) > 2
    assert read_model(folder) == expected(folder)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(alone: Path, protocol: int) -> None:
    (alone / METADATA).write_bytes(pickle.dumps(load(alone), protocol))
    assert read_model(alone) == expected(alone)


def test_properties_of_older_torch(alone: Path) -> None:
    """Before 2.3, they and their enum were those of ShardedTensor."""

    def change(metadata: torch_metadata.Metadata) -> None:
        del metadata.version, metadata.storage_meta
        for item in tensors_of(metadata):
            item.properties = old_metadata.TensorProperties(dtype=item.properties.dtype)

    edit(alone, change)
    assert b"sharded_tensor.metadata" in (alone / METADATA).read_bytes()
    assert read_model(alone) == expected(alone)


def test_enums_of_python_3_11_0(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It pickled a member as an attribute of its class."""
    encoding = torch_metadata._MEM_FORMAT_ENCODING
    by_name = lambda member, _protocol: (getattr, (type(member), member.name))  # noqa: E731
    monkeypatch.setattr(encoding, "__reduce_ex__", by_name)
    edit(alone, lambda _: None)
    assert b"getattr" in (alone / METADATA).read_bytes()
    assert read_model(alone) == expected(alone)


def test_a_folder_with_a_long_path(alone: Path) -> None:
    place = Path("/", *"abcdefghij" * 3)
    edit(alone, lambda metadata: setattr(metadata.storage_meta, "checkpoint_id", place))
    assert read_model(alone) == expected(alone)


def test_a_state_dict_that_was_not_flattened(alone: Path) -> None:
    edit(alone, lambda metadata: setattr(metadata, "planner_data", None))
    assert read_dcp(alone).tensors[EMBEDDING].path == (EMBEDDING,)


def test_reading_does_not_import_torch(alone: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from llama_convert.checkpoints.dcp import open_chunks, open_dcp\n"
        f"metadata = open_dcp(Path({str(alone)!r})); open_chunks(metadata, metadata.tensors)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


# Planted faults.


def load(folder: Path) -> torch_metadata.Metadata:
    content: torch_metadata.Metadata = pickle.loads((folder / METADATA).read_bytes())
    return content


def edit(folder: Path, change: Change) -> None:
    metadata = load(folder)
    change(metadata)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))


def tensors_of(metadata: torch_metadata.Metadata) -> Iterator[torch_metadata.TensorStorageMetadata]:
    for item in metadata.state_dict_metadata.values():
        if isinstance(item, torch_metadata.TensorStorageMetadata):
            yield item


def info(metadata: torch_metadata.Metadata, name: str = EMBEDDING) -> filesystem._StorageInfo:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def set_info(**values: Any) -> Change:
    return lambda metadata: vars(info(metadata)).update(values)


def set_chunk(**values: Any) -> Change:
    """Of the embedding; where it is stored is moved with it."""

    def change(metadata: torch_metadata.Metadata) -> None:
        (chunk,) = metadata.state_dict_metadata[EMBEDDING].chunks
        vars(chunk).update({key: torch.Size(value) for key, value in values.items()})
        metadata.storage_data[MetadataIndex(EMBEDDING, chunk.offsets)] = info(metadata)

    return change


def add_chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Change:
    def change(metadata: torch_metadata.Metadata) -> None:
        item = metadata.state_dict_metadata[EMBEDDING]
        item.chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        metadata.storage_data.setdefault(MetadataIndex(EMBEDDING, offsets), info(metadata))

    return change


def set_item(**values: Any) -> Change:
    return lambda metadata: vars(metadata.state_dict_metadata[EMBEDDING]).update(values)


def set_dtype(dtype: torch.dtype) -> Change:
    return lambda metadata: setattr(metadata.state_dict_metadata[EMBEDDING].properties, "dtype", dtype)


def rename(old: str, new: str) -> Change:
    def change(metadata: torch_metadata.Metadata) -> None:
        metadata.state_dict_metadata[new] = metadata.state_dict_metadata.pop(old)
        for index in [index for index in metadata.storage_data if index.fqn == old]:
            metadata.storage_data[MetadataIndex(new, index.offset)] = metadata.storage_data.pop(index)
        metadata.planner_data[new] = ("model", new)

    return change


FAULTS_OF_METADATA: dict[str, tuple[Change, str, str]] = {
    "a gap": (set_chunk(sizes=(6, 8)), "TENSOR_INVALID", "cover"),
    "no chunks": (set_item(chunks=[]), "TENSOR_INVALID", "0 chunks"),
    "two chunks that overlap": (add_chunk((3, 2), (2, 2)), "TENSOR_INVALID", "at [0, 0] and [3, 2] overlap"),
    "a chunk twice": (add_chunk((0, 0), (7, 8)), "TENSOR_INVALID", "at [0, 0] and [0, 0] overlap"),
    "a chunk that is too large": (set_chunk(sizes=(8, 8)), "TENSOR_INVALID", "cover"),
    "a chunk in another place": (set_chunk(offsets=(1, 0)), "TENSOR_INVALID", "cover"),
    "a larger tensor": (set_item(size=torch.Size((7, 9))), "TENSOR_INVALID", "cover"),
    "a chunk of fewer dimensions": (set_chunk(offsets=(0,), sizes=(56,)), "INPUT_DCP", "dimensions"),
    "a negative size": (set_chunk(sizes=(-7, -8)), "INPUT_DCP", "2^62"),
    "many dimensions": (set_item(size=torch.Size((1,) * 6)), "INPUT_DCP", "at most 5"),
    "chunks that are no list": (set_item(chunks=None), "INPUT_DCP", "not a list"),
    "chunks used repeatedly": (
        set_item(chunks=[ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((7, 8)))] * 9999),
        "INPUT_DCP",
        "repeatedly",
    ),
    "a chunk of another class": (set_item(chunks=[MetadataIndex("a")]), "INPUT_DCP", "ChunkStorageMetadata"),
    "a chunk that is not stored": (
        lambda metadata: metadata.storage_data.pop(MetadataIndex(EMBEDDING, (0, 0))),
        "INPUT_DCP",
        "not recorded",
    ),
    "nothing stored": (lambda metadata: setattr(metadata, "storage_data", None), "INPUT_DCP", "storage_data"),
    "no state dict": (
        lambda metadata: setattr(metadata, "state_dict_metadata", []),
        "INPUT_DCP",
        "state_dict_metadata",
    ),
    "no properties": (set_item(properties=None), "INPUT_DCP", "properties"),
    "a file in another folder": (set_info(relative_path="../x.distcp"), "INPUT_DCP", "'../x.distcp'"),
    "a file with a path": (set_info(relative_path="/etc/passwd"), "INPUT_DCP", "'/etc/passwd'"),
    "the folder as file": (set_info(relative_path=".."), "INPUT_DCP", "'..'"),
    "a file without name": (set_info(relative_path=""), "INPUT_DCP", "''"),
    "a file name with a line break": (set_info(relative_path="a\nb"), "INPUT_DCP", "'a\\nb'"),
    "a file name that is no text": (set_info(relative_path=[]), "INPUT_DCP", "no name"),
    "a missing file": (set_info(relative_path="__7_0.distcp"), "RANKS_MISSING", "__7_0.distcp"),
    "a range after the file": (set_info(offset=1 << 40), "INPUT_TRUNCATED", "truncated"),
    "a negative offset": (set_info(offset=-1), "INPUT_DCP", "2^62"),
    "an offset of 100 bits": (set_info(offset=1 << 100), "INPUT_DCP", "2^62"),
    "an offset that is no integer": (set_info(offset=0.5), "INPUT_DCP", "2^62"),
    "no bytes": (set_info(length=0), "INPUT_EMPTY", "empty"),
    "too many bytes": (
        lambda metadata: set_info(length=info(metadata).length + 1)(metadata),
        "INPUT_DCP",
        "overlap",
    ),
    "too few bytes": (
        lambda metadata: set_info(length=info(metadata).length - 1)(metadata),
        "INPUT_TRUNCATED",
        "damaged",
    ),
    "bytes that start later": (
        lambda metadata: set_info(offset=info(metadata).offset + 64, length=300)(metadata),
        "INPUT_NOT_TORCH",
        "damaged",
    ),
    "the bytes of another tensor": (
        lambda metadata: set_info(**vars(info(metadata, "model.output.weight")))(metadata),
        "INPUT_DCP",
        "overlap",
    ),
    "extensions": (set_info(transform_descriptors=["stream.zstd"]), "INPUT_COMPRESSED", "extension"),
    "an integer dtype": (set_dtype(torch.int8), "TENSOR_DTYPE", "int8"),
    "an unknown dtype": (set_dtype(torch.uint16), "TENSOR_DTYPE", "uint16"),
    "another dtype": (set_dtype(torch.float16), "TENSOR_DTYPE", "differs"),
    "a dtype that is no dtype": (set_dtype("float32"), "INPUT_DCP", "dtype"),  # type: ignore[arg-type]
    "a name with a line break": (rename(EMBEDDING, "a\nb"), "INPUT_DCP", "'a\\nb'"),
    "paths that are no paths": (
        lambda metadata: metadata.planner_data.update({EMBEDDING: [1]}),
        "INPUT_DCP",
        "planner_data",
    ),
    "keys of a path that are no keys": (
        lambda metadata: metadata.planner_data.update({EMBEDDING: (0.5,)}),
        "INPUT_DCP",
        "planner_data",
    ),
}


def refused(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_model(folder)
    assert str(caught.value).isprintable()
    assert str(folder) in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", FAULTS_OF_METADATA)
def test_faults_of_metadata(alone: Path, name: str) -> None:
    change, code, words = FAULTS_OF_METADATA[name]
    edit(alone, change)
    error = refused(alone)
    assert error.code == code
    assert words in str(error)


def replace_archive(folder: Path, archive: bytes, name: str = EMBEDDING) -> None:
    """Store other bytes as the archive of a tensor, at the end of the file."""
    metadata = load(folder)
    entry = info(metadata, name)
    with (folder / entry.relative_path).open("ab") as file:
        entry.offset, entry.length = file.tell(), len(archive)
        file.write(archive)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))


def saved_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def zipped(change: Callable[[str, bytes], tuple[bytes, int]]) -> bytes:
    """The archive of the embedding with other entries."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved_bytes(BFLOAT16))) as before,
        zipfile.ZipFile(buffer, "w") as after,
    ):
        for entry in before.namelist():
            content, method = change(entry, before.read(entry))
            after.writestr(entry, content, method)
    return buffer.getvalue()


BFLOAT16 = torch.ones(7, 8).bfloat16()
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
FAULTS_OF_ARCHIVES: dict[str, tuple[bytes, str, str]] = {
    "a dict": (saved_bytes({"a": BFLOAT16}), "INPUT_PICKLE", "Not a tensor but a dict"),
    "another dtype": (saved_bytes(torch.ones(7, 8)), "TENSOR_DTYPE", "Expected bfloat16, got float32"),
    "another shape": (saved_bytes(BFLOAT16.t().contiguous()), "TENSOR_SHAPE", "[7, 8]"),
    "not contiguous": (saved_bytes(torch.ones(8, 7).bfloat16().t()), "TENSOR_INVALID", "contiguous"),
    "a view of a storage": (saved_bytes(torch.ones(9, 8).bfloat16()[:7]), "TENSOR_INVALID", "storage"),
    "compressed": (zipped(lambda name, content: (content, DEFLATED)), "INPUT_COMPRESSED", "compressed"),
    "a short storage": (
        zipped(lambda name, content: (content[:-1] if "data/0" in name else content, STORED)),
        "TENSOR_INVALID",
        "data/0",
    ),
    "big-endian": (
        zipped(lambda name, content: (b"big" if "byteorder" in name else content, STORED)),
        "TENSOR_UNSUPPORTED",
        "big-endian",
    ),
    "safetensors": (b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}'.ljust(600), "INPUT_DCP", "safetensors"),
    "zeros": (bytes(2000), "INPUT_NOT_TORCH", "zeros"),
    "a sparse tensor": (saved_bytes(torch.eye(3).to_sparse()), "TENSOR_UNSUPPORTED", "sparse"),
    "an object": (saved_bytes(Counter("a")), "INPUT_PICKLE_OBJECT", "collections.Counter"),
    "two archives": (saved_bytes(BFLOAT16) * 2, "INPUT_ZIP", ""),
}


@pytest.mark.parametrize("name", FAULTS_OF_ARCHIVES)
def test_faults_of_archives(alone: Path, name: str) -> None:
    archive, code, words = FAULTS_OF_ARCHIVES[name]
    metadata = load(alone)
    for other in [name for name in metadata.state_dict_metadata if name.startswith("model.")]:
        if other != EMBEDDING:
            del metadata.state_dict_metadata[other]
    (alone / METADATA).write_bytes(pickle.dumps(metadata))
    replace_archive(alone, archive)
    error = refused(alone)
    assert error.code == code
    assert words in str(error)
    assert error.file_name == "__0_0.distcp"


def test_a_good_archive_in_another_place_is_read(alone: Path) -> None:
    replace_archive(alone, saved_bytes(BFLOAT16))
    assert read_model(alone) == expected(alone) | {EMBEDDING.removeprefix("model."): as_bytes(BFLOAT16)}


def test_strides_of_dimensions_of_one_element_do_not_matter(tmp_path: Path) -> None:
    """torch keeps the stride of a row that was a slice of a wider one."""
    row = torch.arange(100.0).view(1, 100)[:, 10:13]
    dcp_writer.save_alone(tmp_path / "dcp")
    dcp.save({"model": {"row": row}}, checkpoint_id=tmp_path / "row", no_dist=True)
    assert read_model(tmp_path / "row") == {"row": as_bytes(row)}


def test_every_flipped_bit_of_a_storage_is_refused(alone: Path) -> None:
    metadata = open_dcp(alone)
    ((chunk, stored),) = dcp_chunks.locate_chunks(metadata, [EMBEDDING])[EMBEDDING]
    content = bytearray(stored.file.read_bytes())
    for position in range(stored.offset, stored.offset + stored.nbytes, 7):
        content[position] ^= 1 << position % 8
        stored.file.write_bytes(content)
        assert refused(alone).code == "INPUT_CRC"
        content[position] ^= 1 << position % 8
    assert chunk.sizes == (7, 8)


def test_every_truncation_is_refused(alone: Path) -> None:
    file = alone / "__0_0.distcp"
    size = max(chunk.start + chunk.length for name in model_names(read_dcp(alone)) for chunk in
               read_dcp(alone).tensors[name].chunks)  # fmt: skip
    for length in [*range(0, size, 500), size - 1]:
        os.truncate(file, size - length if length else size - 1)
        assert refused(alone).code == "INPUT_TRUNCATED"


def test_every_truncation_of_metadata_is_refused(alone: Path) -> None:
    content = (alone / METADATA).read_bytes()
    for size in range(0, len(content), 13):
        (alone / METADATA).write_bytes(content[:size])
        assert refused(alone).code == "INPUT_PICKLE"


def test_bytes_after_metadata(alone: Path) -> None:
    with (alone / METADATA).open("ab") as file:
        file.write(b".")
    assert refused(alone).code == "INPUT_DCP"


def test_files_that_are_not_regular(alone: Path) -> None:
    file = alone / "__0_0.distcp"
    file.unlink()
    assert refused(alone).code == "RANKS_MISSING"
    file.symlink_to("/dev/zero")
    assert refused(alone).code == "INPUT_NOT_REGULAR"
    file.unlink()
    os.mkfifo(file)
    assert refused(alone).code == "INPUT_NOT_REGULAR"


def test_metadata_that_is_too_large(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcp_metadata, "_MAX_METADATA", 1000)
    assert refused(alone).code == "INPUT_TOO_LARGE"


def test_a_dtype_that_is_not_of_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": {"a": torch.ones(2, dtype=torch.int8)}}, checkpoint_id=tmp_path, no_dist=True)
    error = refused(tmp_path)
    assert (error.code, error.tensor) == ("TENSOR_DTYPE", "model.a")
    assert "int8" in str(error)


def test_a_dimension_that_is_not_of_a_matrix(tmp_path: Path) -> None:
    value = torch.arange(24.0).view(2, 3, 4)
    dcp.save({"model": {"a": value}}, checkpoint_id=tmp_path, no_dist=True)

    def change(metadata: torch_metadata.Metadata) -> None:
        item = metadata.state_dict_metadata["model.a"]
        item.chunks = [ChunkStorageMetadata(torch.Size((0, 0, at)), torch.Size((2, 3, 2))) for at in (0, 2)]
        for at in (0, 2):
            archive = saved_bytes(value[:, :, at : at + 2].contiguous())
            file = tmp_path / f"__{at}_0.distcp"
            file.write_bytes(archive)
            place = filesystem._StorageInfo(file.name, 0, len(archive))
            metadata.storage_data[MetadataIndex("model.a", (0, 0, at))] = place

    edit(tmp_path, change)
    error = refused(tmp_path)
    assert (error.code, error.tensor) == ("TENSOR_UNSUPPORTED", "model.a")


@given(st.integers(0, 9000), st.integers(0, 9000), st.integers(0, 9000), st.integers(0, 9000))
def test_a_range_is_read_like_a_file(start: int, size: int, offset: int, count: int) -> None:
    content = bytes(range(256)) * 36
    part = content[start : start + size]
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with files.reading(Path(file.name)) as reader:
            target = bytearray(count)
            done = files.read_into(files.FileRange(reader, start, len(part)), memoryview(target), offset)
    assert target[:done] == part[offset : offset + count]


# Other folders.


def test_an_interrupted_save(alone: Path) -> None:
    (alone / METADATA).rename(alone / ".metadata.tmp")
    error = refused(alone)
    assert error.code == "INPUT_DCP"
    assert "Interrupted save" in str(error)
    assert error.hint
    assert is_dcp(alone)


def test_separate_metadata_of_each_rank(tmp_path: Path) -> None:
    writer = dcp.FileSystemWriter(tmp_path / "dcp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": dcp_writer.truth()}, storage_writer=writer, no_dist=True)
    (tmp_path / "dcp" / METADATA).rename(tmp_path / "dcp" / "__0.metadata")
    error = refused(tmp_path / "dcp")
    assert "use_collectives" in str(error)
    assert error.hint


def test_safetensors_of_the_default_writer(tmp_path: Path) -> None:
    safetensors = filesystem.SerializationFormat.SAFETENSORS
    writer = dcp.FileSystemWriter(tmp_path / "dcp", serialization_format=safetensors)
    dcp_writer.save_alone(tmp_path / "dcp", storage_writer=writer)
    error = refused(tmp_path / "dcp")
    assert "safetensors" in str(error)
    assert error.hint


def test_safetensors_of_the_hugging_face_writer(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    writer = HuggingFaceStorageWriter(path=str(tmp_path), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dcp_writer.truth(), storage_writer=writer, no_dist=True)
    error = refused(tmp_path)
    assert "HuggingFaceStorageWriter" in str(error)
    assert error.hint


class Inverted(StreamTransformExtension):
    """Stands for a compressor: flips all bits."""

    @staticmethod
    def registry_name() -> str:
        return "stream.inverted"

    @staticmethod
    def from_descriptor(version: str) -> Inverted:
        return Inverted()

    def get_descriptor(self) -> str:
        return f"{self.registry_name()}/1"

    def transform_to(self, output: Any) -> Any:
        class Writer(io.RawIOBase):
            def write(self, data: Any) -> int:
                return output.write(bytes(byte ^ 255 for byte in bytes(data)))  # type: ignore[no-any-return]

        return Writer()

    def transform_from(self, input: Any) -> Any:  # noqa: A002
        raise NotImplementedError


def test_extensions_of_the_writer(tmp_path: Path) -> None:
    writer = dcp.FileSystemWriter(tmp_path / "dcp", _extensions=[Inverted()])
    dcp_writer.save_alone(tmp_path / "dcp", storage_writer=writer)
    assert refused(tmp_path / "dcp").code == "INPUT_COMPRESSED"


def test_megatron(alone: Path) -> None:
    good = (alone / METADATA).read_bytes()
    edit(alone, rename("model.output.weight", "decoder.layers.self_attention.linear_qkv.weight"))
    by_name = refused(alone)
    (alone / METADATA).write_bytes(good)
    (alone / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    by_file = refused(alone)
    assert by_name.message == by_file.message
    assert "Megatron" in by_name.message
    assert by_name.hint
    (alone / "metadata.json").write_text('{"step": 3}')
    assert read_model(alone) == expected(alone)


def test_another_folder(tmp_path: Path) -> None:
    (tmp_path / "consolidated.00.pth").touch()
    assert not is_dcp(tmp_path)
    assert refused(tmp_path).code == "INPUT_NOT_FOUND"


# Chunks tile a tensor.


def boxes(
    chance: random.Random, offsets: tuple[int, ...], sizes: tuple[int, ...], parts: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A box divided at random."""
    dims = [dim for dim, size in enumerate(sizes) if size > 1]
    if parts == 0 or not dims:
        return [(offsets, sizes)]
    dim = chance.choice(dims)
    at = chance.randrange(1, sizes[dim])

    def with_dim(values: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*values[:dim], value, *values[dim + 1 :])

    return [
        *boxes(chance, offsets, with_dim(sizes, at), parts - 1),
        *boxes(chance, with_dim(offsets, offsets[dim] + at), with_dim(sizes, sizes[dim] - at), parts - 1),
    ]


@settings(max_examples=400)
@given(
    st.lists(st.integers(1, 5), max_size=4).map(tuple), st.integers(0, 4), st.randoms(use_true_random=False)
)
def test_tiling_agrees_with_counting(shape: tuple[int, ...], parts: int, chance: random.Random) -> None:
    """Tilings, and what one or two changed numbers make of them."""
    tiles = [
        [list(offsets), list(sizes)] for offsets, sizes in boxes(chance, (0,) * len(shape), shape, parts)
    ]
    for _ in range(chance.choice((0, 0, 1, 2)) if shape else 0):
        numbers = chance.choice(chance.choice(tiles))
        dim = chance.randrange(len(shape))
        numbers[dim] = max(0, numbers[dim] + chance.choice((-1, 1)))
    if chance.random() < 0.2:
        tiles.append(chance.choice(tiles))
    count = np.zeros([size + 12 for size in shape], int)
    for offsets, sizes in tiles:
        count[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))] += 1
    inside = count[tuple(slice(0, size) for size in shape)]
    is_tiled = bool((inside == 1).all()) and count.sum() == inside.size
    chunks = tuple(DcpChunk(tuple(o), tuple(n), "", 0, 0, False) for o, n in tiles)
    tensor = DcpTensor("a", ("a",), "float32", shape, chunks)
    metadata = DcpMetadata(Path("/"), {"a": tensor}, {})
    if is_tiled:
        dcp_chunks._check_tiles(metadata, tensor)
    else:
        with pytest.raises(InputError) as caught:
            dcp_chunks._check_tiles(metadata, tensor)
        overlap = any((count > 1).flat)
        assert ("overlap" in str(caught.value)) == overlap


# Hostile pickles.


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.mkdir, ("marker",)),
        (eval, ("__import__('os').mkdir('marker')",)),
        (torch.load, ("marker",)),
        (torch._utils._rebuild_tensor_v2, (1, 2, 3, 4)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("place", ["planner_data", "storage_data", "state_dict_metadata", "unknown"])
def test_calls_are_refused(
    alone: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, function: Any, arguments: Any, place: str
) -> None:
    monkeypatch.chdir(alone)
    metadata = load(alone)
    setattr(metadata, place, {EMBEDDING: Call(function, *arguments)})
    (alone / METADATA).write_bytes(pickle.dumps(metadata, protocol))
    assert refused(alone).code == "INPUT_PICKLE_OBJECT"
    assert not (alone / "marker").exists()


def test_getattr_is_not_called(alone: Path) -> None:
    edit(alone, lambda metadata: setattr(metadata, "storage_meta", Call(getattr, 1, "no such attribute")))
    assert read_model(alone) == expected(alone)


def test_records_are_refused_in_other_files(tmp_path: Path) -> None:
    """What `.metadata` may contain is not allowed in a `.pth` file."""
    for content in (MetadataIndex("a"), Path("/"), getattr):
        with pytest.raises(PickleRefusedError):
            read_pickle(pickle.dumps({"a": content}))
    with pytest.raises(PickleRefusedError):
        read_pickle(b"\x80\x04ccollections\nOrderedDict\n)\x81.")


BOMB = b"\x80\x04]\x94" + b"".join(b"]\x94h" + bytes([n]) + b"ah" + bytes([n]) + b"a" for n in range(60))
HOSTILE = {
    "nothing": b"",
    "not a pickle": b"PK\3\4",
    "a list": pickle.dumps([]),
    "a record alone": pickle.dumps(MetadataIndex("a")),
    "a class alone": pickle.dumps(torch_metadata.Metadata),
    "lists of lists as a name": BOMB + b"\x8c\x01x\x93.",
    "an object of a list": BOMB + b")\x81.",
    "a record of itself": b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81\x94h\x00b.",
    "many marks": b"\x80\x04" + b"(" * 100_000,
    "a long integer": b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".",
    "a size of many": b"\x80\x04ctorch\nSize\n(" + b"K\x01" * 100_000 + b"t\x85R.",
    "a size of nothing": b"\x80\x04ctorch\nSize\n)R.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(tmp_path: Path, name: str) -> None:
    (tmp_path / METADATA).write_bytes(HOSTILE[name])
    with cpu_limit(SECONDS):
        refused(tmp_path)


def test_attributes_used_repeatedly(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stays proportional to the bytes: many attributes are not copied for each record that has them."""
    attributes = {"fqn": "a"} | {f"{number}": number for number in range(30_000)}
    metadata = load(alone)
    metadata.storage_data = {MetadataIndex(f"{number}"): None for number in range(30_000)}
    with monkeypatch.context() as context:
        new = lambda index, _protocol: (copyreg.__newobj__, (MetadataIndex,), attributes)  # type: ignore[attr-defined]  # noqa: E731
        context.setattr(MetadataIndex, "__reduce_ex__", new)
        (alone / METADATA).write_bytes(pickle.dumps(metadata))
    with cpu_limit(SECONDS):
        assert refused(alone).code == "INPUT_DCP"


# Damaged files.


def damaged(folder: Path, file: Path, count: int, seed: str) -> Counter[str]:
    """Read so many damaged versions of a file: refused with a short message, or as it was saved.

    Damaged metadata may exchange tensors, so the values may be those of any tensor.
    """
    chance, content = random.Random(seed), file.read_bytes()
    metadata = open_dcp(folder)
    good = {values(weight) for weight in open_chunks(metadata, metadata.tensors).values()}
    ended: Counter[str] = Counter()
    for number in range(count):
        file.write_bytes(damage(chance, content))
        try:
            with cpu_limit(SECONDS):
                found = read_model(folder)
        except LlamaConvertError as error:
            message = str(error).replace(str(folder), "")
            assert message.isprintable(), number
            assert len(message) < LONGEST, number
            ended["refused"] += 1
        except TimeoutError:
            raise AssertionError(f"input {number} took too long") from None
        else:
            assert set(found.values()) <= good, number
            ended["read"] += 1
    return ended


@pytest.mark.parametrize("count", [1500, pytest.param(30_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [METADATA, "__0_0.distcp"])
def test_damaged_files(
    alone: Path, name: str, count: int, record_property: Callable[[str, object], None]
) -> None:
    ended = damaged(alone, alone / name, count, f"{name} {count}")
    record_property("inputs", dict(ended))
    print(f"{name}: {count} inputs, {dict(ended)}")
    assert ended["refused"]
    assert ended["read"]
