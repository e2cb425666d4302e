"""What a folder or file that is no readable checkpoint holds, and what to do with it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llama_convert.checkpoints.folders import ADAPTER_FILE
from llama_convert.checkpoints.json_object import read_json_object
from llama_convert.errors import LlamaConvertError
from llama_convert.formats.files import (
    HEAD_SIZE,
    LEGACY_TORCH,
    SAFETENSORS,
    TORCH,
    Kind,
    is_plain,
    kind_of,
    read_at,
    reading,
)
from llama_convert.formats.torch_zip import read_torch_file
from llama_convert.llama.weights import parse_huggingface_name, parse_meta_name

_MOST_FILES = 200
_TEXTS = (".json", ".md", ".txt", ".model", ".jinja", ".chk", ".py", ".yaml", ".yml", ".aria2")
_BIN = re.compile(r"pytorch_model.*\.bin")
_RANK_FOLDER = re.compile(r"consolidated\.\d+")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

_SAVE_MODEL = (
    "from transformers import AutoModelForCausalLM as M; "
    'M.from_pretrained({source}, torch_dtype="auto").save_pretrained({target})'
)
_MERGE = (
    "from peft import AutoPeftModelForCausalLM as M; "
    'M.from_pretrained({source}, torch_dtype="auto").merge_and_unload().save_pretrained({target})'
)
_SAVE_TOKENIZER = (
    "; from transformers import AutoTokenizer as T; T.from_pretrained({tokenizer}).save_pretrained({target})"
)
_SAVE_SAFETENSORS = (
    "import torch; from safetensors.torch import save_file; "
    "save_file({{n: t.clone().contiguous() for f in {files} "
    'for n, t in torch.load(f, map_location="cpu").items()}}, {target}, {{"format": "pt"}})'
)
_JOIN_RANKS = (
    "import torch; from pathlib import Path; "
    '[torch.save({{n: t for f in d.glob("*.pth") for n, t in torch.load(f).items()}}, f"{{d}}.pth") '
    'for d in Path({folder}).glob("consolidated.*") if d.is_dir()]'
)


@dataclass(frozen=True)
class Content:
    """What there is, as the end of a sentence that begins with "holds", and what to do."""

    what: str
    hint: str


def content_of(folder: Path) -> Content | None:
    """What a folder holds instead of a checkpoint; None if its files do not tell.

    Raises:
        OSError: it cannot be listed.
    """
    entries = sorted(folder.iterdir())
    for look in (_adapter, _distributed, _rank_folders, _files):
        if found := look(folder, entries):
            return found
    return None


def content_of_file(file: Path) -> Content | None:
    """What a file holds that was named instead of a folder; None if it does not tell."""
    kind = _kind(file)
    if kind in (TORCH, LEGACY_TORCH):
        return _torch_files(file.parent, [file])
    return Content(kind.name, kind.hint) if kind and kind != SAFETENSORS else None


def _kind(file: Path) -> Kind | None:
    try:
        with reading(file) as reader:
            return kind_of(read_at(reader, HEAD_SIZE, 0))
    except LlamaConvertError:
        return None


def _python(code: str, **places: object) -> str:
    """A command line that runs code, with paths in it as Python strings."""
    return shlex.join(["python", "-c", code.format(**{name: _literal(at) for name, at in places.items()})])


def _literal(place: object) -> str:
    if isinstance(place, list):
        return f"[{', '.join(map(_literal, place))}]"
    return json.dumps(str(place), ensure_ascii=False)


def _adapter(folder: Path, entries: list[Path]) -> Content | None:
    names = [entry.name for entry in entries]
    weights = next((name for name in names if ADAPTER_FILE.fullmatch(name)), None)
    if weights is None and "adapter_config.json" not in names:
        return None
    what = f"a LoRA adapter ({weights or 'adapter_config.json'}), not a whole model"
    hint = "Merge it into its base model first."
    if not weights or "adapter_config.json" not in names:
        return Content(what, hint)
    code, tokenizer = _MERGE, folder if any(name in names for name in _TOKENIZERS) else _base_model(folder)
    if tokenizer:
        code += _SAVE_TOKENIZER
    command = _python(code, source=folder, target=f"{folder}-merged", tokenizer=tokenizer)
    return Content(what, f"{hint} Run: {command}")


def _base_model(folder: Path) -> str | None:
    """The name or path of the model that an adapter is for."""
    try:
        settings = read_json_object(folder / "adapter_config.json", "CONFIG", belongs="").content
    except LlamaConvertError:
        return None
    base = settings.get("base_model_name_or_path")
    return base if isinstance(base, str) and is_plain(base) else None


def _distributed(folder: Path, entries: list[Path]) -> Content | None:
    if not any(entry.suffix == ".distcp" for entry in entries):
        return None
    what = "a distributed checkpoint (torch.distributed.checkpoint)"
    if not (folder / ".metadata").is_file():
        return Content(f"{what} without its .metadata", "Copy the .metadata file, which is saved last.")
    module = "torch.distributed.checkpoint.format_utils"
    command = shlex.join(["python", "-m", module, "dcp_to_torch", str(folder), f"{folder}.pt"])
    return Content(what, f"Convert it to one file first. Run: {command}")


def _rank_folders(folder: Path, entries: list[Path]) -> Content | None:
    ranks = [entry for entry in entries if _RANK_FOLDER.fullmatch(entry.name) and entry.is_dir()]
    ranks = [rank for rank in ranks if any(rank.glob("*.pth"))]
    if not ranks:
        return None
    command = _python(_JOIN_RANKS, folder=folder)
    what = f"{len(ranks)} rank folders ({ranks[0].name}, ...); expected one file for each rank"
    return Content(what, f"Join the files of each rank. Run: {command}")


def _files(folder: Path, entries: list[Path]) -> Content | None:
    """What the first file says that is no text; PyTorch files before all others."""
    candidates = (
        entry
        for entry in entries
        if entry.suffix not in _TEXTS and not entry.name.startswith(".") and entry.is_file()
    )
    kinds = {entry: kind for entry in islice(candidates, _MOST_FILES) if (kind := _kind(entry))}
    torch_files = [entry for entry, kind in kinds.items() if kind in (TORCH, LEGACY_TORCH)]
    if torch_files:
        return _torch_files(folder, torch_files)
    for entry, kind in kinds.items():
        if kind != SAFETENSORS:
            return Content(f"{entry.name}: {kind.name}", kind.hint)
    return None


def _torch_files(folder: Path, files: list[Path]) -> Content:
    """PyTorch files: who wrote them, by the names of their tensors."""
    first = files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    if all(_BIN.fullmatch(file.name) for file in files) and (folder / "config.json").is_file():
        what = f"PyTorch weights of Hugging Face's format ({first}), not safetensors"
        has_tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
        code = _SAVE_MODEL + (_SAVE_TOKENIZER if has_tokenizer else "")
        command = _python(code, source=folder, target=f"{folder}-safetensors", tokenizer=folder)
        return Content(what, f"Save the model as safetensors. Run: {command}")
    try:
        names = list(read_torch_file(files[0]))
    except LlamaConvertError as error:
        reason = f"{error.tensor}: {error.message}" if error.tensor else error.message
        what = f"a PyTorch file ({first}) that is not a Llama's state dict: {reason}"
        return Content(what, error.hint or "Save the tensors of the model alone with torch.save.")
    if any(map(parse_huggingface_name, names)):
        what = f"a state dict with Hugging Face's names in a PyTorch file ({first})"
        command = _python(_SAVE_SAFETENSORS, files=files, target=folder / "model.safetensors")
        with_config = (
            "" if (folder / "config.json").is_file() else "Add the model's config.json to the folder. "
        )
        return Content(what, f"{with_config}Save it as safetensors. Run: {command}")
    if any(map(parse_meta_name, names)):
        what = f"a state dict with Meta's names in a PyTorch file ({first})"
        return Content(what, _rename(folder, files))
    what = (
        f"a PyTorch file ({first}) whose tensors do not have a Llama's names (the first is {names[0]!r:.60})"
    )
    return Content(
        what, "Rename the tensors as Meta or Hugging Face names them, and save them with torch.save."
    )


def _rename(folder: Path, files: list[Path]) -> str:
    params = "" if (folder / "params.json").is_file() else " and add the model's params.json"
    if len(files) == 1:
        return f"Rename {files[0].name} to consolidated.00.pth{params}."
    return f"Rename the files to consolidated.00.pth, consolidated.01.pth, ... in order of rank{params}."
