"""An output folder elsewhere: weights' files go there as streams, in bounded memory; what names them, last.

A store cannot rename, so each file is written under its own name, and is there whole or not at all.  Beside
it, in ``.llama-convert/``, its journal is kept until everything is published: the next run passes over what
has one.  Without ``config.json`` or ``params.json``, which come last, nothing takes the folder for a model.

Two runs at once into one place do not detect each other, as a store has neither locks nor renames. Runs of
the same plan write the same bytes. Of different plans each file is whole, but the files may be of both;
`verify` detects it by the manifest's checksums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import xxhash

from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.row_reader import Bytes
from llama_convert.conversion.execute import Progress, execute
from llama_convert.conversion.finalize import PUBLISHING, in_order, is_name
from llama_convert.conversion.journal import JOURNAL, MAX_JOURNAL, Journal, journal_of, sealed, unsealed
from llama_convert.conversion.json_values import from_json
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.staging import STAGING, Staging
from llama_convert.conversion.work_units import gather
from llama_convert.conversion.write_report import Report
from llama_convert.errors import InputError, LlamaConvertError, OutputError, UsageError
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small, remote_files
from llama_convert.formats.layout import Layout
from llama_convert.stores.filesystem import is_web, open_filesystem, printable
from llama_convert.stores.mount import put_placeholder
from llama_convert.stores.retry import with_retries

_PART = 16 << 20
_MOST_PARTS = 9_000  # S3 allows 10,000
_AT_A_TIME = 4
_LOADERS = ("config.json", "params.json", "model.safetensors.index.json", MANIFEST)


class Store:
    """Where an output goes, and the folder that stands for it here."""

    def __init__(self, url: str, place: Path) -> None:
        """See what an earlier run has left there.

        Raises:
            UsageError: the URL cannot be written to.
        """
        if is_web(url):
            raise UsageError("BAD_URL", "web servers cannot be written to; s3:// and gs:// can")
        if url.startswith(("file://", "local://")):
            raise UsageError("BAD_URL", "Is a local folder.", file=url, hint="Pass its path instead.")
        self.url = url.rstrip("/")
        self.place = place
        self._fs, self._path = open_filesystem(self.url, writing=True)
        staging = place / STAGING
        self._stop = Event()
        self._begun = [file.name.removeprefix(journal_of("")) for file in staging.glob(f"{journal_of('')}*")]
        self._small: list[str] = []
        """Small files that an interrupted run has sent."""
        listed = _List.read(staging / PUBLISHING)
        sent = [name for name, said in listed.files.items() if _describe(place / name) == said]
        if not sent or len(sent) < len(listed.files):  # else it was interrupted only as it cleaned up
            self._put_aside(sent)

    def _put_aside(self, small: list[str]) -> None:
        """Take what an interrupted run has sent for what it is: staged, not an output that others have."""
        staging = self.place / STAGING
        for name in self._begun:
            if (self.place / name).exists():
                os.replace(self.place / name, staging / name)
                remote_files[staging / name] = remote_files.pop(self.place / name)
        for name in small:
            (self.place / name).unlink()
        self._small = small

    def _key(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def writing(self, options: ConvertOptions, fingerprint: str) -> Any:
        """What writes the plan's files, those alone that no journal tells of."""

        def write(plan: Plan, staging: Staging, progress: Progress) -> Report:
            self.begin(staging)
            with ThreadPoolExecutor(min(_AT_A_TIME, options.workers)) as pool:
                units = {
                    pool.submit(self.upload, plan.only(file), file, options, fingerprint): file
                    for file in plan.layouts
                }
                try:
                    for unit in as_completed(units):
                        unit.result()
                        progress(plan.payload_bytes * plan.sizes[units[unit]] // plan.total_bytes)
                except BaseException:
                    self._stop.set()
                    raise
                finally:
                    for unit in units:
                        unit.cancel()
            return gather(plan, staging, fingerprint)

        return write

    def begin(self, staging: Staging) -> None:
        """Tell the runs to come which conversion this is.

        What another plan's run had begun goes, and what makes a model of an older one's files.
        """
        for name in self._begun:
            if not (staging.path / name).exists():
                self.remove(f"{STAGING}/{journal_of(name)}", name)
        older = [name for name in _LOADERS if (self.place / name).exists()]
        self.remove(*older, *reversed(self._small))
        for name in older:
            (self.place / name).unlink()
        self.put(f"{STAGING}/{JOURNAL}", read_small(staging.path / JOURNAL, MAX_JOURNAL))

    def upload(self, plan: Plan, name: str, options: ConvertOptions, fingerprint: str) -> None:
        """One file, unless it is there, and then its journal.

        Raises:
            InputError: a source file is damaged, or not what it was.
            OutputError: it cannot be read or written.
        """
        staging = self.place / STAGING
        placeholder, path = staging / name, staging / journal_of(name)
        journal = Journal(path, fingerprint)
        if journal.is_complete(placeholder):
            journal.close()
            return
        journal.close()
        journal = Journal(path, fingerprint, restart=True)
        try:
            self.put(
                f"{STAGING}/{path.name}", read_small(path, MAX_JOURNAL)
            )  # what comes is ours, whole or not
            output = _Upload(self._fs, self._key(name), plan.layouts[name], f"{printable(self.url)}/{name}")
            block_size = options.block_size
            execute(plan, {name: output}, journal, workers=1, block_size=block_size, progress=self._go_on)
            modified = put_placeholder(self._fs, self._key(name), placeholder, plan.sizes[name], self.url)
            os.utime(placeholder, ns=(modified, modified))
            journal.complete(placeholder)
        finally:
            journal.close()
        self.put(f"{STAGING}/{path.name}", read_small(path, MAX_JOURNAL))

    def _go_on(self, _: int) -> None:
        """Asked at every block, so that nobody waits for a file that is given up."""
        if self._stop.is_set():
            raise OutputError("INTERRUPTED", "given up, as another file was")

    def publish(self, files: Mapping[str, int], weights: Mapping[str, int]) -> None:
        """Bring the rest, in the order in which it makes a model of the weights; then the journals go."""
        small = [name for name in in_order(files) if name not in weights]
        listed = _List({name: said for name in small if (said := _describe(self.place / name))})
        self.put(f"{STAGING}/{PUBLISHING}", sealed(asdict(listed)))  # what comes is ours
        self.remove(*(name for name in reversed(self._small) if name not in small))
        for name in small:
            self.put(name, read_small(self.place / name, MAX_TOKENIZER_JSON))
        self.remove_traces(weights)

    def clear(self, weights: Mapping[str, int]) -> None:
        """Remove what a refused run has written."""
        self.remove(*reversed(self._small), *weights, *self._begun)
        self.remove_traces(weights)

    def remove_traces(self, weights: Mapping[str, int]) -> None:
        """Remove what would have let an interrupted run be resumed."""
        journals = map(journal_of, {*weights, *self._begun})
        self.remove(*(f"{STAGING}/{name}" for name in (*journals, JOURNAL, PUBLISHING)))

    def put(self, name: str, content: bytes) -> None:
        """Write a small file.

        Raises:
            OutputError: it cannot be written.
        """
        where = f"{printable(self.url)}/{name}"
        try:
            with_retries("write", where, lambda: self._fs.pipe_file(self._key(name), content))
        except LlamaConvertError as error:
            raise OutputError("OUTPUT_IO", error.message, file=error.file) from error

    def remove(self, *names: str) -> None:
        """Remove files, those that are there.

        Raises:
            OutputError: one cannot be removed.
        """
        for name in names:

            def ask(name: str = name) -> None:
                if self._fs.exists(self._key(name)):
                    self._fs.rm_file(self._key(name))

            try:
                with_retries("remove the file", f"{printable(self.url)}/{name}", ask)
            except LlamaConvertError as error:
                raise OutputError("OUTPUT_IO", error.message, file=error.file) from error


@dataclass(frozen=True)
class _List:
    """The small files that a run is about to publish, each with its size and XXH3-128."""

    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> _List:
        """The one that a file holds; an empty one if it holds none."""
        try:
            (content,) = unsealed(read_small(file, MAX_JOURNAL))
            listed: _List = from_json(cls, content)
        except (InputError, OutputError, ValueError):
            return cls()
        return listed if all(map(is_name, listed.files)) else cls()


def _describe(file: Path) -> tuple[int, str] | None:
    """Size and XXH3-128 of a small file; None if there is none."""
    if not file.is_file() or file in remote_files:
        return None
    content = read_small(file, MAX_TOKENIZER_JSON)
    return len(content), xxhash.xxh3_128_hexdigest(content)


class _Upload:
    """A file that is written from its first byte to its last, and is there when it is whole."""

    def __init__(self, fs: Any, path: str, layout: Layout, where: str) -> None:
        self.layout = layout
        self._fs = fs
        self._path = path
        self._where = where
        self._size = max(_PART, -(-layout.size // _MOST_PARTS))
        self._crc32: dict[str, int] = {}
        self._parts: Iterator[tuple[int, bytes]] = layout.parts(self._crc32)
        self._position = 0
        self._file: Any = None

    def reserve(self) -> None:
        """Begin."""
        with self._told():
            self._file = self._fs.open(self._path, "wb", block_size=self._size, autocommit=False)

    def open(self) -> None:
        """It is."""

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Nothing: an upload cannot be read back before it is complete."""
        return iter(())

    def write(self, block: Bytes, offset: int) -> None:
        """The next bytes, and before them what lies between the tensors."""
        while self._position < offset:
            self._send(memoryview(self._between()))
        assert self._position == offset, (self._position, offset)
        self._send(block.reshape(-1).data)

    def _between(self) -> bytes:
        position, content = next(self._parts)
        assert position == self._position, (position, self._position)
        return content

    def _send(self, content: memoryview) -> None:
        for start in range(0, len(content), self._size):
            with self._told():
                self._file.write(content[start : start + self._size])
        self._position += len(content)

    def tensor_done(self, name: str, crc32: int) -> None:
        """Take note of the checksum, which follows the tensor's bytes."""
        self._crc32[name] = crc32

    def wait(self) -> None:
        """Send the rest; the file is there when this returns."""
        while self._position < self.layout.size:
            self._send(memoryview(self._between()))
        with self._told():
            self._file.close()
            self._file.commit()
        self._file = None

    def close(self) -> None:
        """Give up what is not whole."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with suppress(Exception):  # the store forgets it in time
            file.discard()
        file.closed = True  # or it would be finished as it is collected

    def _told(self) -> _Told:
        return _Told(self._where)


class _Told:
    """Tells what a library raises in our words; none of its, which may hold a signature."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if isinstance(error, Exception):
            number = getattr(error, "errno", None)
            name = f"{type(error).__name__}{f' {number}' if number else ''}"
            raise OutputError("OUTPUT_IO", f"{self._where}: cannot be written: {name}") from error
