"""``llama-convert.json``: what a conversion read and wrote, so that it can be told later whether that is so.

Digests are XXH3-128 in hexadecimal: of each weight's bytes, of each small file, of each safetensors header,
and of the list of what a torch file holds.  They tell damage and mix-ups, not forgery.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from llama_convert.checkpoints.json_object import read_json_object, to_json
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats.files import is_file_name, is_plain, read_at, reading
from llama_convert.formats.safetensors import read_header
from llama_convert.formats.strict_json import shown
from llama_convert.formats.zip_directory import read_directory

MANIFEST = "llama-convert.json"
CARD = "README.md"
"""What people may write on: what the manifest says of it is no promise."""
SCHEMA = 1
_MAX_BYTES = 4 << 20
_BLOCK = 1 << 20
_SEAL = "seal"


def promised_files(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file that is to stay as it was written."""
    return {name: said for name, said in manifest.get("files", {}).items() if name != CARD}


def describe_file(file: Path) -> dict[str, Any]:
    """Size and digest of a file; of one that holds weights a digest of what it lists: weights have their own.

    Raises:
        InputError: it has no header that can be read.
    """
    return {"bytes": file.stat().st_size, "xxh3_128": _file_digest(file)}


def describe_content(content: bytes) -> dict[str, Any]:
    """As `describe_file`, of a small file that is about to be written."""
    return {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}


def _file_digest(file: Path) -> str:
    if file.suffix == ".safetensors":
        return xxhash.xxh3_128_hexdigest(read_header(file)[0])
    if file.suffix == ".pth":
        return xxhash.xxh3_128_hexdigest(repr(_entries(file)).encode())
    digest, position = xxhash.xxh3_128(), 0
    with reading(file) as reader:
        while block := read_at(reader, _BLOCK, position):
            digest.update(block)
            position += len(block)
    return digest.hexdigest()


def _entries(file: Path) -> list[tuple[str, int, int, int]]:
    """Name, place, size and CRC-32 of all that a torch file holds."""
    with reading(file) as reader:
        entries = read_directory(reader).entries
    return [(name, entry.offset, entry.size, entry.crc32) for name, entry in sorted(entries.items())]


def write_manifest(content: Mapping[str, Any]) -> bytes:
    """The file's bytes, sealed with a digest of all the rest of it."""
    whole = {"schema": SCHEMA, **content}
    return to_json({**whole, _SEAL: _seal(whole)}, sort_keys=False)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the manifest says; None if there is none.

    Raises:
        InputError: it is damaged, or written by a later version.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    content = read_json_object(file, "MANIFEST", belongs="", max_bytes=_MAX_BYTES).content
    schema = content.get("schema")
    if schema != SCHEMA:
        raise InputError("MANIFEST_VALUE", f'"schema" is {shown(schema)}, expected {SCHEMA}', file=file)
    seal = content.pop(_SEAL, None)
    if seal != _seal(content):
        message = "its seal is broken: it was changed after it was written"
        raise InputError("MANIFEST_VALUE", message, file=file)
    files, tensors = content.setdefault("files", {}), content.setdefault("tensors", {})
    if not _is_table(files, dict) or not _is_table(tensors, str) or not all(map(is_file_name, files)):
        raise InputError("MANIFEST_VALUE", "its lists of files and tensors are malformed", file=file)
    return content


def recorded_version(folder: Path) -> str | None:
    """The version of the release that a conversion wrote down; None without a manifest that can be read."""
    with suppress(LlamaConvertError):  # verification says what is wrong with it
        version = (read_manifest(folder) or {}).get("version")
        return version if isinstance(version, str) else None
    return None


def _is_table(value: Any, kind: type) -> bool:
    """Whether it is an object whose keys can be shown in a line, and whose values are of a kind."""
    return isinstance(value, dict) and all(is_plain(k) and isinstance(v, kind) for k, v in value.items())


def file_matches(file: Path, said: Mapping[str, Any]) -> bool:
    """Whether a file is what the manifest says of it.

    Raises:
        InputError: it has no header that can be read.
    """
    return file.stat().st_size == said.get("bytes") and _file_digest(file) == said.get("xxh3_128")


def _seal(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
