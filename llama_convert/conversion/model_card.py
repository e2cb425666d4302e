"""The model card and the NOTICE file of an output folder.

The card is computed from the manifest and ends in a checksum of its text. A card whose checksum does not
match was edited by a user and is never overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from llama_convert.checkpoints.manifest import CARD
from llama_convert.errors import InputError
from llama_convert.formats.files import read_small
from llama_convert.llama.licenses import NOTICES, License, license_of
from llama_convert.llama.releases import RELEASES

NOTICE = "NOTICE"
"""Name of the text file that the licenses require for their notice."""
_SEAL = "<!-- Written by llama-convert. XXH3-128 of the text above: {} -->\n"
_EARLIER_SEALS = ("<!-- llama-convert wrote this card; as it did so its digest was {} -->\n",)
"""Seals of earlier versions, whose cards are recognized too."""
_MAX_CARD = 1 << 20
_FORMATS = {"huggingface": "Hugging Face", "meta": "Meta"}
_COLUMNS = {"source": "name", "bytes": "bytes", "MD5 in its checklist.chk": "md5", "XXH3-128": "xxh3_128"}
"""Columns of the table of source files, with their keys in the manifest."""
_CAST_COUNTS = ("overflowed", "vanished")
_ACTIVE = re.compile(r"[\\`*_{}\[\]#!|<>~&$^]")
"""Punctuation with a meaning in Markdown within a line."""
_AUTOLINK = re.compile(r"://|www\.|@", re.IGNORECASE)
_ENDS_CODE = "`|\\"
"""Characters that would end inline code or the table cell around it."""
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", torch_dtype="auto")
```"""
_HASHED = {
    ".pth": "The XXH3-128 of a `.pth` file covers the list of its records: name, offset, size and CRC-32 of "
    "each. Every byte that was read was verified against these CRC-32s, where the file has them.",
    ".safetensors": "The XXH3-128 of a safetensors file covers its header. `llama-convert.json` has the "
    "checksum of every weight.",
}
"""What the checksum of a file with weights covers, by suffix."""
_NOT_VERIFIED = (
    "Not verified yet. `llama-convert verify THIS --source ORIGINAL --record` compares this folder with "
    "its source and writes the result here."
)
_RELEASED = "If these are Meta's weights or derive from them, they are under the {}."
_CUSTOM_SIZE = (
    "Meta released no model of this size, so the license of these weights is not known. "
    "Weights that derive from Meta's, for example by pruning or merging, are under the {}."
)


def is_user_edited(card: Path) -> bool:
    """Return whether a user wrote or edited the card in an output folder. A link does not count."""
    return card.is_file() and not card.is_symlink() and not is_unedited(card)


def is_unedited(card: Path) -> bool:
    """Return whether a card still is as `render` of this or an earlier version wrote it."""
    text = _content(card)
    for seal in (_SEAL, *_EARLIER_SEALS):
        body, mark, _ = text.rpartition(seal.partition("{}")[0])
        if mark and text == _sealed(body, seal):
            return True
    return False


def _content(file: Path) -> str:
    """Return the text of a file; empty if it is too large, not readable or not a regular file."""
    try:
        return read_small(file, _MAX_CARD).decode("utf-8", errors="replace")
    except InputError:
        return ""


def is_generated(file: Path) -> bool:
    """Return whether a file is an unedited card or notice: it describes its own folder and no other."""
    if file.name == CARD:
        return is_unedited(file)
    return file.name == NOTICE and _content(file).removesuffix("\n") in NOTICES


def notice(manifest: Mapping[str, Any]) -> bytes | None:
    """Return the content of `NOTICE`; None if the license requires none or the weights may not be Meta's."""
    if manifest["size"] is None:
        return None
    license_ = license_of(manifest["version"], manifest["size"])
    return f"{license_.notice}\n".encode() if license_.notice else None


def render(manifest: Mapping[str, Any], files: list[str]) -> bytes:
    """Return the card of an output folder.

    Text from files (names, settings, the manifest's strings) is escaped: it cannot add links, images, HTML or
    headings.

    Args:
        manifest: the content of ``llama-convert.json``; see `is_complete`.
        files: names of the folder's files.
    """
    return _sealed("\n\n".join(_sections(manifest, files)) + "\n\n").encode()


def is_complete(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest has all entries that `render` needs, each of the right type."""
    return all(key in manifest and is_valid(manifest[key]) for key, is_valid in _REQUIRED.items())


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_source(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("name"))
        and all(isinstance(value.get(key, 0), str | int) for key in _COLUMNS.values())
    )


def _is_cast(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), int) for key in _CAST_COUNTS)


_REQUIRED: Mapping[str, Callable[[Any], bool]] = {
    "tool": _is_text,
    "release": _is_text,
    "version": lambda value: value in [release.version for release in RELEASES],
    "size": lambda value: value is None or _is_text(value),
    "layout": lambda value: value in list(_FORMATS),
    "instruct": lambda value: value in (True, False, None),
    "dtype": _is_text,
    "evidence": _are_texts,
    "alternatives": _are_texts,
    "sources": lambda value: isinstance(value, list) and all(map(_is_source, value)),
    "casts": lambda value: isinstance(value, dict) and all(map(_is_cast, value.values())),
    "checklist_compared": lambda value: isinstance(value, bool),
}


def _sealed(body: str, seal: str = _SEAL) -> str:
    return body + seal.format(xxhash.xxh3_128_hexdigest(body.encode()))


def _sections(manifest: Mapping[str, Any], files: list[str]) -> Iterator[str]:
    license_, is_meta = license_of(manifest["version"], manifest["size"]), manifest["layout"] == "meta"
    is_released = manifest["size"] is not None
    yield _front_matter(license_ if is_released else None, is_meta)
    yield f"# {_text(manifest['release'])}"
    kind = {True: "An instruct model", False: "A base model", None: "A model"}[manifest["instruct"]]
    count = sum(name.endswith((".pth", ".safetensors")) for name in files)
    shards = f"{count} shard{'s' * (count != 1)}"
    yield f"{kind} in {_FORMATS[manifest['layout']]} format: {shards}, {_text(manifest['dtype'])}."
    if is_released and license_.display:
        yield f"**{license_.display}**"
    if not is_meta:
        yield _USE
    yield "## Source"
    yield from _provenance(manifest)
    yield "## Verification"
    yield from _verification(manifest.get("verification"))
    yield "## License"
    license_files = [name for name in files if is_license_file(name) and name != NOTICE]
    if license_files:
        yield f"The terms are next to the weights: {', '.join(map(_code, license_files))}."
    yield (_RELEASED if is_released else _CUSTOM_SIZE).format(_link(license_))
    if is_released:
        yield from _obligations(license_)


def _front_matter(license_: License | None, is_meta: bool) -> str:
    lines = [f"license: {license_.hub}"] if license_ else []
    lines += [] if is_meta else ["library_name: transformers"]
    return "\n".join(["---", *lines, "pipeline_tag: text-generation", "tags:", "- llama", "---"])


def _provenance(manifest: Mapping[str, Any]) -> Iterator[str]:
    sources, evidence = manifest["sources"], "; ".join(map(_text, manifest["evidence"]))
    release = _text(manifest["release"])
    yield (
        f"Written by {_text(manifest['tool'])} from the files below. `llama-convert.json` has the checksums "
        "of the output. If they do not match, this card describes other weights."
    )
    text = f"Detected: {release} ({evidence})."
    others = [release.title for release in RELEASES if release.version in manifest["alternatives"]]
    yield text + (f" The files could also be {' or '.join(others)}." if others else "")
    yield _cast(manifest["dtype"], list(manifest["casts"].values()))
    columns = {head: key for head, key in _COLUMNS.items() if any(key in source for source in sources)}
    rows = [[_cell(key, source.get(key, "")) for key in columns.values()] for source in sources]
    yield _table(list(columns), rows)
    suffixes = {Path(source["name"]).suffix for source in sources}
    yield " ".join(text for suffix, text in _HASHED.items() if suffix in suffixes)
    if "md5" in columns.values():
        compared = "" if manifest["checklist_compared"] else "not "
        yield f"The files were {compared}compared with those MD5s when this folder was written."


def _cast(dtype: str, casts: list[Mapping[str, int]]) -> str:
    if not casts:
        return "The conversion changed no values. It only permuted, split or merged weights."
    overflowed, underflowed = (sum(cast[key] for cast in casts) for key in _CAST_COUNTS)
    return (
        f"{len(casts)} weights were cast to {_text(dtype)}: {overflowed:,} of their values overflowed to "
        f"infinity, {underflowed:,} underflowed to zero."
    )


def _verification(result: Mapping[str, Any] | None) -> Iterator[str]:
    if result is None:
        yield _NOT_VERIFIED
        return
    scope = "compared it with its source" if result["against_source"] else "checked it without its source"
    yield f"`llama-convert verify` {scope}: **{'pass' if result['ok'] else 'FAIL'}**."
    rows = [[_text(level[key]) for key in ("level", "status", "summary")] for level in result["levels"]]
    yield _table(["check", "result", "summary"], rows)


def _link(license_: License) -> str:
    return f"[{license_.name}]({license_.url})" if license_.url else license_.name


def _obligations(license_: License) -> Iterator[str]:
    if license_.notice:
        yield f"> {license_.notice}"
    if license_.display:
        yield (
            "Redistribution: see section 1.b of the license (the license and `NOTICE` with every copy, "
            f"display of “{license_.display}”, names of derived models that begin with “{license_.prefix}”)."
        )
    if license_.policy:
        yield f"Use is subject to the [acceptable use policy]({license_.policy})."


def is_license_file(name: str) -> bool:
    """Return whether a file of this name holds terms of use: license, notice or policy."""
    return name.lower().startswith(("license", "licence", "use_policy", "notice"))


def _cell(key: str, value: str | int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return _code(value) if key == "name" else _text(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Return Markdown that renders as the same text, in a paragraph, heading or table cell.

    Text that a renderer would turn into a link (GitHub's autolinks and mentions) becomes inline code.
    """
    return _code(text) if _AUTOLINK.search(text) else _ACTIVE.sub(r"\\\g<0>", _escaped(text, ""))


def _code(text: str) -> str:
    """Return text as inline code."""
    return f"`{_escaped(text, _ENDS_CODE)}`" if text else ""


def _escaped(text: str, special: str) -> str:
    """Return text with Python escapes for unprintable and ``special`` characters."""
    return "".join(
        f"\\x{ord(c):02x}" if c in special else c if c.isprintable() else ascii(c)[1:-1] for c in text
    )
