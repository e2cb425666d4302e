"""Files of a checkpoint's folder with their roles, and the checksums that they contain."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase

from llama_convert.checkpoints.checklist import CHECKLIST
from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.stored_weight import storages_without_crc
from llama_convert.inspection.opened import Opened, weight_files
from llama_convert.inspection.records import File
from llama_convert.text import natural_key

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
_ROLES_IN_BOTH = {
    "checksums": (CHECKLIST, MANIFEST, "*.sha256", "*.md5", "tokenizer_checklist.chk"),
    "text": ("README*", "LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*", "Notice*", "*.md", ".git*"),
}


def list_files(opened: Opened) -> tuple[File, ...]:
    """Files of the folder in natural order, weight files first; for a single file, only that file."""
    tensor_counts: Counter[str] = Counter()
    for entry in opened.entries:
        tensor_counts.update(file.name for file in entry.files)
    if opened.single_file:
        size = opened.path.stat().st_size
        return (File(opened.path.name, size, "weights", tensor_counts[opened.path.name]),)
    if isinstance(
        opened.input.checkpoint, MetaCheckpoint
    ):  # opening has checked that all ranks have the same
        tensor_counts = Counter(
            {file.name: len(opened.entries) for file in opened.input.checkpoint.folder.rank_files}
        )
    weights = {file.name for file in weight_files(opened.folder, opened.format)}
    present = sorted(
        (entry for entry in opened.folder.iterdir() if entry.is_file()), key=lambda f: natural_key(f.name)
    )
    tokenizer = opened.input.tokenizer
    if tokenizer and tokenizer.parent.resolve() != opened.folder.resolve():
        present.append(tokenizer)
    files = [
        File(
            file.name if file.parent == opened.folder else f"../{file.name}",
            file.stat().st_size,
            "weights" if file.name in weights else _role(file.name, opened.format),
            tensor_counts.get(file.name),
        )
        for file in present
    ]
    return tuple(sorted(files, key=lambda file: file.role != "weights"))


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
        found.append("CRC-32 in each .pth file")
    if not opened.single_file:
        found += [name for name in (CHECKLIST, MANIFEST) if (opened.folder / name).is_file()]
    return tuple(found)
