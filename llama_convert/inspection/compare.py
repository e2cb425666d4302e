"""Compare two checkpoints in any combination of formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import xxhash

from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.errors import InputError, OutputError
from llama_convert.findings import Finding
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small
from llama_convert.inspection.inspect import count_bytes, describe
from llama_convert.inspection.opened import Entry, Opened, open_any
from llama_convert.inspection.records import Comparison, Inspection, Mismatch, ValueDifference
from llama_convert.llama.weights import HEAD, Weight
from llama_convert.observer import Observer
from llama_convert.stores.mount import mounted
from llama_convert.verification.inputs import with_agreed_release
from llama_convert.verification.tensor_pairs import (
    TensorDifference,
    TensorPair,
    TensorRows,
    differences_of,
    pairs_of,
)

Entries = dict[Weight | str, Entry]


def compare(
    a: Path | str, b: Path | str, *, stats: bool = False, observer: Observer | None = None
) -> Comparison:
    """Differences between two checkpoints in settings, names, shapes, dtypes and the tokenizer.

    Args:
        a: a folder in either format, one ``.pth`` or ``.safetensors`` file, or the URL of either.
        b: the other checkpoint.
        stats: also compare values, which reads all weights of both.
        observer: receives progress.

    Raises:
        InputError: one of the paths is not a checkpoint.
        OutputError: a file could not be read.
    """
    with mounted(a) as one, mounted(b) as other:
        counting = observer or Observer() if stats else None
        result = _compare(open_any(one.path), open_any(other.path), counting)
        return other.display(one.display(result))


def _compare(a: Opened, b: Opened, observer: Observer | None) -> Comparison:
    """Compare values only if there is an observer."""
    a, b = _with_same_release(a, b)
    inspection_a, inspection_b = describe(a), describe(b)
    entries_a, entries_b = _by_weight(a), _by_weight(b)
    in_both = [(entry, entries_b[key]) for key, entry in entries_a.items() if key in entries_b]
    values, compared, findings = _compare_values(a, b, observer) if observer else ([], None, [])
    return Comparison(
        a=inspection_a,
        b=inspection_b,
        config=tuple(
            mismatch
            for mismatch in _config_mismatches(inspection_a.config, inspection_b.config)
            if mismatch.name != "tied" or not _tying_is_unknown(a, b, entries_a, entries_b)
        ),
        only_in_a=_missing_names(entries_a, entries_b, inspection_a, inspection_b),
        only_in_b=_missing_names(entries_b, entries_a, inspection_a, inspection_b),
        shapes=tuple(
            Mismatch(y.name, x.shape, y.shape)
            for x, y in in_both
            if x.shape != y.shape and _has_slices(a) == _has_slices(b)  # a slice differs from a whole weight
        ),
        dtypes=tuple(
            Mismatch(y.name, x.stored.dtype.name, y.stored.dtype.name)
            for x, y in in_both
            if x.stored.dtype != y.stored.dtype
        ),
        tokenizer=tuple(_tokenizer_mismatches(a, b, inspection_a, inspection_b)),
        values=tuple(values),
        compared=compared,
        findings=tuple(findings),
    )


def _with_same_release(a: Opened, b: Opened) -> tuple[Opened, Opened]:
    """Both, with a Meta checkpoint read as the release of the other one if its files allow that."""
    input_b, input_a, _ = with_agreed_release(b.input, a.input)
    return replace(a, input=input_a), replace(b, input=input_b)


def _by_weight(opened: Opened) -> Entries:
    """Tensors by weight, or by name if not Llama tensors; without constants that loaders recompute."""
    return {entry.weight or entry.name: entry for entry in opened.entries if not entry.recomputed}


def _has_slices(opened: Opened) -> bool:
    """Whether shapes are those of slices: Meta files that do not fit together, or one of them."""
    return opened.format == "meta" and opened.input.checkpoint is None


def _tying_is_unknown(a: Opened, b: Opened, entries_a: Entries, entries_b: Entries) -> bool:
    """Whether `tied` is no difference: Meta files do not record it, and both checkpoints have an LM head."""
    has_heads = Weight(HEAD) in entries_a and Weight(HEAD) in entries_b
    return "meta" in (a.format, b.format) and has_heads


def _missing_names(entries: Entries, other: Entries, a: Inspection, b: Inspection) -> tuple[str, ...]:
    """Names of tensors that the other lacks; an LM head is optional if both models are tied."""
    tied = all(each.config and each.config["tied"] for each in (a, b))
    missing = [entry for key, entry in entries.items() if key not in other]
    return tuple(e.name for e in missing if not (tied and e.weight and e.weight.kind == HEAD))


def _config_mismatches(a: dict[str, Any] | None, b: dict[str, Any] | None) -> Iterator[Mismatch]:
    """Settings that are known for both and differ; those of nested objects as ``rope_scaling.factor``."""
    if a is None or b is None:
        return
    for name in a:
        values = (a[name], b.get(name))
        if all(isinstance(value, dict) for value in values):
            yield from (Mismatch(f"{name}.{m.name}", m.a, m.b) for m in _config_mismatches(*values))
        elif values[0] != values[1]:
            yield Mismatch(name, *values)


def _tokenizer_mismatches(a: Opened, b: Opened, in_a: Inspection, in_b: Inspection) -> Iterator[Mismatch]:
    """Differences in kind and vocabulary size; for one type of file also in special tokens and content."""
    if in_a.tokenizer is None or in_b.tokenizer is None:
        if in_a.tokenizer != in_b.tokenizer and not (in_a.single_file or in_b.single_file):
            yield Mismatch("file", *(each.tokenizer and each.tokenizer.file for each in (in_a, in_b)))
        return
    same_type = Path(in_a.tokenizer.file).suffix == Path(in_b.tokenizer.file).suffix
    ignored = ("file",) if same_type else ("file", "special")
    names = [f.name for f in fields(in_a.tokenizer) if f.name not in ignored]
    found = [Mismatch(n, getattr(in_a.tokenizer, n), getattr(in_b.tokenizer, n)) for n in names]
    found = [mismatch for mismatch in found if mismatch.a != mismatch.b]
    yield from found
    files = (a.input.tokenizer, b.input.tokenizer)
    if same_type and not found and None not in files:
        hashes = [xxhash.xxh3_128_hexdigest(read_small(file, MAX_TOKENIZER_JSON)) for file in files if file]
        if hashes[0] != hashes[1]:
            yield Mismatch("content (XXH3-128)", *hashes)


def _compare_values(
    a: Opened, b: Opened, observer: Observer
) -> tuple[list[ValueDifference], int, list[Finding]]:
    """Tensors whose values differ, the number of compared tensors, and the error that prevented it."""
    found: list[ValueDifference] = []
    with SourceFiles() as files:
        try:
            all_pairs = _pairs(a, b, files)
            with count_bytes(observer, sum(pair.found.stored.nbytes for pair in all_pairs), "Comparing"):
                found += [_value_difference(each) for each in differences_of(all_pairs, observer.advance)]
        except OutputError:
            raise
        except InputError as error:
            return found, 0, [Finding.of(error)]
    return found, len(all_pairs), []


def _pairs(a: Opened, b: Opened, files: SourceFiles) -> list[TensorPair]:
    """Tensors to compare: whole weights with rows in the same order, or within one format tensors as stored.

    Raises:
        InputError: the formats differ, and the head size that determines the order of rows is unknown.
    """
    if a.input.checkpoint and b.input.checkpoint:
        return pairs_of(a.input.checkpoint, b.input.checkpoint, files)
    if a.format != b.format:
        unknown = a if a.input.checkpoint is None else b
        message = "Q/K rows are ordered differently in the two formats, and the head size is unknown."
        hint = "Compare complete folders, or files of the same format."
        raise InputError("VALUES_NOT_COMPARED", message, file=unknown.path, hint=hint)
    entries_a = _by_weight(a)
    return [
        TensorPair(
            entry.weight,
            TensorRows(files, entries_a[name].stored, entry.stored.dtype),
            TensorRows(files, entry.stored, entry.stored.dtype),
            0,
            False,
        )
        for name, entry in _by_weight(b).items()
        if entry.weight and name in entries_a and entries_a[name].stored.shape == entry.stored.shape
    ]


def _value_difference(difference: TensorDifference) -> ValueDifference:
    return ValueDifference(
        name=difference.pair.name,
        elements=difference.elements,
        different=difference.different,
        max_difference=difference.max_difference,
        mean_difference=difference.mean_difference,
        relative_difference=difference.relative_difference,
        cosine_similarity=difference.cosine_similarity,
    )
