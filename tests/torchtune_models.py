"""Saves a model with torchtune's checkpointers: `python -m tests.torchtune_models HUGGINGFACE META OUT`.

Needs torchtune on the path, but nothing that it requires for training: those packages are replaced by stubs,
because the checkpointers use only torch and safetensors.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

import torch

STUBS = {
    "PIL", "blobfile", "datasets", "kagglehub", "omegaconf", "psutil", "sentencepiece", "tiktoken", "torchao",
    "torchdata", "torchvision", "tqdm",
}  # fmt: skip
PLACES = ("torchtune.training.checkpointing._checkpointer", "torchtune.utils._checkpointing")


class Stub(ModuleType):
    """A module with every function and class."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].islower():
            return MagicMock()
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})


class Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in STUBS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def version(package: str) -> str:
    """Of the stub of torchao, which torchtune looks up."""
    if package == "torchao-nightly":
        raise importlib.metadata.PackageNotFoundError(package)
    return "0.7.0"


def import_checkpointers() -> Any:
    sys.meta_path.append(Finder())
    with patch.object(importlib.metadata, "version", version):
        for place in PLACES:
            try:
                return importlib.import_module(place)
            except ModuleNotFoundError:
                continue
    raise ModuleNotFoundError(PLACES[0])


def recipe_state() -> dict[str, Any]:
    """What a recipe saves next to the model in the middle of a training."""
    state = {0: {"exp_avg": torch.zeros(4, 4), "step": torch.tensor(3.0)}}
    return {"optimizer": {"state": state, "param_groups": [{"lr": 1e-4}]}, "seed": 0, "epochs_run": 1}


def adapters(model: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The LoRA matrices that are merged in the model already."""
    name = "layers.0.attn.q_proj"
    rows, columns = model[f"{name}.weight"].shape
    matrices = {f"{name}.lora_a.weight": torch.ones(2, columns), f"{name}.lora_b.weight": torch.ones(rows, 2)}
    config = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_type": "LORA"}
    return {"adapter": matrices, "adapter_config": config}


def main(huggingface: str, meta: str, out: Path) -> None:
    module = import_checkpointers()
    tune = out / "tune"
    tune.mkdir(parents=True)

    def open_one(kind: str, source: str, file: str, name: str, **options: Any) -> Any:
        arguments = {"checkpoint_dir": source, "checkpoint_files": [file], "model_type": "LLAMA3"}
        return getattr(module, f"FullModel{kind}Checkpointer")(
            **arguments, output_dir=str(out / name), **options
        )

    formats: dict[str, tuple[Any, ...]] = {
        "hf-safetensors": ("HF", huggingface, "model.safetensors", True),
        "hf-bin": ("HF", huggingface, "model.safetensors", False),
        "meta": ("Meta", meta, "consolidated.00.pth", None),
    }
    for name, (kind, source, file, safe) in formats.items():
        options = {} if safe is None else {"safe_serialization": safe}
        checkpointer = open_one(kind, source, file, name, **options)
        model = checkpointer.load_checkpoint()["model"]
        if kind == "Meta":
            torch.save(model, tune / "tune.pt")
        extra = {} if kind == "Meta" else adapters(model)
        checkpointer.save_checkpoint(
            {"model": dict(model), **recipe_state(), **extra}, epoch=0, intermediate_checkpoint=True
        )
    checkpointer = open_one("TorchTune", str(tune), "tune.pt", "torchtune")
    checkpointer.save_checkpoint(
        {"model": dict(model), **recipe_state(), **adapters(model)}, epoch=0, intermediate_checkpoint=True
    )
    shutil.rmtree(tune)
    if hasattr(module, "DistributedCheckpointer"):
        checkpointer = module.DistributedCheckpointer(huggingface, str(out / "distributed"))
        checkpointer.save_checkpoint({"model": model, **recipe_state()}, epoch=0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
