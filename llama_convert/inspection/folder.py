"""The files of a checkpoint's folder, and what each is for."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

from llama_convert.checkpoints.checklist import CHECKLIST
from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.stored_weight import storages_without_crc
from llama_convert.inspection.opened import Opened, weight_files
from llama_convert.inspection.records import File

_ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "meta": {
        "settings": ("params.json",),
        "tokenizer": ("tokenizer.model", "tokenizer.py"),
    },
    "huggingface": {
        "settings": ("config.json", "generation_config.json", "*.safetensors.index.json"),
        "tokenizer": (
            "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.json",
            "merges.txt",
        ),
    },
}  # fmt: skip
_EITHER = {
    "checksums": (CHECKLIST, MANIFEST, "*.sha256", "*.md5", "tokenizer_checklist.chk"),
    "text": ("README*", "LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*", "Notice*", "*.md", ".git*"),
}


def files_of(opened: Opened) -> tuple[File, ...]:
    """Every file, the ones that hold tensors first; of a single file, itself."""
    holders: Counter[str] = Counter()
    for entry in opened.entries:
        holders.update(file.name for file in entry.files)
    if opened.single_file:
        size = opened.path.stat().st_size
        return (File(opened.path.name, size, "weights", holders[opened.path.name]),)
    if isinstance(opened.side.checkpoint, MetaCheckpoint):  # its ranks were found alike
        holders = Counter(
            {file.name: len(opened.entries) for file in opened.side.checkpoint.folder.rank_files}
        )
    weights = {file.name for file in weight_files(opened.folder, opened.layout)}
    present = sorted(entry for entry in opened.folder.iterdir() if entry.is_file())
    tokenizer = opened.side.tokenizer
    if tokenizer and tokenizer.parent.resolve() != opened.folder.resolve():
        present.append(tokenizer)
    files = [
        File(
            _name(file, opened.folder),
            file.stat().st_size,
            "weights" if file.name in weights else _role(file.name, opened.layout),
            holders.get(file.name),
        )
        for file in present
    ]
    return tuple(sorted(files, key=lambda file: file.role != "weights"))


def _name(file: Path, folder: Path) -> str:
    return file.name if file.parent == folder else f"../{file.name}"


def _role(name: str, layout: str) -> str:
    for role, patterns in (_ROLES[layout] | _EITHER).items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return role
    return "other"


def checksums_of(opened: Opened) -> tuple[str, ...]:
    """What the files carry to be checked by."""
    found = []
    if (
        opened.layout == "meta"
        and opened.entries
        and not storages_without_crc(entry.stored for entry in opened.entries)
    ):
        found.append("CRC-32s in the files")
    if not opened.single_file:
        found += [name for name in (CHECKLIST, MANIFEST) if (opened.folder / name).is_file()]
    return tuple(found)
