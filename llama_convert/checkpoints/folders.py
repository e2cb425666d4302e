"""Detection of checkpoint folders by the names of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from llama_convert.checkpoints.shards import BIN, CONTAINERS
from llama_convert.formats.dcp_metadata import METADATA as DCP_METADATA
from llama_convert.text import natural_key

RANK_FILE = re.compile(r"consolidated(?:\.(\d+))?\.pth")
RANK_FOLDER = re.compile(r"consolidated\.(\d+)")
"""A folder with the files of one rank."""
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_NO_WEIGHTS = re.compile(
    r"(?:.*[_.-])?(?:optim(?:izer)?|scheduler|scaler|rng_state|random_states?|training_args|trainer_state"
    r"|recipe_state)(?:[_.-].*)?"
    r"|zero_pp_rank_\d+_.*"  # DeepSpeed ZeRO: shards of flattened weights
)
"""Names of files that training programs write next to the weights."""
ADAPTER_FILE = re.compile(r"adapter_model.*\.(?:safetensors|bin)")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
GENERIC_NAME = re.compile(r"original|mp\d+|\d+Bf?|snapshots|[0-9a-f]{40}")
"""Names of folders in a download or in the Hub cache that do not name the model; a parent folder does."""
_MAX_DEPTH = 5

FolderTest = Callable[[Path], bool]


def is_meta(folder: Path) -> bool:
    """Whether a folder is in Meta format: it has ``params.json`` or rank files."""
    return (folder / "params.json").exists() or has_rank_files(folder)


def has_rank_files(folder: Path) -> bool:
    """Whether a folder has rank files (``consolidated.NN.pth``), or a folder of files for each rank."""
    return any(
        RANK_FILE.fullmatch(entry.name) or (RANK_FOLDER.fullmatch(entry.name) and any(entry.glob("*.pth")))
        for entry in folder.iterdir()
    )


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is in Hugging Face format: index or files of a model, or config and PyTorch files."""
    names = (name for container in CONTAINERS for name in (container.single, container.index))
    if any(os.path.lexists(folder / name) for name in names):
        return True
    if any(not ADAPTER_FILE.fullmatch(file.name) for file in folder.glob("*.safetensors")):
        return True
    has_config = (folder / "config.json").exists()
    return any(
        not RANK_FILE.fullmatch(file.name) and (has_config or file.match(BIN.shards))
        for file in torch_files(folder)
    )


def is_dcp(folder: Path) -> bool:
    """Whether a folder has a checkpoint of torch.distributed.checkpoint (DCP), complete or not."""
    return (folder / DCP_METADATA).exists() or any(folder.glob("*.distcp"))


def is_no_weights(file: Path) -> bool:
    """Whether a training program writes such a file next to the weights, by its name."""
    return _NO_WEIGHTS.fullmatch(file.stem) is not None


def torch_files(folder: Path) -> list[Path]:
    """PyTorch files of a folder that may contain weights, by their names, in natural order."""
    if not folder.is_dir():
        return []
    files = [
        file
        for file in folder.iterdir()
        if file.suffix in _TORCH_SUFFIXES
        and not file.name.startswith(".")
        and not ADAPTER_FILE.fullmatch(file.name)
        and not is_no_weights(file)
        and file.is_file()
    ]
    return sorted(files, key=lambda file: natural_key(file.name))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has weights in Meta or Hugging Face format, or a distributed checkpoint of a model."""
    is_model = is_dcp(folder) and not is_no_weights(folder)  # the Trainer saves optimizer_0 next to the model
    return is_huggingface(folder) or has_rank_files(folder) or is_model


def safetensors_files(folder: Path) -> list[Path]:
    """Safetensors files of a folder that transformers does not read, for example those of torchtune 0.4.

    Not shards, because a folder of shards without their index is incomplete.
    """
    files = [file for file in folder.glob("*.safetensors") if not ADAPTER_FILE.fullmatch(file.name)]
    if any(_SHARD.fullmatch(file.name) for file in files):
        return []
    return sorted(files, key=lambda file: natural_key(file.name))


def folders_below(
    path: Path, test: FolderTest, *, levels: int = 1, max_depth: int = _MAX_DEPTH
) -> Iterator[Path]:
    """Checkpoint folders below a folder, in alphabetical order.  Does not search in checkpoint folders.

    Args:
        path: the folder to search.
        test: whether a folder is a checkpoint.
        levels: levels to search; folders with a `GENERIC_NAME` do not count.
        max_depth: levels to search regardless of names, because links may be circular.
    """
    with suppress(OSError):  # skip folders that cannot be listed
        for folder in sorted(path.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            if test(folder):
                yield folder
                continue
            left = levels if GENERIC_NAME.fullmatch(folder.name) else levels - 1
            if left and max_depth > 1:
                yield from folders_below(folder, test, levels=left, max_depth=max_depth - 1)
