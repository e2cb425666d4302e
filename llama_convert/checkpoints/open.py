"""A checkpoint in either layout."""

from __future__ import annotations

from pathlib import Path

from llama_convert.checkpoints.folders import is_huggingface
from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint, open_huggingface
from llama_convert.checkpoints.locate import locate
from llama_convert.checkpoints.meta import MetaCheckpoint, open_meta

Checkpoint = MetaCheckpoint | HuggingFaceCheckpoint


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, whichever format it has.

    Raises:
        InputError: there is none, or it is damaged.
    """
    return open_huggingface(folder) if is_huggingface(folder) else open_meta(locate(folder))
