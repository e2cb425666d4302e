"""A checkpoint in either layout."""

from __future__ import annotations

from pathlib import Path

from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.shards import INDEX_FILE

Checkpoint = MetaCheckpoint | HuggingFaceCheckpoint


def is_huggingface(folder: Path) -> bool:
    """Whether a folder holds safetensors, or says that it should."""
    return (folder / INDEX_FILE).exists() or any(folder.glob("*.safetensors"))
