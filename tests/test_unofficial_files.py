"""Files and folders of other kinds: the message says what they are, and the hint is a command that works."""

from __future__ import annotations

import io
import json
import pickle
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_convert import ConvertOptions, convert
from llama_convert.formats.file_kinds import HEAD_SIZE, kind_of
from llama_convert.formats.safetensors import read_header
from tests import synthetic
from tests.peers import ROOT
from tests.run import Run, llama_convert
from tests.synthetic import LLAMA2, LLAMA3, State

FIXTURE = ROOT / "fixtures/llama2-mp2"


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights"), io.BytesIO())
    return buffer.getvalue()


def torch_tar() -> bytes:
    """As torch wrote before version 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def a_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("weights.txt", "1 2 3")
    return buffer.getvalue()


def safetensors(state: State) -> bytes:
    from safetensors.torch import save

    return save(state)


STATE = {"a": torch.ones(3)}
KINDS: dict[str, tuple[bytes, str]] = {
    "GGUF": (b"GGUF\3\0\0\0" + bytes(100), "GGUF"),
    "GGML": (b"tjgg\3\0\0\0" + bytes(100), "GGML"),
    "npy": (npy(), "NumPy array"),
    "npz": (npz(), "NumPy archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:" + bytes(100), "ONNX"),
    "pickle, protocol 0": (pickle.dumps({"a": 1}, 0), "Python pickle"),
    "pickle, protocol 1": (pickle.dumps({"a": 1}, 1), "Python pickle"),
    "pickle, protocol 2": (pickle.dumps({"a": 1}, 2), "Python pickle"),
    "pickle, protocol 5": (pickle.dumps({"a": 1}, 5), "Python pickle"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(100), "7z archive"),
    "RAR": (b"Rar!\x1a\7\1\0" + bytes(100), "RAR archive"),
    "tar": (tar(), "tar archive"),
    "torch's tar": (torch_tar(), "before version 0.1.10"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(100), "gzip"),
    "bzip2": (b"BZh91AY&SY" + bytes(100), "bzip2"),
    "xz": (b"\xfd7zXZ\0\0\4" + bytes(100), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"\x01" * 100, "zstd"),
    "HTML": (b"\xef\xbb\xbf\n<!DOCTYPE html>", "HTML"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
    "JSON": (b'{\n "metadata": {}, "weight_map": {}}', "JSON"),
    "zeros": (bytes(1000), "zeros"),
}
TORCH_KINDS = KINDS | {"safetensors": (safetensors(STATE), "safetensors file")}
SAFETENSORS_KINDS = KINDS | {
    "torch": (saved(STATE), "PyTorch file"),
    "torch, protocol 4": (saved(STATE, pickle_protocol=4), "PyTorch file"),
    "legacy": (saved(STATE, _use_new_zipfile_serialization=False), "before version 1.6"),
    "legacy, protocol 4": (
        saved(STATE, _use_new_zipfile_serialization=False, pickle_protocol=4),
        "before version 1.6",
    ),
    "zip": (a_zip(), "zip archive"),
}


def assert_told(run: Run, words: str) -> None:
    assert run.exit_code == 3, run.stderr
    error, hint = [line for line in run.stderr.splitlines() if "error: " in line or "hint: " in line]
    assert words in error
    assert "header" not in error
    assert "bytes" not in error
    assert hint


@pytest.mark.parametrize("name", TORCH_KINDS)
def test_instead_of_a_rank_file(tmp_path: Path, name: str) -> None:
    content, words = TORCH_KINDS[name]
    synthetic.make(tmp_path / "meta", LLAMA2)
    (tmp_path / "meta/consolidated.00.pth").write_bytes(content)
    assert_told(llama_convert("convert", tmp_path / "meta", tmp_path / "out"), words)


@pytest.mark.parametrize("name", SAFETENSORS_KINDS)
def test_instead_of_safetensors(tmp_path: Path, name: str) -> None:
    content, words = SAFETENSORS_KINDS[name]
    synthetic.write_huggingface(tmp_path / "hf", LLAMA2, synthetic.weights(LLAMA2))
    (tmp_path / "hf/model.safetensors").write_bytes(content)
    assert_told(llama_convert("convert", tmp_path / "hf", tmp_path / "out", "--to", "meta"), words)


@pytest.mark.parametrize("name", KINDS)
def test_alone_in_a_folder(tmp_path: Path, name: str) -> None:
    content, words = KINDS[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/weights").write_bytes(content)
    for arguments in (["convert", tmp_path / "in", tmp_path / "out"], ["inspect", tmp_path / "in"]):
        assert_told(llama_convert(*arguments), words)
    assert_told(llama_convert("convert", tmp_path / "in/weights", tmp_path / "out"), words)


@pytest.mark.parametrize("length", [ord("<"), 0x8B1F, 0x4B50, 0x0A, 0x3A7B])
def test_a_length_that_looks_like_another_kind(tmp_path: Path, length: int) -> None:
    """The first bytes of a safetensors file are a number."""
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    content = length.to_bytes(8, "little") + header.ljust(length)[:length] + b"x"
    if length > len(header):
        (tmp_path / "a.safetensors").write_bytes(content)
        assert read_header(tmp_path / "a.safetensors")[1] == 8 + length
    kind = kind_of(content[:HEAD_SIZE])
    assert kind is None or kind.name == "a safetensors file"


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_of_an_old_protocol(tmp_path: Path, protocol: int, *, zipped: bool) -> None:
    synthetic.make(tmp_path / "meta", LLAMA2)
    file = tmp_path / "meta/consolidated.00.pth"
    torch.save(torch.load(file), file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    run = llama_convert("convert", tmp_path / "meta", tmp_path / "out")
    assert run.exit_code == 3
    assert "pickle protocol 0 or 1" in run.stderr


# Folders: what they hold, what the error says, and the hint, which is followed where it is a command.


def torchtune(folder: Path) -> None:
    synthetic.make(folder, LLAMA2)
    (folder / "consolidated.00.pth").rename(folder / "model-00001-of-00001.bin")


def without_params(folder: Path) -> None:
    synthetic.make(folder, LLAMA2)
    (folder / "consolidated.00.pth").rename(folder / "meta_model_0.pt")
    (folder / "params.json").unlink()


def huggingface_state(folder: Path, name: str = "model.pt", *, tied: bool = False) -> None:
    shape = LLAMA3.but(tied=tied)
    synthetic.write_huggingface(folder, shape, synthetic.weights(shape))
    state = load_file(folder / "model.safetensors")
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save(state, folder / name)
    (folder / "model.safetensors").unlink()


def two_files_of_huggingface(folder: Path) -> None:
    huggingface_state(folder)
    state = torch.load(folder / "model.pt")
    names = sorted(state)
    (folder / "model.pt").unlink()
    torch.save({name: state[name] for name in names[:9]}, folder / "hf_model_0001_0.pt")
    torch.save({name: state[name] for name in names[9:]}, folder / "hf_model_0002_0.pt")


def huggingface_names_in_a_rank_file(folder: Path) -> None:
    huggingface_state(folder, "consolidated.00.pth")
    synthetic.make(folder / "x", LLAMA3)
    shutil.move(folder / "x/params.json", folder)
    shutil.rmtree(folder / "x")


def wrapped(folder: Path) -> None:
    synthetic.make(folder, LLAMA2)
    state = torch.load(folder / "consolidated.00.pth")
    torch.save({"model": state, "step": 3}, folder / "checkpoint.pt")
    (folder / "consolidated.00.pth").unlink()


def nested(folder: Path) -> None:
    synthetic.make(folder, LLAMA2)
    state = torch.load(folder / "consolidated.00.pth")
    torch.save({"weights": state, "step": 3}, folder / "checkpoint.pt")
    (folder / "consolidated.00.pth").unlink()


def adapter(folder: Path) -> None:
    folder.mkdir()
    save_file({"base_model.model.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/it's a base"}))


def adapter_with_tokenizer(folder: Path) -> None:
    adapter(folder)
    (folder / "tokenizer.json").write_text("{}")


def distributed(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": synthetic.weights(LLAMA2)}, checkpoint_id=folder)


def rank_folders(folder: Path) -> None:
    shape = LLAMA2.but(ranks=2)
    synthetic.make(folder, shape)
    for number in range(2):
        file, rank = folder / f"consolidated.{number:02d}.pth", folder / f"consolidated.{number:02d}"
        state = torch.load(file)
        rank.mkdir()
        for part, names in enumerate((list(state)[:9], list(state)[9:]), start=1):
            torch.save({name: state[name] for name in names}, rank / f"consolidated-{part:05d}-of-00002.pth")
        file.unlink()


FOLDERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "torchtune": (
        torchtune,
        "a PyTorch file (model-00001-of-00001.bin) with Meta tensor names",
        "Rename model-00001-of-00001.bin to consolidated.00.pth.",
    ),
    "no params": (without_params, "Meta tensor names", "and add the params.json of the model."),
    "a state dict": (
        huggingface_state,
        "a PyTorch file (model.pt) with Hugging Face tensor names",
        "Run: python",
    ),
    "a tied state dict": (lambda folder: huggingface_state(folder, tied=True), "model.pt", "Run: python"),
    "two files": (two_files_of_huggingface, "(hf_model_0001_0.pt and 1 more)", "Run: python"),
    "a training checkpoint": (
        wrapped,
        "a PyTorch file (checkpoint.pt) with Meta tensor names",
        "Rename checkpoint.pt to consolidated.00.pth.",
    ),
    "a nested dict": (nested, "weights: Not a tensor but a dict", "save it alone with torch.save"),
    "an adapter": (adapter, "a LoRA adapter", "Merge it into its base model first. Run: python"),
    "an adapter and a tokenizer": (adapter_with_tokenizer, "a LoRA adapter", "Run: python"),
    "distributed": (distributed, "a distributed checkpoint", "Run: python -m torch.distributed"),
    "rank folders": (rank_folders, "2 rank folders (consolidated.00, ...)", "Run: python"),
}


def hint_of(run: Run) -> str:
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("hint: ")]
    return line.removeprefix("hint: ")


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path: Path, name: str) -> None:
    make, words, hint = FOLDERS[name]
    folder = tmp_path / "it's a {folder}"
    make(folder)
    for arguments in (
        ["convert", folder, tmp_path / "out"],
        ["convert", folder, tmp_path / "out", "--to", "meta"],
    ):
        run = llama_convert(*arguments)
        assert run.exit_code == 3, run.stderr
        assert words in run.stderr
        assert hint in hint_of(run)
        for code in shlex.split(hint_of(run).partition("python -c ")[2]):
            compile(code, "hint", "exec")
    run = llama_convert("inspect", folder)
    assert run.exit_code in (1, 3)
    assert words in " ".join((run.stderr + run.stdout).split())


def follow(hint: str, **environment: str) -> None:
    """Run the command of a hint."""
    command = shlex.split(hint.partition("Run: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, env={"PATH": "/usr/bin:/bin", **environment})


@pytest.mark.parametrize(
    "make", [huggingface_state, two_files_of_huggingface, huggingface_names_in_a_rank_file]
)
def test_a_state_dict_is_read_once_the_hint_is_followed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = tmp_path / "it's a {folder}"
    make(folder)
    follow(hint_of(llama_convert("convert", folder, tmp_path / "out")))
    convert(folder, tmp_path / "out", ConvertOptions(to="meta"))
    (found,) = synthetic.read(tmp_path / "out")
    expected = synthetic.weights(LLAMA3)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_renamed_file_is_read(tmp_path: Path) -> None:
    torchtune(tmp_path / "meta")
    (tmp_path / "meta/model-00001-of-00001.bin").rename(tmp_path / "meta/consolidated.00.pth")
    convert(tmp_path / "meta", tmp_path / "out")


def test_joined_ranks_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "it's a {folder}"
    rank_folders(folder)
    follow(hint_of(llama_convert("convert", folder, tmp_path / "out")))
    convert(folder, tmp_path / "out")
    expected = synthetic.huggingface(LLAMA2, synthetic.weights(LLAMA2))
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_distributed_checkpoint_becomes_one_file(tmp_path: Path) -> None:
    distributed(tmp_path / "step-5")
    follow(hint_of(llama_convert("convert", tmp_path / "step-5", tmp_path / "out")))
    assert torch.load(tmp_path / "step-5.pt")["model"].keys() == synthetic.weights(LLAMA2).keys()


@pytest.mark.parametrize("peer", ["transformers-4.45", "transformers-5"])
@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_bin_folder_is_read_once_the_hint_is_followed(
    tmp_path: Path, peer: str, *, tokenizer: bool
) -> None:
    convert(FIXTURE, tmp_path / "hf")
    state = load_file(tmp_path / "hf/model.safetensors")
    torch.save(state, tmp_path / "hf/pytorch_model.bin")
    (tmp_path / "hf/model.safetensors").unlink()
    if not tokenizer:
        for file in [*(tmp_path / "hf").glob("tokenizer*"), *(tmp_path / "hf").glob("special_tokens*")]:
            file.unlink()
    run = llama_convert("convert", tmp_path / "hf", tmp_path / "out", "--to", "meta")
    assert "PyTorch weights in Hugging Face format (pytorch_model.bin)" in run.stderr
    assert ("AutoTokenizer" in hint_of(run)) == tokenizer
    follow(hint_of(run), PYTHONPATH=str(ROOT / ".peers" / peer), HF_HUB_OFFLINE="1", HOME=str(tmp_path))
    saved_anew = load_file(tmp_path / "hf-safetensors/model.safetensors")
    assert all(torch.equal(saved_anew[name], state[name]) for name in state)
    assert (tmp_path / "hf-safetensors/tokenizer.json").exists() == tokenizer
    assert (
        llama_convert("convert", tmp_path / "hf-safetensors", tmp_path / "out", "--to", "meta").exit_code == 0
    )


def test_an_adapter_next_to_a_model(tmp_path: Path) -> None:
    """Does not keep the model from being read."""
    synthetic.write_huggingface(tmp_path / "hf", LLAMA2, synthetic.weights(LLAMA2))
    adapter(tmp_path / "adapter")
    for file in (tmp_path / "adapter").iterdir():
        shutil.copy(file, tmp_path / "hf")
    assert llama_convert("convert", tmp_path / "hf", tmp_path / "out", "--to", "meta").exit_code == 0
