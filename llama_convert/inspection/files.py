"""Files of a checkpoint's folder with their roles, and the checksums that they contain."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

from llama_convert.checkpoints.checklist import CHECKLIST
from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.stored_weight import storages_without_crc
from llama_convert.inspection.opened import Opened
from llama_convert.inspection.records import File
from llama_convert.text import natural_key

_ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "meta": {
        "settings": ("params.json", ".metadata"),
        "tokenizer": ("tokenizer.model", "tokenizer.py"),
    },
    "huggingface": {
        "settings": ("config.json", "generation_config.json", "*.index.json"),
        "tokenizer": (
            "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.json",
            "merges.txt",
        ),
    },
}  # fmt: skip
_ROLES_IN_BOTH = {
    "checksums": (CHECKLIST, MANIFEST, "*.sha256", "*.md5", "tokenizer_checklist.chk"),
    "text": ("README*", "LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*", "Notice*", "*.md", ".git*"),
}


def list_files(opened: Opened) -> tuple[File, ...]:
    """Files of the folder in natural order, weight files first; for a single file, only that file."""
    tensor_counts: Counter[Path] = Counter()
    for entry in opened.entries:
        tensor_counts.update(entry.files)
    if opened.single_file:
        size = opened.path.stat().st_size
        return (File(opened.path.name, size, "weights", tensor_counts[opened.path]),)
    if isinstance(
        opened.input.checkpoint, MetaCheckpoint
    ):  # opening has checked that all ranks have the same
        tensor_counts = Counter(
            tensor.file for rank in opened.input.checkpoint.ranks for tensor in rank.values()
        )
    weights = set(opened.weight_files)
    in_folders = [file for file in opened.weight_files if file.parent != opened.folder]
    present = [entry for entry in opened.folder.iterdir() if entry.is_file()] + in_folders
    present.sort(key=lambda file: natural_key(str(file)))
    tokenizer = opened.input.tokenizer
    if tokenizer and tokenizer.parent.resolve() != opened.folder.resolve():
        present.append(tokenizer)
    files = [
        File(
            _name(file, opened.folder),
            file.stat().st_size,
            "weights" if file in weights else _role(file.name, opened.format),
            tensor_counts.get(file),
        )
        for file in present
    ]
    return tuple(sorted(files, key=lambda file: file.role != "weights"))


def _name(file: Path, folder: Path) -> str:
    """Path of a file relative to the folder, or to the one around it."""
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else f"../{file.name}"


def _role(name: str, checkpoint_format: str) -> str:
    for role, patterns in (_ROLES[checkpoint_format] | _ROLES_IN_BOTH).items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return role
    return "other"


def list_checksums(opened: Opened) -> tuple[str, ...]:
    """Checksums that can be verified: the CRC-32s of ``.pth`` files, the checklist, the manifest."""
    found = []
    if (
        opened.format == "meta"
        and opened.entries
        and not storages_without_crc(entry.stored for entry in opened.entries)
    ):
        found.append(f"CRC-32 in each {opened.weight_files[0].suffix} file")
    if not opened.single_file:
        found += [name for name in (CHECKLIST, MANIFEST) if (opened.folder / name).is_file()]
    return tuple(found)
