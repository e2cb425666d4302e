"""Preparation of `convert`: from any format that is read to either format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.meta_folder import MetaFolder
from llama_convert.checkpoints.source import HuggingFaceFolder, find_checkpoint
from llama_convert.conversion.job import Job
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.options import ConvertOptions, parse_format
from llama_convert.conversion.reshard import huggingface_to_huggingface, meta_to_meta
from llama_convert.conversion.to_huggingface import TOKENIZER_ONLY, meta_to_huggingface, tokenizer_job
from llama_convert.conversion.to_meta import huggingface_to_meta
from llama_convert.llama.weights import CheckpointFormat

_JOBS: dict[tuple[type, CheckpointFormat], Callable[[Any, Path, Path, ConvertOptions, Messages], Job]] = {
    (MetaFolder, "huggingface"): meta_to_huggingface,
    (MetaFolder, "meta"): meta_to_meta,
    (HuggingFaceFolder, "huggingface"): huggingface_to_huggingface,
    (HuggingFaceFolder, "meta"): huggingface_to_meta,
}
"""How a job is prepared, by the kind of settings of the source and the format of the output."""


def convert_job(source: Path, destination: Path, options: ConvertOptions, messages: Messages) -> Job:
    """Return the job that converts a checkpoint.

    If the source has both formats, as a download from the Hub with ``original/``, the other format than the
    output's is read.

    Raises:
        UsageError: an option is invalid, or has no effect on this source.
        InputError: the source is missing, damaged, inconsistent or unsupported.
    """
    target = parse_format(options.to)
    if target == "huggingface" and options.model_size == TOKENIZER_ONLY:
        return tokenizer_job(source, destination, options, messages)
    found = find_checkpoint(
        source,
        prefer="meta" if target == "huggingface" else "huggingface",
        config_from=options.config_from,
        model_size=options.model_size,
        output=destination,
    )
    if found.path != source and source.is_dir():
        messages.detail(f"Found the checkpoint in {found.path}.")
    return _JOBS[type(found), target](found, source, destination, options, messages)
