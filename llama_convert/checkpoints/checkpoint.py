"""A checkpoint in either format."""

from __future__ import annotations

from pathlib import Path

from llama_convert.checkpoints.folders import is_huggingface
from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint, open_huggingface
from llama_convert.checkpoints.meta import MetaCheckpoint, open_meta
from llama_convert.checkpoints.meta_folder import find_meta_folder

Checkpoint = MetaCheckpoint | HuggingFaceCheckpoint


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of the checkpoint in a folder.

    Raises:
        InputError: there is no checkpoint, or it is damaged.
    """
    return open_huggingface(folder) if is_huggingface(folder) else open_meta(find_meta_folder(folder))
