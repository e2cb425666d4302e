"""Checkpoints as training programs write them: the same two models in each container, under each naming."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from llama_convert import convert
from tests import synthetic
from tests.peers import ROOT, Peer
from tests.synthetic import LLAMA3, Shape, State

UNTIED = LLAMA3.but(n_heads=4, n_kv_heads=2, vocab_size=640)
TIED = UNTIED.but(vocab_size=608, tied=True)
TOKENIZERS = {False: "fixtures/llama3.1-mp2", True: "fixtures/llama3.2-tied"}
RANKS = (1, 2, 3)


@dataclass(frozen=True)
class Model:
    """A model, and complete folders of it in both formats."""

    shape: Shape
    meta: Path
    huggingface: Path

    @cached_property
    def weights(self) -> State:
        return synthetic.weights(self.shape)

    @cached_property
    def huggingface_weights(self) -> State:
        return synthetic.huggingface(self.shape, self.weights)

    @cached_property
    def safetensors(self) -> bytes:
        """The file that transformers would write."""
        tensors = {name: tensor.contiguous() for name, tensor in self.huggingface_weights.items()}
        return save(tensors, {"format": "pt"})


@dataclass(frozen=True)
class Sample:
    """A checkpoint in a file or folder."""

    path: Path
    model: Model
    config_from: Path | None = None
    """None: the settings are in the folder."""
    note: str | None = None
    """What the commands must print about names and wrappers."""
    legacy: bool = False
    """Whether there is a file of the format before torch 1.6, which has no CRC-32s."""

    @property
    def options(self) -> tuple[str, ...]:
        return ("--config-from", str(self.config_from)) if self.config_from else ()


Samples = dict[str, Sample]


def make_model(folder: Path, shape: Shape) -> Model:
    """Write the folders of a model, with the tokenizer of a fixture."""
    state = synthetic.make(folder / "meta", shape)
    shutil.copy(ROOT / TOKENIZERS[shape.tied] / "tokenizer.model", folder / "meta")
    huggingface = synthetic.write_huggingface(folder / "huggingface", shape, state)
    model = Model(shape, folder / "meta", huggingface)
    (huggingface / "model.safetensors").write_bytes(model.safetensors)
    config = json.loads((huggingface / "config.json").read_text()) | {"max_position_embeddings": 131072}
    config["rope_scaling"]["factor"] = 32.0 if shape.tied else 8.0  # Llama 3.2 and 3.1
    bos = shape.vocab_size - 256
    config |= {"bos_token_id": bos, "eos_token_id": bos + 1}
    (huggingface / "config.json").write_text(json.dumps(config))
    convert(model.meta, folder / "converted", tokenizer=model.meta / "tokenizer.model")
    for file in (folder / "converted").glob("*token*.json"):
        shutil.copy(file, huggingface)
    return model


def with_settings(path: Path, settings: Path) -> Path:
    """The folder of the path, with the settings and the tokenizer of another."""
    folder = path.parent if path.is_file() else path
    for file in settings.iterdir():
        if file.suffix in (".json", ".model"):
            shutil.copy(file, folder)
    return folder


def torchtune(state: State) -> State:
    """Weights under torchtune's names."""
    parts = {
        "attention.wq": "attn.q_proj",
        "attention.wk": "attn.k_proj",
        "attention.wv": "attn.v_proj",
        "attention.wo": "attn.output_proj",
        "feed_forward": "mlp",
        "attention_norm.weight": "sa_norm.scale",
        "ffn_norm.weight": "mlp_norm.scale",
    }
    renamed: State = {}
    for name, tensor in state.items():
        for old, new in parts.items():
            name = name.replace(old, new)
        renamed["norm.scale" if name == "norm.weight" else name] = tensor
    return renamed


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def freqs_cis(shape: Shape) -> torch.Tensor:
    """The rotations of RoPE, as a buffer that older torchtitan saved."""
    angles = torch.outer(torch.arange(8.0), 1 / 500000.0 ** torch.linspace(0, 1, shape.head_dim // 2))
    return torch.polar(torch.ones_like(angles), angles)


def split(state: State, count: int) -> list[State]:
    """The tensors in turn to so many parts."""
    names = list(state)
    return [{name: state[name] for name in names[start::count]} for start in range(count)]


def saved(file: Path, content: Any, *, legacy: bool = False) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file


# torch.save.


def write_bins(folder: Path, parts: list[State], *, index: bool, legacy: bool) -> Path:
    """Shards as transformers names them."""
    names = [f"pytorch_model-{n:05d}-of-{len(parts):05d}.bin" for n in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        saved(folder / name, part, legacy=legacy)
    if index:
        weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        total = sum(tensor.nbytes for part in parts for tensor in part.values())
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    return folder


def torch_samples(folder: Path, model: Model) -> Samples:
    """Both formats of `torch.save`, one file and several."""
    hf, meta = model.huggingface_weights, model.weights
    samples = {}
    for name, legacy in (("zip", False), ("legacy", True)):
        here = folder / name
        one = with_settings(saved(here / "one/pytorch_model.bin", hf, legacy=legacy), model.huggingface)
        indexed = write_bins(here / "indexed", split(hf, 3), index=True, legacy=legacy)
        several = write_bins(here / "several", split(hf, 2), index=False, legacy=legacy)
        file = saved(here / "file/model.pt", OrderedDict(meta), legacy=legacy)
        saved(here / "parts/part-1.pth", split(meta, 2)[0], legacy=legacy)
        saved(here / "parts/part-2.pth", split(meta, 2)[1], legacy=not legacy)
        samples |= {
            f"{name} bin": Sample(one, model, legacy=legacy),
            f"{name} indexed": Sample(with_settings(indexed, model.huggingface), model, legacy=legacy),
            f"{name} not indexed": Sample(
                several, model, model.meta if legacy else model.huggingface, legacy=legacy
            ),
            f"{name} file": Sample(file, model, model.huggingface if legacy else model.meta, legacy=legacy),
            f"{name} parts": Sample(with_settings(here / "parts", model.meta), model, legacy=True),
        }
    return samples


# State dicts of wrapped models, and training checkpoints.

WRAPPED = 'Using the state dict under "{}"; other entries are skipped.'
REMOVED = "Removed {} from the names of tensors."


def wrapped_samples(folder: Path, model: Model) -> Samples:
    hf, meta, tune = model.huggingface_weights, model.weights, torchtune(model.weights)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(5.0)}}, "param_groups": []}
    training = {"optimizer": optimizer, "step": 3, "args": {"lr": 1e-4, "betas": (0.9, 0.95)}}
    constants = {"freqs_cis": freqs_cis(model.shape), "rope.freqs": torch.ones(8)}
    inverse = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in range(2)}
    fsdp = {
        name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."): tensor
        for name, tensor in prefixed("_fsdp_wrapped_module.", meta).items()
    }
    contents: dict[str, tuple[Any, str | None]] = {
        "model": ({"model": meta, **training}, WRAPPED.format("model")),
        "state_dict": ({"epoch": 1, "state_dict": hf, **training}, WRAPPED.format("state_dict")),
        "deepspeed": ({"module": hf, **training}, WRAPPED.format("module")),
        "two wrappers": ({"state_dict": {"model": tune}}, WRAPPED.format("state_dict.model")),
        "module.": (prefixed("module.", hf), REMOVED.format('"module."')),
        "_orig_mod.": (prefixed("_orig_mod.", meta), REMOVED.format('"_orig_mod."')),
        "fsdp": (fsdp, REMOVED.format('"_fsdp_wrapped_module." and "_checkpoint_wrapped_module."')),
        "lightning": (
            {"state_dict": prefixed("model.", hf), "pytorch-lightning_version": "2.4"},
            WRAPPED.format("state_dict") + " " + REMOVED.format('"model."'),
        ),
        "compiled in ddp": (
            {"model": prefixed("module._orig_mod.", meta), **training},
            WRAPPED.format("model") + " " + REMOVED.format('"module." and "_orig_mod."'),
        ),
        "freqs": (meta | constants, None),
        "inv_freq": (hf | inverse, None),
    }
    samples = {}
    for number, (name, (content, note)) in enumerate(contents.items()):
        legacy = number % 3 == 2
        file = saved(folder / str(number) / "checkpoint.pt", content, legacy=legacy)
        settings = model.meta if number % 2 else model.huggingface
        path = with_settings(file, settings) if number % 4 < 2 else file.parent
        samples[name] = Sample(path, model, None if number % 4 < 2 else settings, note, legacy)
    return samples


# transformers.

SAVE_TRANSFORMERS = """
import torch
from pathlib import Path
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(source, torch_dtype="auto")
Path(out, "state").mkdir(parents=True)
torch.save(model.state_dict(), Path(out, "state", "pytorch_model.bin"))
result = ["state"]
for name, size in (("sharded", "60KB"), ("single", "10GB")):
    try:
        model.save_pretrained(Path(out, name), safe_serialization=False, max_shard_size=size)
    except (TypeError, ValueError):
        continue
    if list(Path(out, name).glob("*.bin")):
        result.append(name)
"""


def transformers_samples(folder: Path, model: Model, peer: Peer) -> Samples:
    """A state dict of a module, and the `.bin` files of `save_pretrained`, which 5.x no longer writes."""
    names = peer.run(SAVE_TRANSFORMERS, source=model.huggingface, out=folder)
    shutil.copy(model.huggingface / "config.json", folder / "state")
    for name in names:
        for file in model.huggingface.glob("*token*.json"):
            shutil.copy(file, folder / name)
    return {name: Sample(folder / name, model) for name in names}


# torch.distributed.checkpoint, FSDP and torchtune, each written in separate processes.


def run_writer(module: str, *arguments: Any, peers: tuple[str, ...] = ()) -> None:
    """Run a module of the tests that sees the packages of some peers."""
    folders = [ROOT / ".peers" / peer for peer in peers]
    for place in folders:
        assert place.is_dir(), f"{place} is missing: run `make .peers/ready`"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *folders])),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def shard_dims(state: State) -> dict[str, int | None]:
    """How tensor parallelism shards: no vectors, dim 1 of the output projections, dim 0 of all others."""
    second = ("wo.", "w2.", "o_proj.", "output_proj.", "down_proj.")
    return {
        name: None if tensor.ndim == 1 else int(any(part in name for part in second))
        for name, tensor in state.items()
    }


def dcp_samples(folder: Path, model: Model) -> Samples:
    """Of 1, 2 and 3 ranks, under the names of llama-cookbook, torchtitan and torchtune."""
    states = {
        "cookbook": model.huggingface_weights,
        "titan": model.weights,
        "torchtune": torchtune(model.weights),
    }
    folder.mkdir(parents=True)
    torch.save({"states": states, "freqs_cis": freqs_cis(model.shape)}, folder / "states.pt")
    run_writer("tests.dcp_models", folder)
    settings = (model.meta, model.huggingface)
    return {
        f"{name} {ranks}": Sample(
            folder / f"{name}-{ranks}",
            model,
            settings[(number + ranks) % 2],
            None if name == "titan" else WRAPPED.format("model"),
        )
        for number, name in enumerate(states)
        for ranks in RANKS
    }


def fsdp_samples(folder: Path, model: Model) -> Samples:
    """What accelerate saves of a model of transformers, sharded and whole, with either FSDP."""
    run_writer("tests.fsdp_models", model.huggingface, folder, peers=("uses/site-packages", "transformers-5"))
    for place in folder.iterdir():
        if place.is_dir():
            saved(place / "training_args.bin", Namespace(lr=1e-4))
            saved(place / "scheduler.pt", {"last_epoch": 3})
            saved(place / "rng_state_0.pth", {"cpu": torch.get_rng_state()})
            (place / "trainer_state.json").write_text("{}")
    sharded = {
        f"sharded {version}": Sample(
            folder / f"sharded-{version}/pytorch_model_fsdp_0", model, settings, WRAPPED.format("model")
        )
        for version, settings in ((1, model.meta), (2, model.huggingface))
    }
    return sharded | {"whole 2": Sample(folder / "whole-2", model, model.huggingface)}


def torchtune_samples(folder: Path, model: Model, version: str) -> Samples:
    """What the checkpointers of a version of torchtune write, with the state of the recipe and adapters."""
    run_writer(
        "tests.torchtune_models", model.huggingface, model.meta, folder, peers=(f"torchtune-{version}",)
    )
    samples = {}
    for place in sorted(folder.iterdir()):
        name = place.name
        settings = model.meta if name in ("meta", "torchtune") else model.huggingface
        epochs = [*place.glob("epoch_0"), *place.glob("dist_epoch_0")]
        path = epochs[0] if epochs else place
        has_settings = any((path / file).exists() for file in ("tokenizer.json", "tokenizer.model"))
        note = WRAPPED.format("model") if name == "distributed" else None
        samples[name] = Sample(path, model, None if has_settings else settings, note)
    return samples


# 405B.


def hub_samples(folder: Path, model: Model) -> Samples:
    """405B as the Hub has it: a folder of files for each rank, and 8 KV heads, which 16 ranks replicate."""
    samples = {}
    for ranks in (8, 16):
        shape = model.shape.but(
            n_heads=16, n_kv_heads=8, ffn_dim=256, ranks=ranks, kv_repeats=ranks // 8, embedding_cut=0
        )
        original = folder / f"mp{ranks}" / "Llama-3.1-405B/original" / f"mp{ranks}"
        whole = Model(shape, original, original)
        for number, rank in enumerate(synthetic.cut(shape, whole.weights)):
            for part, content in enumerate(split(rank, 2), 1):
                name = f"consolidated.{number:02d}/consolidated-{part:05d}-of-00002.pth"
                saved(original / name, content)
        (original / "params.json").write_text(json.dumps(synthetic.params(shape)))
        shutil.copy(model.meta / "tokenizer.model", original)
        samples[f"mp{ranks}"] = Sample(original.parent.parent, whole)
    return samples
