"""What is odd about a checkpoint without being wrong, told from its headers and its folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from llama_convert.checkpoints.stored_weight import Slab, storages_without_crc
from llama_convert.findings import Finding, at_most
from llama_convert.formats.tensors import Storage
from llama_convert.inspection.opened import Entry, Opened
from llama_convert.inspection.records import DtypeCount, File
from llama_convert.units import format_size


def oddities(opened: Opened, dtypes: Sequence[DtypeCount], files: Iterable[File]) -> list[Finding]:
    """Everything that should be looked at."""
    groups = (
        _names(opened),
        _dtypes(dtypes),
        _views(opened.entries),
        _strides(opened.entries),
        _checksums(opened),
        _beside(files),
    )
    return at_most([finding for group in groups for finding in group])


def shared_storages(entries: Iterable[Entry]) -> tuple[tuple[str, ...], ...]:
    """Names of tensors that are views of one storage, each group once however many ranks have it."""
    names: dict[Storage, dict[str, None]] = defaultdict(dict)
    for entry in entries:
        for slab in entry.slabs:
            names[slab.storage][entry.name] = None
    return tuple(dict.fromkeys(tuple(group) for group in names.values() if len(group) > 1))


def _odd(code: str, message: str, file: str | None = None, tensor: str | None = None) -> Finding:
    return Finding(code, message, file, tensor, severity="warning")


def _names(opened: Opened) -> Iterator[Finding]:
    said = {problem.tensor for problem in opened.problems}
    for entry in opened.entries:
        if entry.weight is None and entry.name not in said:
            what = "holds constants that are computed anew" if entry.recomputed else "is no weight of a Llama"
            yield _odd("TENSOR_EXTRA", what, entry.files[0].name, entry.name)


def _dtypes(dtypes: Sequence[DtypeCount]) -> Iterator[Finding]:
    if len(dtypes) > 1:
        several = ", ".join(f"{count.tensors} in {count.dtype}" for count in dtypes)
        yield _odd("DTYPES_MIXED", f"tensors are of several dtypes: {several}")


def _views(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Bytes of the files that no tensor is made of."""
    used: dict[Storage, dict[tuple[int, int], int]] = defaultdict(dict)
    owner: dict[Storage, str] = {}
    for entry in entries:
        itemsize = entry.stored.dtype.itemsize
        for slab in entry.slabs:
            used[slab.storage][slab.offset, slab.rows] = slab.rows * slab.columns * itemsize
            owner.setdefault(slab.storage, entry.name)
    larger = {storage: storage.size - sum(parts.values()) for storage, parts in used.items()}
    larger = {storage: unused for storage, unused in larger.items() if unused > 0}
    if larger:
        first = next(iter(larger))
        lost = format_size(sum(larger.values()))
        number = f"{len(larger)} storages hold" if len(larger) > 1 else "a storage holds"
        message = f"{number} {lost} that no tensor is made of: tensors are views into larger ones"
        yield _odd("VIEW", message, first.file.name, owner[first])


def _strides(entries: Iterable[Entry]) -> Iterator[Finding]:
    strided = [entry for entry in entries if any(_is_strided(entry, slab) for slab in entry.slabs)]
    if strided:
        message = f"{len(strided)} tensors do not lie row by row (transposed, or cut from a wider one)"
        yield _odd("STRIDED", message, strided[0].files[0].name, strided[0].name)


def _is_strided(entry: Entry, slab: Slab) -> bool:
    itemsize = entry.stored.dtype.itemsize
    along = slab.columns == 1 or slab.column_stride == itemsize
    return not (along and (slab.rows <= 1 or slab.row_stride == slab.columns * itemsize))


def _checksums(opened: Opened) -> Iterator[Finding]:
    without = storages_without_crc(entry.stored for entry in opened.entries)
    if opened.layout == "meta" and without:
        file, (first, every) = next(iter(without.items()))
        more = f", also in {len(without) - 1} more files" if len(without) > 1 else ""
        message = f"{first} of {every} storages have no CRC-32, so damage to them goes undetected{more}"
        yield _odd("CHECKSUMS_MISSING", message, file.name)


def _beside(files: Iterable[File]) -> Iterator[Finding]:
    for file in files:
        if file.role == "other":
            yield _odd("FILE_BESIDE", "does not belong to a checkpoint of this layout", file.name)
