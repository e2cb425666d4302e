"""Two checkpoints side by side, each in either layout: where the one is not what the other is."""

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
from llama_convert.inspection.describe import describe, progress
from llama_convert.inspection.differences import Comparison, Differing, ValueDifference
from llama_convert.inspection.opened import Entry, Opened, open_any
from llama_convert.inspection.records import Inspection
from llama_convert.llama.weights import HEAD, Weight
from llama_convert.observer import Observer
from llama_convert.stores.mount import mounted
from llama_convert.verification.assumed_release import agreed
from llama_convert.verification.tensor_pairs import Difference, Pair, Rows, differing, pairs

Entries = dict[Weight | str, Entry]


def compare(
    a: Path | str, b: Path | str, *, stats: bool = False, observer: Observer | None = None
) -> Comparison:
    """How two checkpoints differ.

    Args:
        a: a folder in Hugging Face's or in Meta's layout, or one file.
        b: another, in either layout.
        stats: compare the values too, which reads all weights of both.
        observer: is told of progress.

    Raises:
        InputError: one of them is no checkpoint at all.
        OutputError: the machine could not read.
    """
    with mounted(a) as one, mounted(b) as other:
        found = _compare(one.path, other.path, observer or Observer() if stats else None)
        return other.display(one.display(found))


def _compare(a: Path, b: Path, counting: Observer | None) -> Comparison:
    """Values too, if somebody counts."""
    sides = _agreed(open_any(a), open_any(b))
    said = (describe(sides[0]), describe(sides[1]))
    one, other = (_by_weight(opened) for opened in sides)
    only = [_lacking(*way) for way in ((one, other, *said), (other, one, *said))]
    both = [(one[name], other[name]) for name in one if name in other]
    slices = [opened.layout == "meta" and opened.side.checkpoint is None for opened in sides]
    values, compared, findings = _values(*sides, counting) if counting else ([], None, [])
    return Comparison(
        a=said[0],
        b=said[1],
        config=tuple(
            setting
            for setting in _settings(said[0].config, said[1].config)
            if setting.name != "tied" or not _heads_decide(one, other, *sides)
        ),
        only_in_a=only[0],
        only_in_b=only[1],
        shapes=tuple(
            Differing(y.name, x.shape, y.shape)
            for x, y in both
            if x.shape != y.shape and slices[0] == slices[1]  # a slice is not compared with a whole
        ),
        dtypes=tuple(
            Differing(y.name, x.stored.dtype.name, y.stored.dtype.name)
            for x, y in both
            if x.stored.dtype != y.stored.dtype
        ),
        tokenizer=tuple(_tokenizer(*sides, *said)),
        values=tuple(values),
        compared=compared,
        findings=tuple(findings),
    )


def _agreed(a: Opened, b: Opened) -> tuple[Opened, Opened]:
    """Both, Meta's files assumed to be of the other checkpoint's release, if they allow that."""
    side_b, side_a, _ = agreed(b.side, a.side)
    return replace(a, side=side_a), replace(b, side=side_b)


def _by_weight(opened: Opened) -> Entries:
    """Tensors by what they are in either layout; constants that every reader computes anew are left out."""
    return {entry.weight or entry.name: entry for entry in opened.entries if not entry.recomputed}


def _heads_decide(one: Entries, other: Entries, a: Opened, b: Opened) -> bool:
    """Whether being tied is no setting: Meta's files have none, and each side stores an LM head."""
    return "meta" in (a.layout, b.layout) and all(Weight(HEAD) in side for side in (one, other))


def _lacking(one: Entries, other: Entries, a: Inspection, b: Inspection) -> tuple[str, ...]:
    """What the other lacks; a tied LM head may be written or left out."""
    tied = all(side.config and side.config["tied"] for side in (a, b))
    lacking = [entry for name, entry in one.items() if name not in other]
    return tuple(e.name for e in lacking if not (tied and e.weight and e.weight.kind == HEAD))


def _settings(a: dict[str, Any] | None, b: dict[str, Any] | None) -> Iterator[Differing]:
    """Where both know a setting and differ on it; the parts of the rope scaling singly."""
    if a is None or b is None:
        return
    for name in a:
        parts = (a[name], b.get(name))
        if all(isinstance(part, dict) for part in parts):
            yield from (Differing(f"{name}.{d.name}", d.a, d.b) for d in _settings(*parts))
        elif parts[0] != parts[1]:
            yield Differing(name, *parts)


def _tokenizer(one: Opened, other: Opened, a: Inspection, b: Inspection) -> Iterator[Differing]:
    """Kind and size; within one layout also what is special, and the bytes of the file."""
    if a.tokenizer is None or b.tokenizer is None:
        if a.tokenizer != b.tokenizer and not (a.single_file or b.single_file):
            yield Differing("file", *(side.tokenizer and side.tokenizer.file for side in (a, b)))
        return
    same_form = Path(a.tokenizer.file).suffix == Path(b.tokenizer.file).suffix
    names = [
        f.name for f in fields(a.tokenizer) if f.name not in ("file", *([] if same_form else ["special"]))
    ]
    found = [Differing(n, getattr(a.tokenizer, n), getattr(b.tokenizer, n)) for n in names]
    found = [difference for difference in found if difference.a != difference.b]
    yield from found
    files = (one.side.tokenizer, other.side.tokenizer)
    if same_form and not found and None not in files:
        digests = [xxhash.xxh3_128_hexdigest(read_small(file, MAX_TOKENIZER_JSON)) for file in files if file]
        if digests[0] != digests[1]:
            yield Differing("content (XXH3-128)", *digests)


def _values(a: Opened, b: Opened, observer: Observer) -> tuple[list[ValueDifference], int, list[Finding]]:
    """Tensors whose values differ, how many were compared, and why not all could be."""
    found: list[ValueDifference] = []
    with SourceFiles() as files:
        try:
            every_pair = _pairs(a, b, files)
            with progress(observer, sum(pair.found.stored.nbytes for pair in every_pair), "Comparing"):
                found += [_shown(one) for one in differing(every_pair, observer.advance)]
        except OutputError:
            raise
        except InputError as error:
            return found, 0, [Finding.of(error)]
    return found, len(every_pair), []


def _pairs(a: Opened, b: Opened, files: SourceFiles) -> list[Pair]:
    """What to compare: whole weights in one order of rows, or in one layout the tensors as they are.

    Raises:
        InputError: the order of rows is unknown.
    """
    if a.side.checkpoint and b.side.checkpoint:
        return pairs(a.side.checkpoint, b.side.checkpoint, files)
    if a.layout != b.layout:
        broken = a if a.side.checkpoint is None else b
        message = "the layouts order rows differently, by the width of heads, which is not known here"
        raise InputError("VALUES_NOT_COMPARED", message, file=broken.path)
    one = _by_weight(a)
    return [
        Pair(
            entry.weight,
            Rows(files, one[name].stored, entry.stored.dtype),
            Rows(files, entry.stored, entry.stored.dtype),
            0,
            False,
        )
        for name, entry in _by_weight(b).items()
        if entry.weight and name in one and one[name].stored.shape == entry.stored.shape
    ]


def _shown(difference: Difference) -> ValueDifference:
    return ValueDifference(
        name=difference.pair.name,
        elements=difference.elements,
        different=difference.different,
        max_difference=difference.max_difference,
        relative_difference=difference.relative_difference,
    )
