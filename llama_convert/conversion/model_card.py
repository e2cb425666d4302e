"""The model card: what an output folder says of itself to whoever finds it.

It is a function of the manifest, sealed with a digest of its own text: a card that a person has changed is
that person's, and is never written over.
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
"""The text file, of this name, in which the licences want their notice kept."""
_SEAL = "<!-- llama-convert wrote this card; as it did so its digest was {} -->\n"
_LARGEST = 1 << 20
_LAYOUTS = {"huggingface": "Hugging Face's layout", "meta": "Meta's layout"}
_COLUMNS = {"source": "name", "bytes": "bytes", "MD5 in its checklist.chk": "md5", "XXH3-128": "xxh3_128"}
"""What the card says of each source file: head of the column, key in the manifest."""
_LOST = ("overflowed", "vanished")
_ACTIVE = re.compile(r"[\\`*_{}\[\]#!|<>~&$^]")
"""Punctuation that means something to Markdown within a line."""
_AUTOLINK = re.compile(r"://|www\.|@", re.IGNORECASE)
_ENDS_CODE = "`|\\"
"""What would end inline code, or the cell of a table that it is in."""
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", torch_dtype="auto")
```"""
_DIGESTS = {
    ".pth": "XXH3-128 of a rank file is that of the list of its records: name, place, size and CRC-32 of "
    "each; every byte that was read was held against those CRC-32s, where the file has them.",
    ".safetensors": "XXH3-128 of a safetensors file is that of its header; `llama-convert.json` has one of "
    "every weight.",
}
"""What is digested of the files that hold weights, by their suffix."""
_NOT_VERIFIED = (
    "Not verified yet. `llama-convert verify THIS --source ORIGINAL --record` holds it against what it "
    "was made from, and writes the result here."
)
_RELEASED = "If these are Meta's weights, or were made from them, they are under the {}."
_CUSTOM_SIZE = (
    "Meta released no model of this size, so the license of these weights is not known. "
    "Weights that derive from Meta's, for example by pruning or merging, are under the {}."
)


def is_user_edited(card: Path) -> bool:
    """Whether the card in an output folder is a person's own, and no link: those are replaced."""
    return card.is_file() and not card.is_symlink() and not is_ours(card)


def is_ours(card: Path) -> bool:
    """Whether a card is as `render` wrote it."""
    text = _content(card)
    body, mark, _ = text.rpartition(_SEAL.partition("{}")[0])
    return bool(mark) and text == _sealed(body)


def _content(file: Path) -> str:
    """The text of a file; nothing of one that is too large, may not be read, or is no regular file."""
    try:
        return read_small(file, _LARGEST).decode("utf-8", errors="replace")
    except InputError:
        return ""


def is_generated(file: Path) -> bool:
    """Whether a file is a card or a notice as we write them: of the output next to it, and of no other."""
    if file.name == CARD:
        return is_ours(file)
    return file.name == NOTICE and _content(file).removesuffix("\n") in NOTICES


def notice(manifest: Mapping[str, Any]) -> bytes | None:
    """What `NOTICE` has to say; None if the licence asks for none, or is not known to be Meta's."""
    if manifest["size"] is None:
        return None
    licence = license_of(manifest["version"], manifest["size"])
    return f"{licence.notice}\n".encode() if licence.notice else None


def render(manifest: Mapping[str, Any], files: list[str]) -> bytes:
    """The card of an output folder.

    Text from files (names, settings, the manifest's own strings) appears as text: it makes no links, images,
    HTML or headings.

    Args:
        manifest: what ``llama-convert.json`` says, see `is_complete`.
        files: names of the folder's files.
    """
    return _sealed("\n\n".join(_sections(manifest, files)) + "\n\n").encode()


def is_complete(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has all that `render` needs, each of the right type."""
    return all(key in manifest and is_right(manifest[key]) for key, is_right in _NEEDED.items())


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
    return isinstance(value, dict) and all(isinstance(value.get(key), int) for key in _LOST)


_NEEDED: Mapping[str, Callable[[Any], bool]] = {
    "tool": _is_text,
    "release": _is_text,
    "version": lambda value: value in [release.version for release in RELEASES],
    "size": lambda value: value is None or _is_text(value),
    "layout": lambda value: value in list(_LAYOUTS),
    "instruct": lambda value: value in (True, False, None),
    "dtype": _is_text,
    "evidence": _are_texts,
    "alternatives": _are_texts,
    "sources": lambda value: isinstance(value, list) and all(map(_is_source, value)),
    "casts": lambda value: isinstance(value, dict) and all(map(_is_cast, value.values())),
    "checklist_compared": lambda value: isinstance(value, bool),
}


def _sealed(body: str) -> str:
    return body + _SEAL.format(xxhash.xxh3_128_hexdigest(body.encode()))


def _sections(manifest: Mapping[str, Any], files: list[str]) -> Iterator[str]:
    licence, meta = license_of(manifest["version"], manifest["size"]), manifest["layout"] == "meta"
    released = manifest["size"] is not None
    yield _front_matter(licence if released else None, meta)
    yield f"# {_text(manifest['release'])}"
    kind = {True: "An instruct model", False: "A base model", None: "A model"}[manifest["instruct"]]
    count = sum(name.endswith((".pth", ".safetensors")) for name in files)
    held = f"{count} {'rank' if meta else 'file'}{'s' * (count > 1)} of weights"
    yield f"{kind} in {_LAYOUTS[manifest['layout']]}: {held}, {_text(manifest['dtype'])}."
    if released and licence.display:
        yield f"**{licence.display}**"
    if not meta:
        yield _USE
    yield "## Where it comes from"
    yield from _provenance(manifest)
    yield "## Whether it is right"
    yield from _verification(manifest.get("verification"))
    yield "## Licence"
    carried = [name for name in files if is_licence(name) and name != NOTICE]
    if carried:
        yield f"The terms are next to the weights: {', '.join(map(_code, carried))}."
    yield (_RELEASED if released else _CUSTOM_SIZE).format(_named(licence))
    if released:
        yield from _licence(licence)


def _front_matter(licence: License | None, meta: bool) -> str:
    lines = [f"license: {licence.hub}"] if licence else []
    lines += [] if meta else ["library_name: transformers"]
    return "\n".join(["---", *lines, "pipeline_tag: text-generation", "tags:", "- llama", "---"])


def _provenance(manifest: Mapping[str, Any]) -> Iterator[str]:
    sources, evidence = manifest["sources"], "; ".join(map(_text, manifest["evidence"]))
    release = _text(manifest["release"])
    yield (
        f"Written by {_text(manifest['tool'])} from the files below. `llama-convert.json` has the checksums "
        "of what was written: where they do not match, this card describes other weights."
    )
    text = f"Detected: {release} ({evidence})."
    others = [release.title for release in RELEASES if release.version in manifest["alternatives"]]
    yield text + (f" The files would also allow {' or '.join(others)}." if others else "")
    yield _cast(manifest["dtype"], list(manifest["casts"].values()))
    columns = {head: key for head, key in _COLUMNS.items() if any(key in source for source in sources)}
    rows = [[_cell(key, source.get(key, "")) for key in columns.values()] for source in sources]
    yield _table(list(columns), rows)
    suffixes = {Path(source["name"]).suffix for source in sources}
    yield " ".join(text for suffix, text in _DIGESTS.items() if suffix in suffixes)
    if "md5" in columns.values():
        compared = "" if manifest["checklist_compared"] else "not "
        yield f"The files were {compared}compared with those MD5s when this folder was written."


def _cast(dtype: str, casts: list[Mapping[str, int]]) -> str:
    if not casts:
        return (
            "The conversion changed no value of a weight; it put rows and slices where this layout has them."
        )
    overflowed, vanished = (sum(cast[what] for cast in casts) for what in _LOST)
    return (
        f"{len(casts)} weights were cast to {_text(dtype)}: {overflowed:,} of their values overflowed to "
        f"infinity, {vanished:,} vanished to zero."
    )


def _verification(said: Mapping[str, Any] | None) -> Iterator[str]:
    if said is None:
        yield _NOT_VERIFIED
        return
    against = "its source" if said["against_source"] else "nothing but itself"
    yield f"`llama-convert verify` held it against {against}: **{'pass' if said['ok'] else 'FAIL'}**."
    rows = [[_text(level[key]) for key in ("level", "status", "summary")] for level in said["levels"]]
    yield _table(["level", "result", "what was looked at"], rows)


def _named(licence: License) -> str:
    return f"[{licence.name}]({licence.url})" if licence.url else licence.name


def _licence(licence: License) -> Iterator[str]:
    if licence.notice:
        yield f"> {licence.notice}"
    if licence.display:
        yield (
            f"Whoever passes them on encloses the licence and `NOTICE`, displays “{licence.display}”, and "
            f"lets the name of a model made from them begin with “{licence.prefix}”."
        )
    if licence.policy:
        yield f"Their use is bound by the [acceptable use policy]({licence.policy})."


def is_licence(name: str) -> bool:
    """Whether a file of this name holds terms of use: licence, notice or policy."""
    return name.lower().startswith(("license", "licence", "use_policy", "notice"))


def _cell(key: str, value: str | int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return _code(value) if key == "name" else _text(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Text as Markdown that shows as the same text, in a paragraph, a heading or a cell of a table.

    What a renderer makes a link of unasked (GitHub's autolinks, mentions) is shown as code.
    """
    return _code(text) if _AUTOLINK.search(text) else _ACTIVE.sub(r"\\\g<0>", _escaped(text, ""))


def _code(text: str) -> str:
    """Text as inline code, in which nothing has a meaning but what ends it."""
    return f"`{_escaped(text, _ENDS_CODE)}`" if text else ""


def _escaped(text: str, special: str) -> str:
    """Python's escapes in place of what is not printable, and of some characters."""
    return "".join(
        f"\\x{ord(c):02x}" if c in special else c if c.isprintable() else ascii(c)[1:-1] for c in text
    )
