"""What stands in the output folder already: nothing to do, if it is this conversion's and good."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from llama_convert.checkpoints.folders import is_huggingface
from llama_convert.checkpoints.gather import digest_of
from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.locate import locate
from llama_convert.checkpoints.manifest import MANIFEST, file_matches, promised_files, read_manifest
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.sources import States
from llama_convert.errors import InputError, RefusedError
from llama_convert.units import format_size


def what_stands(
    destination: Path,
    identity: str,
    sources: States,
    options: ConvertOptions,
    notes: Notes,
) -> dict[str, int] | None:
    """The files of an earlier run of the same conversion, if they still are what it wrote.

    Args:
        destination: the output folder.
        identity: the `plan_digest`.
        sources: the files that are read; one that is younger than the output makes it stale.
        options: how to read, and whether warnings count.
        notes: is told of what was found.

    Returns:
        Bytes of each file; None if something else stands there, or nothing.

    Raises:
        RefusedError: `strict`, and that run had warnings.
        OutputError: the machine could not read.
    """
    manifest = _manifest_of(destination, identity, sources)
    if manifest is None:
        return None
    if options.strict and manifest.get("warnings"):
        message = f"--strict, and the conversion that stands here had {manifest['warnings']} warnings"
        raise RefusedError("STRICT_WARNINGS", message, file=destination)
    try:
        other = next(
            (n for n, said in promised_files(manifest).items() if not file_matches(destination / n, said)),
            None,
        ) or _other_tensor(destination, manifest["tensors"], options, notes)
    except (InputError, FileNotFoundError) as error:
        other = str(error)
    if other:
        notes.note(f"{destination}: holds this very conversion, but not as it was written: {other}")
        return None
    there = [destination / name for name in (*manifest["files"], MANIFEST)]
    sizes = {file.name: file.stat().st_size for file in there if file.exists()}
    total = format_size(sum(sizes.values()))
    notes.note(f"up to date: {len(sizes)} files, {total}, all as an earlier run wrote them")
    return sizes


def _manifest_of(destination: Path, identity: str, sources: States) -> dict[str, Any] | None:
    """The manifest of what stands there, if it is of this plan and younger than all that is read."""
    try:
        manifest = read_manifest(destination)
        written = (destination / MANIFEST).stat().st_mtime_ns
    except (InputError, OSError):
        return None
    if manifest is None or manifest.get("plan") != identity:
        return None
    return manifest if all(state.mtime_ns <= written for state in sources.values()) else None


def _other_tensor(folder: Path, digests: dict[str, str], options: ConvertOptions, notes: Notes) -> str | None:
    """The first weight that has another digest than was written down, or is missing.

    Raises:
        InputError: a file's own checksums tell that it is damaged.
    """
    checkpoint = open_huggingface(folder) if is_huggingface(folder) else open_meta(locate(folder))
    stored = {weight.name: weight for weight in checkpoint.weights.values()}
    if missing := next((name for name in digests if name not in stored), None):
        return missing
    stop = Event()
    notes.observer.start(sum(weight.nbytes for weight in stored.values()), "looked at")
    with SourceFiles() as files, ThreadPoolExecutor(options.workers) as pool:

        def digest(name: str) -> str:
            weight = stored[name]
            return digest_of(files, weight, options.block_size, notes.observer.advance, stop.is_set)

        try:
            pairs = zip(stored, pool.map(digest, stored), strict=True)
            other = next((name for name, found in pairs if digests.get(name, found) != found), None)
            if not other:
                files.check_the_rest(options.block_size)
            return other
        finally:
            stop.set()
            notes.observer.finish()
