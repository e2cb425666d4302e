"""Mounts a remote checkpoint as a local folder: small files are downloaded, weight files are placeholders.

All code that reads a checkpoint works on such a folder unchanged. The bytes of weights are fetched when they
are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from llama_convert.errors import InputError
from llama_convert.formats.files import RemoteFile, is_file_name, remote_files
from llama_convert.formats.strict_json import parse_json
from llama_convert.stores.filesystem import child_url, is_url, is_web, open_filesystem, parent_url, printable
from llama_convert.stores.location import Location
from llama_convert.stores.range_reader import RangeReader
from llama_convert.stores.retry import with_retries

_WEIGHTS = (".pth", ".pt", ".bin", ".distcp", ".safetensors", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx")
_MAX_DOWNLOAD = 64 << 20
"""Max bytes of a file that is downloaded when its folder is mounted."""
_MAX_FILES = 20_000
_MAX_RANKS = 256
_MAX_SHARDS = 2048
_MAX_INDEX = 2 << 20
_DEPTH = 3
"""Levels of folders that are listed."""
_KNOWN_FILES = (
    "params.json", "config.json", "generation_config.json", "model.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "checklist.chk", "llama-convert.json", "LICENSE",
    "LICENSE.txt", "USE_POLICY.md", "NOTICE", "README.md",
)  # fmt: skip
"""Files requested from a web server, which lists none, besides ``consolidated.NN.pth`` and shards."""

Info = Mapping[str, Any]
"""What fsspec knows of a file: ``size``, ``type``, time and ETag, under names that differ between stores."""


@contextmanager
def mounted(location: Path | str, *, may_be_absent: bool = False) -> Iterator[Location]:
    """A local path as it is, or a URL mounted as a temporary folder.

    Errors that leave the context name the URL, not the temporary folder.

    Args:
        location: a path, or a URL that fsspec supports.
        may_be_absent: mount an empty folder if nothing exists at the URL.

    Raises:
        UsageError: the extra for the URL's scheme is not installed.
        InputError: nothing exists at the URL, or access is denied.
        OutputError: the store cannot be reached.

    Example:
        >>> with mounted("Llama-2-7B") as source:
        ...     (source.path / "params.json").is_file()
        True
    """
    if not is_url(location):
        yield Location(Path(location).expanduser())
        return
    with TemporaryDirectory(prefix="llama-convert-") as root:
        try:
            mount = _mount(str(location), Path(root).resolve(), may_be_absent=may_be_absent)
            with mount.renaming_errors():
                yield mount
        finally:
            for file in [file for file in list(remote_files) if file.is_relative_to(root)]:
                del remote_files[file]


def _mount(url: str, root: Path, *, may_be_absent: bool) -> Location:
    """Create the files of a mount in a folder; raises as `mounted`.

    The local path ends in up to three names of the URL: messages and hints derive names from them.
    """
    fs, path = open_filesystem(url)
    name = printable(url)
    names = [part for part in PurePosixPath(name.partition("://")[2]).parts if part not in ("/", "..")]
    place = root.joinpath(*names[-3:])
    location = Location(place, ((str(place), name), (str(place.parent), name.rpartition("/")[0])))
    found = dict(_list_files(fs, path, url))
    if not found and not may_be_absent:
        raise InputError("INPUT_NOT_FOUND", "Not found.", file=name)
    if list(found) == [""]:  # a file
        place.parent.mkdir(parents=True)
        _add_file(fs, path, place, found[""], url)
        return location
    place.mkdir(parents=True)
    if found and "tokenizer.model" not in found and len(names) > 1:
        tokenizer = child_url(parent_url(path), "tokenizer.model")
        if info := _info(fs, tokenizer, url):
            file = place.parent / "tokenizer.model"
            _add_file(fs, tokenizer, file, info, child_url(parent_url(url), "tokenizer.model"))
    for relative, info in found.items():
        file = place / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        _add_file(fs, child_url(path, relative), file, info, child_url(url, relative))
    return location


def _add_file(fs: Any, path: str, file: Path, info: Info, url: str) -> None:
    """Download a small file, or create the placeholder of a large one or of weights."""
    size = info.get("size")
    if size is None:
        message = "Cannot be read: the store does not report its size."
        raise InputError("INPUT_NOT_FOUND", message, file=printable(url))
    is_weights = file.suffix in _WEIGHTS and not file.name.startswith(".")  # journals start with a dot
    if is_weights or size > _MAX_DOWNLOAD:
        modified = put_placeholder(fs, path, file, int(size), url)
    else:
        file.write_bytes(RangeReader(fs, path, url, file, int(size)).read_all())
        modified = _modified(info)
    os.utime(file, ns=(modified, modified))


def put_placeholder(fs: Any, path: str, file: Path, size: int, url: str) -> int:
    """Create a sparse file of the remote file's size, registered in `remote_files`.

    Returns:
        The remote file's modification time, in nanoseconds since 1970; 0 if the store does not report one.
    """

    def version() -> str:
        info = _info(fs, path, url) or {}
        return f"{info.get('ETag') or info.get('etag')} {info.get('size')} {_modified(info)}"

    file.touch()
    os.truncate(file, size)
    remote_files[file] = RemoteFile(lambda: RangeReader(fs, path, url, file, size), version)
    return _modified(_info(fs, path, url) or {})


def _modified(info: Info) -> int:
    """Modification time, in nanoseconds since 1970; 0 if the store does not report one."""
    moment = info.get("LastModified") or info.get("Last-Modified") or info.get("mtime") or info.get("updated")
    try:
        if isinstance(moment, str):
            from email.utils import parsedate_to_datetime

            moment = parsedate_to_datetime(moment)
    except ValueError:
        return 0
    return int(moment.timestamp()) * 10**9 if isinstance(moment, datetime) else 0


def _list_files(fs: Any, path: str, url: str) -> Iterator[tuple[str, Info]]:
    """Files at a path, by their path relative to it; the file itself, if it is one, by an empty name."""
    if is_web(url):
        yield from _probe_web_server(fs, path, url)
        return
    listed: dict[str, Info] = {}
    for name, info in _walk(fs, path, url, _DEPTH):
        listed[name] = info
        if len(listed) > _MAX_FILES:
            message = f"Holds more than {_MAX_FILES:,} files and folders, so it is not a checkpoint folder."
            raise InputError("INPUT_AMBIGUOUS", message, file=printable(url))
    base = path.strip("/")
    for name, info in sorted(listed.items()):
        relative = name.strip("/").removeprefix(base).strip("/")
        parts = relative.split("/") if relative else []
        if all(map(is_file_name, parts)) and info["type"] == "file":
            yield relative, info


def _walk(fs: Any, path: str, url: str, depth: int) -> Iterator[tuple[str, Info]]:
    """Files and folders that a store lists, ``depth`` levels deep.

    fsspec's `find` is not used: it returns an empty list where the store fails.
    """

    def request() -> list[Info]:
        try:
            entries: list[Info] = fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return entries

    for info in with_retries("list files", printable(url), request):
        yield info["name"], info
        if info["type"] == "directory" and depth > 1 and info["name"].strip("/") != path.strip("/"):
            yield from _walk(fs, info["name"], url, depth - 1)


def _probe_web_server(fs: Any, path: str, url: str) -> Iterator[tuple[str, Info]]:
    """Files of a checkpoint that exist on a web server, by requesting each known name."""
    if PurePosixPath(printable(path)).suffix in _WEIGHTS:
        info = _info(fs, path, url)
        yield from [("", info)] if info else []
        return
    if _info(fs, child_url(path, f"no-such-file-{uuid4().hex}.json"), url):
        message = "The server answers requests for files that do not exist."
        hint = "Check the URL in a browser: a login page or a web application may answer for the files."
        raise InputError("INPUT_SERVER", message, file=printable(url), hint=hint)
    for name in _KNOWN_FILES:
        if info := _info(fs, child_url(path, name), url):
            yield name, info
            if name.endswith(".index.json"):
                yield from _shards(fs, path, name, info, url)
    for rank in range(_MAX_RANKS + 1):
        name = f"consolidated.{rank:02d}.pth"
        info = _info(fs, child_url(path, name), url)
        if info is None:
            return
        if rank == _MAX_RANKS:
            message = f"Holds more than {_MAX_RANKS} rank files."
            raise InputError("INPUT_SERVER", message, file=printable(url))
        yield name, info


def _shards(fs: Any, path: str, index: str, index_info: Info, url: str) -> Iterator[tuple[str, Info]]:
    """Shards that an index names; none if the index is damaged, which opening the checkpoint reports."""
    size = index_info["size"] or 0
    if not 0 < size <= _MAX_INDEX:
        return
    file = child_url(path, index)
    content = with_retries("read the index", printable(url), lambda: fs.cat_file(file, 0, size))
    try:
        names = sorted(set(parse_json(content)["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        return
    if len(names) > _MAX_SHARDS:
        message = f"Names {len(names):,} files. At most {_MAX_SHARDS:,} can be read from a web server."
        raise InputError("INPUT_SERVER", message, file=child_url(printable(url), index))
    for name in names:
        if isinstance(name, str) and is_file_name(name) and (info := _info(fs, child_url(path, name), url)):
            yield name, info


def _info(fs: Any, path: str, url: str) -> Info | None:
    """Size, time and version of a file; None if it does not exist."""

    def request() -> Info | None:
        try:
            info: Info = fs.info(path)
        except FileNotFoundError:
            return None
        return info

    return with_retries("look up a file", printable(url), request)
