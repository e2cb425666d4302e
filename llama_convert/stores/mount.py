"""A folder that stands for one elsewhere: its small files fetched, of weights a placeholder of their size.

All that reads a checkpoint works on such a folder as on any other; weights' bytes are fetched when, and as
far as, somebody asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from llama_convert.errors import InputError
from llama_convert.formats.files import RemoteFile, is_file_name, remote_files
from llama_convert.formats.strict_json import parse_json
from llama_convert.names import call
from llama_convert.stores.filesystem import above, below, is_url, is_web, open_filesystem, shown
from llama_convert.stores.range_reader import RangeReader
from llama_convert.stores.retry import persistently

_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx")
_SMALL = 64 << 20
_MOST_FILES = 20_000
_MOST_RANKS = 256
_MOST_SHARDS = 2048
_MOST_INDEX = 2 << 20
_DEPTH = 3
_KNOWN = (
    "params.json", "config.json", "generation_config.json", "model.safetensors",
    "model.safetensors.index.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "checklist.chk", "llama-convert.json", "LICENSE",
    "LICENSE.txt", "USE_POLICY.md", "NOTICE", "README.md",
)  # fmt: skip
"""What a checkpoint's folder may hold besides rank files and shards, where nobody lists it."""

Info = Mapping[str, Any]


@contextmanager
def mounted(location: Path | str, *, may_be_absent: bool = False) -> Iterator[Path]:
    """The folder or file at a location: itself, or for a URL one that stands for it.

    Args:
        location: a path, or a URL that fsspec knows.
        may_be_absent: whether nothing there is an empty folder.

    Raises:
        UsageError: the URL's extra is not installed.
        InputError: there is nothing, or we may not have it.
        OutputError: it cannot be fetched.
    """
    if not is_url(location):
        yield Path(location).expanduser()
        return
    with TemporaryDirectory(prefix="llama-convert-") as root:
        place = mount(str(location), Path(root).resolve(), may_be_absent=may_be_absent)
        try:
            yield place
        finally:
            for file in [file for file in list(remote_files) if file.is_relative_to(root)]:
                del remote_files[file]


def mount(url: str, root: Path, *, may_be_absent: bool = False) -> Path:
    """Make what stands for a URL below ``root``; raises as `standing_for`."""
    fs, path = open_filesystem(url)
    names = [part for part in PurePosixPath(shown(url).partition("://")[2]).parts if part not in ("/", "..")]
    place = root.joinpath(*names[-3:])
    call(place.parent, shown(url).rpartition("/")[0])
    call(place, shown(url))
    found = dict(_entries(fs, path, url))
    if not found and not may_be_absent:
        raise InputError("INPUT_NOT_FOUND", f"{shown(url)}: nothing is there")
    if list(found) == [""]:  # a file
        place.parent.mkdir(parents=True)
        _place(fs, path, place, found[""], url)
        return place
    place.mkdir(parents=True)
    if found and "tokenizer.model" not in found and len(names) > 1:
        tokenizer = below(above(path), "tokenizer.model")
        if info := _info(fs, tokenizer, url):
            _place(
                fs, tokenizer, place.parent / "tokenizer.model", info, below(above(url), "tokenizer.model")
            )
    for name, info in found.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        _place(fs, below(path, name), file, info, below(url, name))
    return place


def _place(fs: Any, path: str, file: Path, info: Info, url: str) -> None:
    """Put a small file, or a weights' placeholder, in its place."""
    size = info.get("size")
    if size is None:
        raise InputError(
            "INPUT_NOT_FOUND", f"{shown(url)}: its size is not told, so no part of it can be read"
        )
    is_weights = file.suffix in _WEIGHTS and not file.name.startswith(".")  # as our journals do
    if is_weights or size > _SMALL:
        modified = put_placeholder(fs, path, file, int(size), url)
    else:
        file.write_bytes(RangeReader(fs, path, url, file, int(size)).read_all())
        modified = _modified(info)
    os.utime(file, ns=(modified, modified))


def put_placeholder(fs: Any, path: str, file: Path, size: int, url: str) -> int:
    """A file as large as the one elsewhere, that takes no room, and is read where it is.

    Returns:
        When that was changed, in nanoseconds since 1970.
    """

    def version() -> str:
        info = _info(fs, path, url) or {}
        return f"{info.get('ETag') or info.get('etag')} {info.get('size')} {_modified(info)}"

    file.touch()
    os.truncate(file, size)
    remote_files[file] = RemoteFile(lambda: RangeReader(fs, path, url, file, size), version)
    return _modified(_info(fs, path, url) or {})


def _modified(info: Info) -> int:
    """When it was changed, in nanoseconds since 1970; 0 if that is not told."""
    moment = info.get("LastModified") or info.get("Last-Modified") or info.get("mtime") or info.get("updated")
    try:
        if isinstance(moment, str):
            moment = parsedate_to_datetime(moment)
    except ValueError:
        return 0
    return int(moment.timestamp()) * 10**9 if isinstance(moment, datetime) else 0


def _entries(fs: Any, path: str, url: str) -> Iterator[tuple[str, Info]]:
    """The files at a path, three folders deep, by their path below it; a file itself by no name."""
    if is_web(url):
        yield from _probe(fs, path, url)
        return
    listed: dict[str, Info] = {}
    for name, info in _walk(fs, path, url, _DEPTH):
        listed[name] = info
        if len(listed) > _MOST_FILES:
            message = (
                f"{shown(url)}: more than {_MOST_FILES:,} files and folders; expected a checkpoint folder"
            )
            raise InputError("INPUT_SEVERAL", message)
    base = path.strip("/")
    for name, info in sorted(listed.items()):
        below = name.strip("/").removeprefix(base).strip("/")
        parts = below.split("/") if below else []
        if all(map(is_file_name, parts)) and info["type"] == "file":
            yield below, info


def _walk(fs: Any, path: str, url: str, depth: int) -> Iterator[tuple[str, Info]]:
    """What a store lists; not by `find`, which takes a fault for nothing."""

    def ask() -> list[Info]:
        try:
            listed: list[Info] = fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return listed

    for info in persistently("listing", shown(url), ask):
        yield info["name"], info
        if info["type"] == "directory" and depth > 1 and info["name"].strip("/") != path.strip("/"):
            yield from _walk(fs, info["name"], url, depth - 1)


def _probe(fs: Any, path: str, url: str) -> Iterator[tuple[str, Info]]:
    """Known names, asked for one by one: web servers do not list."""
    if PurePosixPath(shown(path)).suffix in _WEIGHTS:
        info = _info(fs, path, url)
        yield from [("", info)] if info else []
        return
    if _info(fs, below(path, f"no-such-file-{uuid4().hex}.json"), url):
        message = f"{shown(url)}: the server answers requests for files that do not exist"
        hint = "Check the URL in a browser: a login page or a web application may answer for the files."
        raise InputError("INPUT_SERVER", message, hint=hint)
    for name in _KNOWN:
        if info := _info(fs, below(path, name), url):
            yield name, info
            if name.endswith(".index.json"):
                yield from _shards(fs, path, name, info, url)
    for rank in range(_MOST_RANKS + 1):
        name = f"consolidated.{rank:02d}.pth"
        info = _info(fs, below(path, name), url)
        if info is None:
            return
        if rank == _MOST_RANKS:
            raise InputError("INPUT_SERVER", f"{shown(url)}: more than {_MOST_RANKS} rank files")
        yield name, info


def _shards(fs: Any, path: str, index: str, listed: Info, url: str) -> Iterator[tuple[str, Info]]:
    size = listed["size"] or 0
    if not 0 < size <= _MOST_INDEX:
        return  # who reads it says what is wrong
    content = persistently("reading", shown(url), lambda: fs.cat_file(below(path, index), 0, size))
    try:
        names = sorted(set(parse_json(content)["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        return  # who reads it says what is wrong
    if len(names) > _MOST_SHARDS:
        message = f"{index} names {len(names):,} files; at most {_MOST_SHARDS:,} are read from a web server"
        raise InputError("INPUT_SERVER", f"{shown(url)}: {message}")
    for name in names:
        if isinstance(name, str) and is_file_name(name) and (info := _info(fs, below(path, name), url)):
            yield name, info


def _info(fs: Any, path: str, url: str) -> Info | None:
    """What is known of a file; None if there is none."""

    def ask() -> Info | None:
        try:
            info: Info = fs.info(path)
        except FileNotFoundError:
            return None
        return info

    return persistently("asking for a file", shown(url), ask)
