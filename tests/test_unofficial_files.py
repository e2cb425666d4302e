"""Files and folders of other kinds: they are read, or the message says what they are."""

from __future__ import annotations

import io
import json
import pickle
import shlex
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.synthetic import LLAMA2, LLAMA3, Shape, State

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
SAFETENSORS_KINDS = KINDS | {"zip": (a_zip(), "zip archive")}
BIN_KINDS = TORCH_KINDS.keys() - {"safetensors"}


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


@pytest.mark.parametrize("name", sorted(BIN_KINDS))
def test_instead_of_pytorch_model(tmp_path: Path, name: str) -> None:
    content, words = TORCH_KINDS[name]
    synthetic.write_huggingface(tmp_path / "hf", LLAMA2, synthetic.weights(LLAMA2))
    (tmp_path / "hf/model.safetensors").unlink()
    (tmp_path / "hf/pytorch_model.bin").write_bytes(content)
    assert_told(llama_convert("convert", tmp_path / "hf", tmp_path / "out"), words)


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
def test_a_torch_file_named_like_safetensors_is_read(tmp_path: Path, options: dict[str, object]) -> None:
    huggingface_state(tmp_path / "hf", "model.safetensors", **options)
    assert_converts(tmp_path / "hf", tmp_path / "out", LLAMA3)


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


# Files and folders that are read whatever their names: the output is the truth.


def assert_converts(source: Path, out: Path, shape: Shape, **options: Any) -> None:
    """Into both formats, bit by bit."""
    state = synthetic.weights(shape)
    convert(source, out / "hf", ConvertOptions(**options))
    assert_equal(load_file(out / "hf/model.safetensors"), synthetic.huggingface(shape, state))
    convert(source, out / "meta", ConvertOptions(to="meta", mp=1, **options))
    (found,) = synthetic.read(out / "meta")
    assert_equal(found, state)


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight), name


def torchtune(folder: Path) -> None:
    synthetic.make(folder, LLAMA2)
    (folder / "consolidated.00.pth").rename(folder / "model-00001-of-00001.bin")


def without_params(folder: Path) -> None:
    synthetic.make(folder, LLAMA2)
    (folder / "consolidated.00.pth").rename(folder / "meta_model_0.pt")
    (folder / "params.json").unlink()


def huggingface_state(folder: Path, name: str = "model.pt", *, tied: bool = False, **options: object) -> None:
    shape = LLAMA3.but(tied=tied)
    synthetic.write_huggingface(folder, shape, synthetic.weights(shape))
    state = load_file(folder / "model.safetensors")
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / name, **options)  # type: ignore[arg-type]


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


READ: dict[str, tuple[Callable[[Path], None], Shape]] = {
    "torchtune": (torchtune, LLAMA2),
    "a state dict": (huggingface_state, LLAMA3),
    "two files": (two_files_of_huggingface, LLAMA3),
    "Hugging Face names in a rank file": (huggingface_names_in_a_rank_file, LLAMA3),
    "a training checkpoint": (wrapped, LLAMA2),
    "rank folders": (rank_folders, LLAMA2),
    "bin": (lambda folder: huggingface_state(folder, "pytorch_model.bin"), LLAMA3),
    "bin of before 1.6": (
        lambda folder: huggingface_state(folder, "pytorch_model.bin", _use_new_zipfile_serialization=False),
        LLAMA3,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read(tmp_path: Path, name: str) -> None:
    make, shape = READ[name]
    make(tmp_path / "it's a {folder}")
    assert_converts(tmp_path / "it's a {folder}", tmp_path / "out", shape)


def test_a_tied_state_dict_is_read(tmp_path: Path) -> None:
    huggingface_state(tmp_path / "in", tied=True)
    convert(tmp_path / "in", tmp_path / "out")
    shape = LLAMA3.but(tied=True)
    expected = synthetic.huggingface(shape, synthetic.weights(shape))
    assert_equal(load_file(tmp_path / "out/model.safetensors"), expected)


@pytest.mark.parametrize("make", [without_params, distributed])
def test_settings_of_another_folder(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "in")
    synthetic.make(tmp_path / "settings", LLAMA2)
    run = llama_convert("convert", tmp_path / "in", tmp_path / "out")
    assert run.exit_code == 3
    assert hint_of(run).endswith("--config-from FOLDER.")
    assert_converts(tmp_path / "in", tmp_path / "out", LLAMA2, config_from=tmp_path / "settings")


def test_safetensors_with_settings_of_meta(tmp_path: Path) -> None:
    synthetic.write_huggingface(tmp_path / "hf", LLAMA2, synthetic.weights(LLAMA2))
    (tmp_path / "hf/config.json").unlink()
    run = llama_convert("convert", tmp_path / "hf", tmp_path / "out")
    assert run.exit_code == 3
    assert hint_of(run).endswith("--config-from FOLDER.")
    synthetic.make(tmp_path / "settings", LLAMA2)
    assert_converts(tmp_path / "hf", tmp_path / "out", LLAMA2, config_from=tmp_path / "settings")


# Folders that are refused: what they contain, what the error says, and the hint.


def saved_alone(content: object) -> Callable[[Path], None]:
    """A folder of one PyTorch file."""

    def make(folder: Path) -> None:
        folder.mkdir()
        torch.save(content, folder / "model.pt")

    return make


def llama_with(**tensors: torch.Tensor) -> Callable[[Path], None]:
    """A Hugging Face folder of PyTorch files with more tensors, by names with __ instead of dots."""

    def make(folder: Path) -> None:
        huggingface_state(folder)
        more = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        torch.save(torch.load(folder / "model.pt") | more, folder / "model.pt")

    return make


def module(name: str) -> type:
    """A class of a package that is not installed, as a pickle names it."""
    package, _, attribute = name.rpartition(".")
    parts = package.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    kind = type(attribute, (), {"__module__": package})
    setattr(sys.modules[package], attribute, kind)
    return kind


def of_class(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        before = set(sys.modules)
        try:
            torch.save({"model.norm.weight": module(name)()}, folder / "model.pt")
        finally:
            for added in set(sys.modules) - before:
                del sys.modules[added]

    return make


DTENSORS = """
import sys, tempfile, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
store = dist.FileStore(sys.argv[1] + ".store", 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
state = {"model.norm.weight": distribute_tensor(torch.ones(8), mesh, [Shard(0)])}
torch.save(state, sys.argv[1])
dist.destroy_process_group()
"""


def dtensors(folder: Path, name: str = "model.pt") -> None:
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", DTENSORS, folder / name], check=True)


def verl(folder: Path) -> None:
    dtensors(folder / "actor", "model_world_size_2_rank_0.pt")
    shutil.copy(folder / "actor/model_world_size_2_rank_0.pt", folder / "actor/model_world_size_2_rank_1.pt")
    (folder / "actor/huggingface").mkdir()
    (folder / "actor/huggingface/config.json").write_text("{}")


def verl_with_config(folder: Path) -> None:
    dtensors(folder, "model_world_size_1_rank_0.pt")
    synthetic.write_huggingface(folder / "x", LLAMA3, synthetic.weights(LLAMA3))
    shutil.move(folder / "x/config.json", folder)
    shutil.rmtree(folder / "x")


def deepspeed(folder: Path, *, script: bool = True) -> None:
    """As the Trainer of transformers saves it: names from DeepSpeed, ZeRO 3."""
    step = folder / "global_step5"
    step.mkdir(parents=True)
    for rank in range(2):
        module_state = {"model.norm.weight": torch.empty(0)}  # ZeRO 3 keeps weights in the other files
        torch.save({"module": module_state}, step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        flat = {"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(8)]}}
        torch.save(flat, step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text("global_step5")
    (folder / "rng_state_0.pth").write_bytes(saved({"cpu": torch.zeros(3)}))
    (folder / "training_args.bin").write_bytes(saved({"lr": 0.1}))
    if script:
        (folder / "zero_to_fp32.py").touch()


def megatron(folder: Path) -> None:
    (folder / "iter_0000100/mp_rank_00").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("100")
    torch.save({"model": {}}, folder / "iter_0000100/mp_rank_00/model_optim_rng.pt")


def optimizer_alone(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"optimizer": {"state": {"a": torch.ones(3)}}}, checkpoint_id=folder)


def empty_distributed(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"step": 3}, checkpoint_id=folder)


def distributed_of_another_model(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": {"bert.embeddings.word_embeddings.weight": torch.ones(3, 2)}}, checkpoint_id=folder)


def tar_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.pt").write_bytes(torch_tar())


def nested(folder: Path) -> None:
    synthetic.make(folder, LLAMA2)
    state = torch.load(folder / "consolidated.00.pth")
    torch.save({"weights": state, "step": 3}, folder / "checkpoint.pt")
    (folder / "consolidated.00.pth").unlink()


ONE = torch.ones(2, 2)
Q = "model__layers__0__self_attn__q_proj"
EXPERT = "model__layers__0__block_sparse_moe__experts__0__w1__weight"
UNQUANTIZED = "Convert the unquantized release."
FOLDERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a nested dict": (nested, "Not a tensor but a dict", "save it alone with torch.save"),
    "an adapter": (adapter, "a LoRA adapter", "Merge it into its base model first. Run: python"),
    "an adapter and a tokenizer": (adapter_with_tokenizer, "a LoRA adapter", "Run: python"),
    "an adapter of torchtune": (
        saved_alone({"layers.0.attn.q_proj.lora_a.weight": ONE}),
        "A LoRA adapter, not a whole model.",
        "Merge the adapter into its base model first.",
    ),
    "verl": (
        verl, "shards of verl (model_world_size_2_rank_0.pt and 1 more)", "python -m verl.model_merger merge"
    ),
    "verl with config": (verl_with_config, "shards of verl", "--backend fsdp --local_dir"),
    "DTensor": (
        dtensors, "shards of distributed tensors ('torch.distributed.tensor.DTensor')", "Merge the shards"
    ),
    "DTensor of old torch": (
        of_class("torch.distributed._tensor.api.DTensor"),
        "shards of distributed tensors",
        "Merge the shards",
    ),
    "ShardedTensor": (
        of_class("torch.distributed._shard.sharded_tensor.api.ShardedTensorX"),
        "shards of distributed tensors",
        "Merge the shards",
    ),
    "DeepSpeed": (deepspeed, "a training checkpoint of DeepSpeed (global_step5)", "zero_to_fp32.py"),
    "DeepSpeed without script": (
        lambda folder: deepspeed(folder, script=False),
        "a training checkpoint of DeepSpeed",
        "Run zero_to_fp32.py",
    ),
    "an object of DeepSpeed": (
        of_class("deepspeed.runtime.zero.ZeroStageEnum"), "objects of DeepSpeed", "Run zero_to_fp32.py",
    ),
    "Megatron": (megatron, "a checkpoint of Megatron", "Megatron Bridge"),
    "an object of Megatron": (
        of_class("megatron.core.enums.ModelType"), "objects of Megatron", "Megatron Bridge"
    ),
    "tar": (tar_alone, "the tar format from before version 0.1.10", "torch.load(FILE, weights_only=False)"),
    "torchao": (of_class("torchao.dtypes.AffineQuantizedTensor"), "quantized tensors", UNQUANTIZED),
    "GPTQ": (
        llama_with(**{f"{Q}__qweight": ONE.int(), f"{Q}__scales": ONE}),
        "Quantized weights (GPTQ or AWQ) are not supported.",
        UNQUANTIZED,
    ),
    "bitsandbytes": (
        llama_with(**{f"{Q}__weight__absmax": ONE}),
        "Quantized weights (bitsandbytes) are not supported.",
        UNQUANTIZED,
    ),
    "FP8": (
        llama_with(**{f"{Q}__weight_scale_inv": ONE}), "Quantized weights are not supported.", UNQUANTIZED
    ),
    "Mixtral": (llama_with(**{EXPERT: ONE}), "A mixture of experts, as in Mixtral", ""),
    "Qwen 2": (llama_with(**{f"{Q}__bias": ONE[0]}), "Biases of attention, as in Qwen 2", ""),
    "Qwen 3": (
        llama_with(model__layers__0__self_attn__q_norm__weight=ONE[0]),
        "Normalized queries and keys, as in Qwen 3",
        "",
    ),
    "BERT": (
        saved_alone({"bert.embeddings.word_embeddings.weight": ONE}), "A BERT model is not supported.", "",
    ),
    "GPT-2": (
        saved_alone({"transformer.h.0.attn.c_attn.weight": ONE}), "A GPT-2 model is not supported.", ""
    ),
    "another model": (
        saved_alone({"fc.weight": ONE}),
        "Contains no weights of a Llama (the first tensor is 'fc.weight').",
        "Rename the tensors",
    ),
    "the state of an optimizer": (
        optimizer_alone, "Contains only the state of an optimizer.", "pytorch_model_fsdp_0"
    ),
    "no tensors": (empty_distributed, "Contains no tensors.", "pytorch_model_fsdp_0"),
    "BERT, distributed": (distributed_of_another_model, "A BERT model is not supported.", ""),
    "two models": (
        saved_alone({"model": {"norm.weight": ONE}, "ema": {"norm.weight": ONE}}),
        "Contains several state dicts: ema, model.",
        "Save one of them alone",
    ),
}  # fmt: skip


def hint_of(run: Run) -> str:
    lines = [line for line in run.stderr.splitlines() if line.startswith("hint: ")]
    assert len(lines) <= 1, run.stderr
    return lines[0].removeprefix("hint: ") if lines else ""


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path: Path, name: str) -> None:
    make, words, hint = FOLDERS[name]
    folder = tmp_path / "it's a {folder}"
    make(folder)
    synthetic.make(tmp_path / "settings", LLAMA2)
    before = sorted(tmp_path.rglob("*"))
    for options in ([], ["--to", "meta"], ["--config-from", tmp_path / "settings"]):
        run = llama_convert("convert", folder, tmp_path / "out", *options)
        assert run.exit_code == 3, run.stderr
        assert words in run.stderr
        assert hint in hint_of(run)
        assert "Traceback" not in run.stderr
        command = shlex.split(hint_of(run).partition("Run: ")[2])
        if command[1:2] == ["-c"]:
            compile(command[2], "hint", "exec")
        assert sorted(tmp_path.rglob("*")) == before
    run = llama_convert("verify", folder)
    assert run.exit_code in (1, 3)
    assert words in " ".join((run.stderr + run.stdout).split())


def test_commands_of_hints(tmp_path: Path) -> None:
    deepspeed(tmp_path / "it's ZeRO")
    root = f"{tmp_path}/it's ZeRO"
    merge = ["python", f"{root}/zero_to_fp32.py", root, f"{root}-fp32"]
    assert command_of("convert", root, tmp_path / "out") == merge
    step = f"{root}/global_step5"
    assert command_of("convert", step, tmp_path / "out") == [*merge, "--tag", "global_step5"]
    verl(tmp_path / "verl's")
    actor = f"{tmp_path}/verl's/actor"
    options = ["--backend", "fsdp", "--local_dir", actor, "--target_dir", f"{actor}-merged"]
    for path in (tmp_path / "verl's", actor):
        merge = ["python", "-m", "verl.model_merger", "merge", *options]
        assert command_of("convert", path, tmp_path / "out") == merge


def command_of(*arguments: object) -> list[str]:
    return shlex.split(hint_of(llama_convert(*arguments)).partition("Run: ")[2])


def test_an_adapter_next_to_a_model(tmp_path: Path) -> None:
    """Does not keep the model from being read."""
    synthetic.write_huggingface(tmp_path / "hf", LLAMA2, synthetic.weights(LLAMA2))
    adapter(tmp_path / "adapter")
    for file in (tmp_path / "adapter").iterdir():
        shutil.copy(file, tmp_path / "hf")
    assert llama_convert("convert", tmp_path / "hf", tmp_path / "out", "--to", "meta").exit_code == 0


def test_verify_of_another_model_is_no_failed_check(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    torch.save({"transformer.h.0.attn.c_attn.weight": torch.ones(2, 2)}, tmp_path / "gpt2/model.bin")
    run = llama_convert("verify", tmp_path / "gpt2")
    assert run.exit_code == 3
    assert "GPT-2" in run.stderr
