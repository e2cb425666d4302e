"""A checkpoint in either layout."""

from __future__ import annotations

from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_convert.checkpoints.meta import MetaCheckpoint

Checkpoint = MetaCheckpoint | HuggingFaceCheckpoint
