"""``llama-convert.json``: checksums of what a conversion read and wrote, for later verification.

Checksums are XXH3-128 in hexadecimal: of the bytes of each weight, of each small file, of the header of each
safetensors file, and of the list of entries of each PyTorch file (see `read_torch_header`).  They detect
damage and mix-ups, but not forgery.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from llama_convert.checkpoints.json_object import read_json_object, to_json
from llama_convert.errors import InputError
from llama_convert.formats.file_kinds import HEAD_SIZE, LEGACY_TORCH, SAFETENSORS, TORCH, kind_of
from llama_convert.formats.files import is_file_name, read_at, reading
from llama_convert.formats.safetensors import read_header
from llama_convert.formats.strict_json import shown
from llama_convert.formats.torch_reader import read_torch_header
from llama_convert.text import is_printable_name

MANIFEST = "llama-convert.json"
CARD = "README.md"
"""The model card, which users may edit: its checksum in the manifest need not match."""
SCHEMA = 1
_MAX_BYTES = 4 << 20
_BLOCK = 1 << 20
_SEAL = "seal"
"""Key of the checksum of all other keys."""


def recorded_files(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Records of the files in a manifest that must not change: all but the model card."""
    return {name: record for name, record in manifest.get("files", {}).items() if name != CARD}


def file_record(file: Path) -> dict[str, Any]:
    """Size and checksum of a file; for files with weights, of their header or list of entries.

    Raises:
        InputError: the file has no readable header.
    """
    return {"bytes": file.stat().st_size, "xxh3_128": _file_checksum(file)}


def content_record(content: bytes) -> dict[str, Any]:
    """As `file_record`, for the content of a small file."""
    return {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}


def _file_checksum(file: Path) -> str:
    with reading(file) as reader:
        kind = kind_of(read_at(reader, HEAD_SIZE, 0))
    is_torch = kind in (TORCH, LEGACY_TORCH) and file.suffix != ".distcp"  # several archives in a row
    if is_torch or file.suffix == ".pth":
        return xxhash.xxh3_128_hexdigest(read_torch_header(file))
    if kind == SAFETENSORS or file.suffix == ".safetensors":
        return xxhash.xxh3_128_hexdigest(read_header(file)[0])
    checksum, position = xxhash.xxh3_128(), 0
    with reading(file) as reader:
        while block := read_at(reader, _BLOCK, position):
            checksum.update(block)
            position += len(block)
    return checksum.hexdigest()


def manifest_json(content: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest with its schema number and its own checksum."""
    whole = {"schema": SCHEMA, **content}
    return to_json({**whole, _SEAL: _seal(whole)}, sort_keys=False)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if there is none.

    Raises:
        InputError: the manifest is damaged, or of another version.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    content = read_json_object(file, "MANIFEST", max_bytes=_MAX_BYTES).content
    schema = content.get("schema")
    if schema != SCHEMA:
        message = "Unsupported schema number."
        raise InputError("MANIFEST_VALUE", message, file=file, expected=SCHEMA, found=shown(schema))
    seal = content.pop(_SEAL, None)
    if seal != _seal(content):
        message = "The checksum of the manifest does not match: it was edited or damaged."
        raise InputError("MANIFEST_VALUE", message, file=file)
    files, tensors = content.setdefault("files", {}), content.setdefault("tensors", {})
    if not _is_table(files, dict) or not _is_table(tensors, str) or not all(map(is_file_name, files)):
        raise InputError("MANIFEST_VALUE", "Malformed list of files or tensors.", file=file)
    return content


def _is_table(value: Any, kind: type) -> bool:
    """Whether it is an object with printable keys and values of a type."""
    return isinstance(value, dict) and all(
        is_printable_name(key) and isinstance(each, kind) for key, each in value.items()
    )


def file_matches(file: Path, record: Mapping[str, Any]) -> bool:
    """Whether a file matches its record in the manifest.

    Raises:
        InputError: the file has no readable header.
    """
    return file.stat().st_size == record.get("bytes") and _file_checksum(file) == record.get("xxh3_128")


def _seal(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
