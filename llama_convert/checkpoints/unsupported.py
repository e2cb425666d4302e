"""Detection of unsupported content: what a folder or file contains instead of a readable checkpoint."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llama_convert.checkpoints.folders import ADAPTER_FILE
from llama_convert.checkpoints.json_object import read_json_object
from llama_convert.errors import LlamaConvertError
from llama_convert.formats.file_kinds import HEAD_SIZE, LEGACY_TORCH, SAFETENSORS, TORCH, Kind, kind_of
from llama_convert.formats.files import read_at, reading
from llama_convert.formats.torch_reader import read_torch_file
from llama_convert.llama.weights import parse_huggingface_name, parse_meta_name
from llama_convert.text import is_printable_name, listed

_MAX_FILES = 200
_TEXT_SUFFIXES = (
    ".json", ".md", ".txt", ".model", ".jinja", ".chk", ".py", ".yaml", ".yml", ".aria2"
)  # fmt: skip
_BIN = re.compile(r"pytorch_model.*\.bin")
_RANK_FOLDER = re.compile(r"consolidated\.\d+")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

# Statements of Python programs in hints.
_SAVE_MODEL = (
    "from transformers import AutoModelForCausalLM as M",
    'M.from_pretrained({source}, torch_dtype="auto").save_pretrained({target})',
)
_MERGE = (
    "from peft import AutoPeftModelForCausalLM as M",
    'M.from_pretrained({source}, torch_dtype="auto").merge_and_unload().save_pretrained({target})',
)
_SAVE_TOKENIZER = (
    "from transformers import AutoTokenizer as T",
    "T.from_pretrained({tokenizer}).save_pretrained({target})",
)
_SAVE_SAFETENSORS = (
    "import torch",
    "from safetensors.torch import save_file",
    "save_file({{n: t.clone().contiguous() for f in {files} "
    'for n, t in torch.load(f, map_location="cpu").items()}}, {target}, {{"format": "pt"}})',
)
_JOIN_RANKS = (
    "import torch",
    "from pathlib import Path",
    '[torch.save({{n: t for f in d.glob("*.pth") for n, t in torch.load(f).items()}}, f"{{d}}.pth") '
    'for d in Path({folder}).glob("consolidated.*") if d.is_dir()]',
)


@dataclass(frozen=True)
class Unsupported:
    """Content that is not a readable checkpoint."""

    what: str
    """With an article, for example ``a GGUF file (llama.cpp)``."""
    hint: str
    """How to convert it."""


def unsupported_content(folder: Path) -> Unsupported | None:
    """What a folder contains instead of a checkpoint; None if unknown.

    Raises:
        OSError: the folder cannot be listed.
    """
    entries = sorted(folder.iterdir())
    for detect in (_adapter, _distributed, _rank_folders, _files):
        if found := detect(folder, entries):
            return found
    return None


def unsupported_file(file: Path) -> Unsupported | None:
    """What a file that was passed instead of a folder is; None if unknown."""
    kind = _kind(file)
    if kind in (TORCH, LEGACY_TORCH):
        return _torch_files(file.parent, [file])
    return Unsupported(kind.name, kind.hint) if kind and kind != SAFETENSORS else None


def _kind(file: Path) -> Kind | None:
    try:
        with reading(file) as reader:
            return kind_of(read_at(reader, HEAD_SIZE, 0))
    except LlamaConvertError:
        return None


def _python_command(program: Sequence[str], **paths: object) -> str:
    """A command that runs Python statements with these paths inserted as string literals."""
    literals = {name: _literal(path) for name, path in paths.items()}
    return shlex.join(["python", "-c", "; ".join(program).format(**literals)])


def _literal(path: object) -> str:
    if isinstance(path, list):
        return f"[{', '.join(map(_literal, path))}]"
    return json.dumps(str(path), ensure_ascii=False)


def _adapter(folder: Path, entries: list[Path]) -> Unsupported | None:
    names = [entry.name for entry in entries]
    weights = next((name for name in names if ADAPTER_FILE.fullmatch(name)), None)
    if weights is None and "adapter_config.json" not in names:
        return None
    what = f"a LoRA adapter ({weights or 'adapter_config.json'}), not a whole model"
    hint = "Merge it into its base model first."
    if not weights or "adapter_config.json" not in names:
        return Unsupported(what, hint)
    program: tuple[str, ...] = _MERGE
    tokenizer = folder if any(name in names for name in _TOKENIZERS) else _base_model(folder)
    if tokenizer:
        program += _SAVE_TOKENIZER
    command = _python_command(program, source=folder, target=f"{folder}-merged", tokenizer=tokenizer)
    return Unsupported(what, f"{hint} Run: {command}")


def _base_model(folder: Path) -> str | None:
    """Name or path of the base model of an adapter."""
    try:
        settings = read_json_object(folder / "adapter_config.json", "CONFIG").content
    except LlamaConvertError:
        return None
    base = settings.get("base_model_name_or_path")
    return base if isinstance(base, str) and is_printable_name(base) else None


def _distributed(folder: Path, entries: list[Path]) -> Unsupported | None:
    if not any(entry.suffix == ".distcp" for entry in entries):
        return None
    what = "a distributed checkpoint (torch.distributed.checkpoint)"
    if not (folder / ".metadata").is_file():
        return Unsupported(f"{what} without its .metadata", "Copy its .metadata file, which is saved last.")
    module = "torch.distributed.checkpoint.format_utils"
    command = shlex.join(["python", "-m", module, "dcp_to_torch", str(folder), f"{folder}.pt"])
    return Unsupported(what, f"Convert it to one file first. Run: {command}")


def _rank_folders(folder: Path, entries: list[Path]) -> Unsupported | None:
    ranks = [entry for entry in entries if _RANK_FOLDER.fullmatch(entry.name) and entry.is_dir()]
    ranks = [rank for rank in ranks if any(rank.glob("*.pth"))]
    if not ranks:
        return None
    command = _python_command(_JOIN_RANKS, folder=folder)
    what = f"{len(ranks)} rank folders ({ranks[0].name}, ...) instead of one file per rank"
    return Unsupported(what, f"Merge the files of each rank. Run: {command}")


def _files(folder: Path, entries: list[Path]) -> Unsupported | None:
    """The kind of the first file that is not text; PyTorch files before others."""
    candidates = (
        entry
        for entry in entries
        if entry.suffix not in _TEXT_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )
    kinds = {entry: kind for entry in islice(candidates, _MAX_FILES) if (kind := _kind(entry))}
    torch_files = [entry for entry, kind in kinds.items() if kind in (TORCH, LEGACY_TORCH)]
    if torch_files:
        return _torch_files(folder, torch_files)
    for entry, kind in kinds.items():
        if kind != SAFETENSORS:
            return Unsupported(f"{kind.name}: {entry.name}", kind.hint)
    return None


def _torch_files(folder: Path, files: list[Path]) -> Unsupported:
    """PyTorch files, by the names of their tensors."""
    names = listed((file.name for file in files), limit=1)
    if all(_BIN.fullmatch(file.name) for file in files) and (folder / "config.json").is_file():
        what = f"PyTorch weights in Hugging Face format ({names}), not safetensors"
        has_tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
        program = _SAVE_MODEL + (_SAVE_TOKENIZER if has_tokenizer else ())
        command = _python_command(program, source=folder, target=f"{folder}-safetensors", tokenizer=folder)
        return Unsupported(what, f"Save the model as safetensors. Run: {command}")
    try:
        tensors = list(read_torch_file(files[0]))
    except LlamaConvertError as error:
        reason = f"{error.tensor}: {error.message}" if error.tensor else error.message
        what = f"a PyTorch file ({names}) that is not a state dict of Llama ({reason.removesuffix('.')})"
        return Unsupported(what, error.hint or "Save only the tensors of the model with torch.save.")
    if any(map(parse_huggingface_name, tensors)):
        what = f"a PyTorch file ({names}) with Hugging Face tensor names"
        command = _python_command(_SAVE_SAFETENSORS, files=files, target=folder / "model.safetensors")
        has_config = (folder / "config.json").is_file()
        config_hint = "" if has_config else "Add the config.json of the model to the folder. "
        return Unsupported(what, f"{config_hint}Save it as safetensors. Run: {command}")
    if any(map(parse_meta_name, tensors)):
        what = f"a PyTorch file ({names}) with Meta tensor names"
        return Unsupported(what, _rename_hint(folder, files))
    what = f"a PyTorch file ({names}) without Llama tensors (the first is {tensors[0]!r:.60})"
    hint = "Rename the tensors like those in Meta or Hugging Face format, and save them with torch.save."
    return Unsupported(what, hint)


def _rename_hint(folder: Path, files: list[Path]) -> str:
    params = "" if (folder / "params.json").is_file() else " and add the params.json of the model"
    if len(files) == 1:
        return f"Rename {files[0].name} to consolidated.00.pth{params}."
    return f"Rename the files to consolidated.00.pth, consolidated.01.pth, ... in the order of ranks{params}."
