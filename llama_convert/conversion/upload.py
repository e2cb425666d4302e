"""Output to a remote store: weight files are streamed in bounded memory, small files are written last.

A store cannot rename, so each file is uploaded under its final name and appears completely or not at all. Its
journal is kept next to it in ``.llama-convert/`` until the whole output is final: the next run skips files
whose journal is complete. Without ``config.json`` or ``params.json``, which come last, no loader accepts the
folder as a model.

Two runs into the same URL do not detect each other, because a store has neither locks nor renames. Runs of
the same plan write the same bytes. Runs of different plans leave complete files, but maybe of both plans;
`verify` detects that by the checksums in the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import xxhash

from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.row_reader import Bytes
from llama_convert.conversion.execute import Progress, execute
from llama_convert.conversion.finalize import FINALIZING, finalization_order, is_output_name
from llama_convert.conversion.journal import JOURNAL, MAX_JOURNAL, Journal, journal_name
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.sealed_json import from_json, sealed, unsealed
from llama_convert.conversion.staging import STAGING, Staging
from llama_convert.conversion.work_units import collect_report
from llama_convert.conversion.write_report import WriteReport
from llama_convert.errors import InputError, LlamaConvertError, OutputError, UsageError
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small, remote_files
from llama_convert.formats.tensors import FileLayout
from llama_convert.stores.filesystem import is_web, open_filesystem, printable
from llama_convert.stores.mount import put_placeholder
from llama_convert.stores.retry import with_retries

_PART_SIZE = 16 << 20
_MAX_PARTS = 9_000
"""Parts of a multipart upload; S3 allows 10,000."""
_PARALLEL_UPLOADS = 4
_MODEL_FILES = ("config.json", "params.json", "model.safetensors.index.json", MANIFEST)
"""Files that make a folder a model."""


class Store:
    """The remote output folder, and the local folder that mirrors it.

    Args:
        url: the output folder.
        folder: the local folder, with placeholders for remote files.

    Raises:
        UsageError: the URL cannot be written to.
    """

    def __init__(self, url: str, folder: Path) -> None:
        if is_web(url):
            hint = "Pass a URL that begins with s3:// or gs://."
            raise UsageError("BAD_URL", f"{printable(url)}: Web servers cannot be written to.", hint=hint)
        if url.startswith(("file://", "local://")):
            raise UsageError("BAD_URL", "Is a local folder.", file=url, hint="Pass its path instead.")
        self.url = url.rstrip("/")
        self.folder = folder
        self._fs, self._path = open_filesystem(self.url, writing=True)
        staging = folder / STAGING
        self._stop = Event()
        prefix = journal_name("")
        self._journaled = [file.name.removeprefix(prefix) for file in staging.glob(f"{prefix}*")]
        """Weight files that an interrupted run has started."""
        self._uploaded_small: list[str] = []
        """Small files that an interrupted run has uploaded."""
        expected = _SmallFiles.read(staging / FINALIZING).files
        uploaded = [name for name, state in expected.items() if _small_file_state(folder / name) == state]
        if not uploaded or len(uploaded) < len(expected):  # otherwise only the cleanup was interrupted
            self._return_to_staging(uploaded)

    def _return_to_staging(self, small_files: list[str]) -> None:
        """Treat what an interrupted run has uploaded as staged, not as an output of another run."""
        staging = self.folder / STAGING
        for name in self._journaled:
            if (self.folder / name).exists():
                os.replace(self.folder / name, staging / name)
                remote_files[staging / name] = remote_files.pop(self.folder / name)
        for name in small_files:
            (self.folder / name).unlink()
        self._uploaded_small = small_files

    def _key(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def writer(
        self, options: ConvertOptions, fingerprint: str
    ) -> Callable[[Plan, Staging, Progress], WriteReport]:
        """Return a function that uploads the plan's weight files, except those that are complete."""

        def write(plan: Plan, staging: Staging, progress: Progress) -> WriteReport:
            self.start(staging)
            with ThreadPoolExecutor(min(_PARALLEL_UPLOADS, options.workers)) as pool:
                units = {
                    pool.submit(self.upload, plan.restricted_to(file), file, options, fingerprint): file
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
            return collect_report(plan, staging, fingerprint)

        return write

    def start(self, staging: Staging) -> None:
        """Upload the journal that identifies this conversion to later runs.

        Removes what a run of another plan has started, and the files that make an older model of the folder.
        """
        for name in self._journaled:
            if not (staging.path / name).exists():
                self.remove(f"{STAGING}/{journal_name(name)}", name)
        older = [name for name in _MODEL_FILES if (self.folder / name).exists()]
        self.remove(*older, *reversed(self._uploaded_small))
        for name in older:
            (self.folder / name).unlink()
        self.write(f"{STAGING}/{JOURNAL}", read_small(staging.path / JOURNAL, MAX_JOURNAL))

    def upload(self, plan: Plan, name: str, options: ConvertOptions, fingerprint: str) -> None:
        """Upload one weight file and then its journal, unless the file is complete.

        Args:
            plan: the plan of this file only.
            name: the file's name.
            options: how to read the source.
            fingerprint: identifies the conversion.

        Raises:
            InputError: a source file is damaged.
            OutputError: a file cannot be read or written.
        """
        staging = self.folder / STAGING
        placeholder, path = staging / name, staging / journal_name(name)
        journal = Journal(path, fingerprint)
        if journal.is_complete(placeholder):
            journal.close()
            return
        journal.close()
        journal = Journal(path, fingerprint, restart=True)
        try:
            # The journal marks the file as this conversion's before the file appears.
            self.write(f"{STAGING}/{path.name}", read_small(path, MAX_JOURNAL))
            output = _StoreOutput(
                self._fs, self._key(name), plan.layouts[name], f"{printable(self.url)}/{name}"
            )
            execute(
                plan,
                {name: output},
                journal,
                workers=1,
                block_size=options.block_size,
                progress=self._check_not_stopped,
            )
            modified = put_placeholder(self._fs, self._key(name), placeholder, plan.sizes[name], self.url)
            os.utime(placeholder, ns=(modified, modified))
            journal.complete(placeholder)
        finally:
            journal.close()
        self.write(f"{STAGING}/{path.name}", read_small(path, MAX_JOURNAL))

    def _check_not_stopped(self, _: int) -> None:
        """End an upload early if another one has failed; called with every block."""
        if self._stop.is_set():
            raise OutputError("INTERRUPTED", "Canceled because another file failed.")

    def finalize(self, files: Mapping[str, int], weights: Mapping[str, int]) -> None:
        """Upload the small files, in the order that makes the weights a model last; remove the journals.

        Args:
            files: all files of the output, by name.
            weights: the weight files, by name.
        """
        small = [name for name in finalization_order(files) if name not in weights]
        states = {name: state for name in small if (state := _small_file_state(self.folder / name))}
        # The list marks the files as this conversion's before they appear.
        self.write(f"{STAGING}/{FINALIZING}", sealed(asdict(_SmallFiles(states))))
        self.remove(*(name for name in reversed(self._uploaded_small) if name not in small))
        for name in small:
            self.write(name, read_small(self.folder / name, MAX_TOKENIZER_JSON))
        self.remove_journals(weights)

    def clear(self, weights: Mapping[str, int]) -> None:
        """Remove everything that a refused run has uploaded."""
        self.remove(*reversed(self._uploaded_small), *weights, *self._journaled)
        self.remove_journals(weights)

    def remove_journals(self, weights: Mapping[str, int]) -> None:
        """Remove the files that would let an interrupted run be resumed."""
        journals = map(journal_name, {*weights, *self._journaled})
        self.remove(*(f"{STAGING}/{name}" for name in (*journals, JOURNAL, FINALIZING)))

    def write(self, name: str, content: bytes) -> None:
        """Upload a small file.

        Raises:
            OutputError: the file cannot be written.
        """
        url = f"{printable(self.url)}/{name}"
        try:
            with_retries("write", url, lambda: self._fs.pipe_file(self._key(name), content))
        except LlamaConvertError as error:
            raise OutputError("OUTPUT_IO", error.message, file=error.file) from error

    def remove(self, *names: str) -> None:
        """Remove files if they exist.

        Raises:
            OutputError: a file cannot be removed.
        """
        for name in names:

            def remove_one(name: str = name) -> None:
                if self._fs.exists(self._key(name)):
                    self._fs.rm_file(self._key(name))

            try:
                with_retries("remove the file", f"{printable(self.url)}/{name}", remove_one)
            except LlamaConvertError as error:
                raise OutputError("OUTPUT_IO", error.message, file=error.file) from error


@dataclass(frozen=True)
class _SmallFiles:
    """The small files that a run is about to upload, each with its size and XXH3-128."""

    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> _SmallFiles:
        """Return the list in a file; an empty one if the file is missing or damaged."""
        try:
            (content,) = unsealed(read_small(file, MAX_JOURNAL))
            listed: _SmallFiles = from_json(cls, content)
        except (InputError, OutputError, ValueError):
            return cls()
        return listed if all(map(is_output_name, listed.files)) else cls()


def _small_file_state(file: Path) -> tuple[int, str] | None:
    """Return size and XXH3-128 of a small local file; None if it does not exist."""
    if not file.is_file() or file in remote_files:
        return None
    content = read_small(file, MAX_TOKENIZER_JSON)
    return len(content), xxhash.xxh3_128_hexdigest(content)


class _StoreOutput:
    """A remote file that is written sequentially. It appears when it is complete.

    Args:
        fs: the file system of the store.
        path: the file's path in it.
        layout: the file's size, tensor offsets and headers.
        url: the file's URL, for messages.
    """

    def __init__(self, fs: Any, path: str, layout: FileLayout, url: str) -> None:
        self.layout = layout
        self._fs = fs
        self._path = path
        self._url = url
        self._part_size = max(_PART_SIZE, -(-layout.size // _MAX_PARTS))
        self._crc32: dict[str, int] = {}
        self._headers: Iterator[tuple[int, bytes]] = layout.parts(self._crc32)
        self._position = 0
        self._file: Any = None

    def reserve(self) -> None:
        """Start the upload."""
        with _store_errors(self._url):
            self._file = self._fs.open(self._path, "wb", block_size=self._part_size, autocommit=False)

    def open(self) -> None:
        """Do nothing: the file is open."""

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield nothing: an upload cannot be read back before it is complete."""
        return iter(())

    def write(self, block: Bytes, offset: int) -> None:
        """Write the next bytes, after the headers between the tensors."""
        while self._position < offset:
            self._send(memoryview(self._next_header()))
        assert self._position == offset, (self._position, offset)
        self._send(block.reshape(-1).data)

    def _next_header(self) -> bytes:
        position, content = next(self._headers)
        assert position == self._position, (position, self._position)
        return content

    def _send(self, content: memoryview) -> None:
        for start in range(0, len(content), self._part_size):
            with _store_errors(self._url):
                self._file.write(content[start : start + self._part_size])
        self._position += len(content)

    def tensor_done(self, name: str, crc32: int) -> None:
        """Keep the CRC-32, which the format stores after the tensor's bytes."""
        self._crc32[name] = crc32

    def wait(self) -> None:
        """Send the remaining headers and complete the upload."""
        while self._position < self.layout.size:
            self._send(memoryview(self._next_header()))
        with _store_errors(self._url):
            self._file.close()
            self._file.commit()
        self._file = None

    def close(self) -> None:
        """Abort the upload unless it is complete."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with suppress(Exception):  # stores drop incomplete uploads after a while
            file.discard()
        file.closed = True  # otherwise the garbage collector would complete the upload


@contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Raise library errors as `OutputError`, without their text, which may contain a signed URL."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        name = f"{type(error).__name__}{f' {number}' if number else ''}"
        raise OutputError("OUTPUT_IO", f"{url}: Cannot write the file ({name}).") from error
