"""Warnings about a checkpoint, from its headers and its folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from llama_convert.checkpoints.stored_weight import Slab, storages_without_crc
from llama_convert.findings import Finding, at_most
from llama_convert.formats.tensors import Storage
from llama_convert.inspection.opened import Entry, Opened
from llama_convert.inspection.records import DtypeCount, File
from llama_convert.units import format_size


def find_warnings(opened: Opened, dtypes: Sequence[DtypeCount], files: Iterable[File]) -> list[Finding]:
    """All warnings, at most ten of each code."""
    groups = (
        _extra_tensors(opened),
        _mixed_dtypes(dtypes),
        _views(opened.entries),
        _strided_tensors(opened.entries),
        _missing_checksums(opened),
        _unknown_files(files),
    )
    return at_most([finding for group in groups for finding in group])


def _warning(code: str, message: str, file: str | None = None, tensor: str | None = None) -> Finding:
    return Finding(code, message, file, tensor, severity="warning")


def _extra_tensors(opened: Opened) -> Iterator[Finding]:
    """Tensors that no Llama has, except those that an error names already."""
    reported = {problem.tensor for problem in opened.problems}
    for entry in opened.entries:
        if entry.weight is None and entry.name not in reported:
            message = "Constant that loaders recompute." if entry.recomputed else "Not a Llama tensor."
            yield _warning("TENSOR_EXTRA", message, entry.files[0].name, entry.name)


def _mixed_dtypes(dtypes: Sequence[DtypeCount]) -> Iterator[Finding]:
    if len(dtypes) > 1:
        counts = ", ".join(f"{count.dtype} ({count.tensors:,})" for count in dtypes)
        yield _warning("DTYPES_MIXED", f"Tensors have different dtypes: {counts}.")


def _views(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Bytes of storages that belong to no tensor."""
    used: dict[Storage, dict[tuple[int, int], int]] = defaultdict(dict)
    owner: dict[Storage, str] = {}
    for entry in entries:
        itemsize = entry.stored.dtype.itemsize
        for slab in entry.slabs:
            used[slab.storage][slab.offset, slab.rows] = slab.rows * slab.columns * itemsize
            owner.setdefault(slab.storage, entry.name)
    unused = {storage: storage.size - sum(parts.values()) for storage, parts in used.items()}
    unused = {storage: size for storage, size in unused.items() if size > 0}
    if unused:
        first = next(iter(unused))
        size = format_size(sum(unused.values()))
        several = f"{len(unused):,} storages have {size} of unused bytes in total"
        extent = several if len(unused) > 1 else f"{size} of it are not used"
        message = f"View of a larger storage; {extent}."
        yield _warning("STORAGE_UNUSED", message, first.file.name, owner[first])


def _strided_tensors(entries: Iterable[Entry]) -> Iterator[Finding]:
    strided = [entry for entry in entries if any(_is_strided(entry, slab) for slab in entry.slabs)]
    if strided:
        others = len(strided) - 1
        also = f" So are {others:,} other tensor{'s' * (others > 1)}." if others else ""
        message = f"Not contiguous (transposed, or a slice of a wider tensor).{also}"
        yield _warning("TENSOR_STRIDED", message, strided[0].files[0].name, strided[0].name)


def _is_strided(entry: Entry, slab: Slab) -> bool:
    itemsize = entry.stored.dtype.itemsize
    contiguous_rows = slab.columns == 1 or slab.column_stride == itemsize
    return not (contiguous_rows and (slab.rows <= 1 or slab.row_stride == slab.columns * itemsize))


def _missing_checksums(opened: Opened) -> Iterator[Finding]:
    without = storages_without_crc(entry.stored for entry in opened.entries)
    if opened.format == "meta" and without:
        file, (missing, total) = next(iter(without.items()))
        more = len(without) - 1
        also = f" The same in {more:,} more file{'s' * (more > 1)}." if more else ""
        message = f"No CRC-32 for {missing:,} of {total:,} storages: damage cannot be detected.{also}"
        yield _warning("CHECKSUMS_MISSING", message, file.name)


def _unknown_files(files: Iterable[File]) -> Iterator[Finding]:
    for file in files:
        if file.role == "other":
            yield _warning("UNEXPECTED_FILE", "Not part of a checkpoint in this format.", file.name)
