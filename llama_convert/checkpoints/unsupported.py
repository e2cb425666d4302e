"""Content that is not supported: what a folder or file contains instead of a readable checkpoint."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from llama_convert.checkpoints.dcp import MEGATRON_HINT
from llama_convert.checkpoints.folders import ADAPTER_FILE, is_no_weights, torch_files
from llama_convert.checkpoints.json_object import read_json_object
from llama_convert.checkpoints.other_models import without_llama_weights
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats.file_kinds import HEAD_SIZE, LEGACY_TORCH, SAFETENSORS, TORCH, Kind, kind_of
from llama_convert.formats.files import read_at, reading
from llama_convert.formats.torch_reader import read_torch_file
from llama_convert.text import is_printable_name, listed

_MAX_FILES = 200
_TEXT_SUFFIXES = (
    ".json", ".md", ".txt", ".model", ".jinja", ".chk", ".py", ".yaml", ".yml", ".aria2"
)  # fmt: skip
_DEEPSPEED_FOLDER = re.compile(r"global_step\d+")
_DEEPSPEED_FILE = re.compile(r".*_(?:model|optim)_states\.pt")
_VERL_FILE = re.compile(r"model_world_size_\d+_rank_\d+\.pt")
_MEGATRON_RANK = re.compile(r"mp_rank_\d+(?:_\d+)*")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

# Statements of Python programs in hints.
_MERGE = (
    "from peft import AutoPeftModelForCausalLM as M",
    'M.from_pretrained({source}, torch_dtype="auto").merge_and_unload().save_pretrained({target})',
)
_SAVE_TOKENIZER = (
    "from transformers import AutoTokenizer as T",
    "T.from_pretrained({tokenizer}).save_pretrained({target})",
)


def unsupported_content(folder: Path) -> InputError | None:
    """The error for what a folder contains instead of a checkpoint; None if that is unknown.

    Raises:
        OSError: the folder cannot be listed.
    """
    entries = sorted(folder.iterdir())
    for detect in (_adapter, _deepspeed, _verl, _megatron, _torch_files, _other_files):
        if error := detect(folder, entries):
            return error
    return None


def unsupported_file(file: Path) -> InputError | None:
    """The error for what a file that was passed instead of a checkpoint is; None if that is unknown."""
    kind = _kind(file)
    if kind in (TORCH, LEGACY_TORCH):
        return _torch_file(file)
    if kind is None or kind == SAFETENSORS:
        return None
    message = f"Not a checkpoint but {kind.name}."
    return InputError("INPUT_NOT_FOUND", message, file=file, hint=kind.hint)


def _contains(folder: Path, what: str, hint: str) -> InputError:
    """The error for unsupported content, with an article: for example ``a GGUF file (llama.cpp)``."""
    return InputError("INPUT_NOT_FOUND", f"Contains {what}.", file=folder, hint=hint)


def _kind(file: Path) -> Kind | None:
    try:
        with reading(file) as reader:
            return kind_of(read_at(reader, HEAD_SIZE, 0))
    except LlamaConvertError:
        return None


def _python_command(program: Sequence[str], **paths: object) -> str:
    """A command that runs Python statements with these paths inserted as string literals."""
    literals = {name: json.dumps(str(path), ensure_ascii=False) for name, path in paths.items()}
    return shlex.join(["python", "-c", "; ".join(program).format(**literals)])


def _adapter(folder: Path, entries: list[Path]) -> InputError | None:
    names = [entry.name for entry in entries]
    weights = next((name for name in names if ADAPTER_FILE.fullmatch(name)), None)
    if weights is None and "adapter_config.json" not in names:
        return None
    what = f"a LoRA adapter ({weights or 'adapter_config.json'}), not a whole model"
    hint = "Merge it into its base model first."
    if not weights or "adapter_config.json" not in names:
        return _contains(folder, what, hint)
    program: tuple[str, ...] = _MERGE
    tokenizer = folder if any(name in names for name in _TOKENIZERS) else _base_model(folder)
    if tokenizer:
        program += _SAVE_TOKENIZER
    command = _python_command(program, source=folder, target=f"{folder}-merged", tokenizer=tokenizer)
    return _contains(folder, what, f"{hint} Run: {command}")


def _base_model(folder: Path) -> str | None:
    """Name or path of the base model of an adapter."""
    try:
        settings = read_json_object(folder / "adapter_config.json", "CONFIG").content
    except LlamaConvertError:
        return None
    base = settings.get("base_model_name_or_path")
    return base if isinstance(base, str) and is_printable_name(base) else None


def _deepspeed(folder: Path, entries: list[Path]) -> InputError | None:
    """DeepSpeed saves a folder for each step, and ``zero_to_fp32.py`` next to these folders."""
    steps = [entry for entry in entries if _DEEPSPEED_FOLDER.fullmatch(entry.name) and entry.is_dir()]
    shards = [entry.name for entry in entries if _DEEPSPEED_FILE.fullmatch(entry.name)]
    if not shards and not any(
        _DEEPSPEED_FILE.fullmatch(file.name) for step in steps for file in step.iterdir()
    ):
        return None
    what = f"a training checkpoint of DeepSpeed ({listed(shards or (step.name for step in steps), limit=1)})"
    root = folder.parent if shards else folder
    arguments = [root, f"{root}-fp32", *(["--tag", folder.name] if shards else [])]
    script = root / "zero_to_fp32.py"
    if not script.is_file():
        return _contains(
            folder, what, "Run zero_to_fp32.py, which DeepSpeed saves next to its folders global_step*."
        )
    command = shlex.join(map(str, ["python", script, *arguments]))
    return _contains(folder, what, f"Merge its shards first, then convert the output. Run: {command}")


def _verl(folder: Path, entries: list[Path]) -> InputError | None:
    """In verl, each rank saves a file in ``actor``; the settings are in ``actor/huggingface``."""
    actor = folder / "actor"
    for place in (folder, actor) if actor.is_dir() else (folder,):
        shards = [entry.name for entry in place.iterdir() if _VERL_FILE.fullmatch(entry.name)]
        if shards:
            arguments = ["--backend", "fsdp", "--local_dir", place, "--target_dir", f"{place}-merged"]
            command = shlex.join(map(str, ["python", "-m", "verl.model_merger", "merge", *arguments]))
            what = f"shards of verl ({listed(shards, limit=1)})"
            return _contains(folder, what, f"Merge them first. Run: {command}")
    return None


def _megatron(folder: Path, entries: list[Path]) -> InputError | None:
    names = [entry.name for entry in entries]
    ranks = [entry for entry in entries if _MEGATRON_RANK.fullmatch(entry.name) and entry.is_dir()]
    if "latest_checkpointed_iteration.txt" not in names and not any(
        (rank / "model_optim_rng.pt").exists() for rank in ranks
    ):
        return None
    return _contains(folder, "a checkpoint of Megatron, whose weights are fused and sharded", MEGATRON_HINT)


def _torch_files(folder: Path, entries: list[Path]) -> InputError | None:
    """Why the first PyTorch file that may contain weights is not read."""
    return next((_torch_file(file) for file in torch_files(folder)), None)


def _torch_file(file: Path) -> InputError:
    try:
        return without_llama_weights(read_torch_file(file), file)
    except InputError as error:
        return error


def _other_files(folder: Path, entries: list[Path]) -> InputError | None:
    """The kind of the first file that is not text."""
    candidates = (
        entry
        for entry in entries
        if entry.suffix not in _TEXT_SUFFIXES
        and not entry.name.startswith(".")
        and not is_no_weights(entry)
        and entry.is_file()
    )
    for entry in islice(candidates, _MAX_FILES):
        kind = _kind(entry)
        if kind is not None and kind != SAFETENSORS:
            return _contains(folder, f"{kind.name}: {entry.name}", kind.hint)
    return None
