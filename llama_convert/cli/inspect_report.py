"""Screens of ``inspect``: one checkpoint, or the differences between two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.text import Text

from llama_convert.cli.messages import (
    FORMAT_NAMES,
    counted,
    dtype_name,
    finding_lines,
    format_settings,
    format_value,
    verdict,
)
from llama_convert.cli.tables import Column, facts, fitted
from llama_convert.cli.tensor_table import tensor_table
from llama_convert.cli.terminal import page, print_page, styled
from llama_convert.inspection.records import (
    Comparison,
    File,
    Inspection,
    Mismatch,
    Parameters,
    ValueDifference,
    WeightGroup,
)
from llama_convert.text import listed
from llama_convert.units import format_size

Facts = Iterator[tuple[str, str]]

_MAX_ROWS = 20
"""Differences of one kind that are listed; the rest are counted."""


def print_result(result: Inspection | Comparison, *, verbose: bool = False) -> None:
    """Print to stdout what was found, then findings and a verdict.

    Args:
        result: of `inspect` or `compare`.
        verbose: also show evidence, files and counts by part of the model, or all differences.
    """
    console = page()
    if isinstance(result, Comparison):
        parts = _comparison(result, console.width, verbose=verbose)
    else:
        ascii_only = console.options.ascii_only or console.legacy_windows
        parts = _inspection(result, console.width, ascii_only=ascii_only, verbose=verbose)
    print_page(console, parts)


def title(it: Inspection) -> str:
    """The release; without one, what was opened."""
    if it.release:
        return it.release.title
    return "one file of a checkpoint" if it.single_file else "incomplete or inconsistent checkpoint"


def _inspection(it: Inspection, width: int, *, ascii_only: bool, verbose: bool) -> Iterator[RenderableType]:
    yield styled(f"{it.path}: {title(it)}", style="bold")
    yield facts([*_facts(it, verbose=verbose)], width)
    if it.tensors:
        yield styled()
        yield tensor_table(it.tensors, width, ascii_only=ascii_only)
    elif it.kinds:
        yield styled()
        yield _weight_kinds(it.kinds, it.ranks, width)
    yield styled()
    yield from finding_lines(it.findings)
    yield verdict(it.findings)


def _facts(it: Inspection, *, verbose: bool) -> Facts:
    yield "model", _model(it)
    if it.release and verbose:
        yield "evidence", "; ".join(it.release.evidence)
        if it.release.alternatives:
            yield "could be", ", ".join(it.release.alternatives)
    if it.config or it.raw_config:
        yield "config", format_settings(it.config or it.raw_config or {})
    if verbose and it.dtypes:
        yield "parameters", _parameters(it.parameters)
        sizes = (f"{d.tensors:,} in {dtype_name(d.dtype)} ({format_size(d.bytes)})" for d in it.dtypes)
        yield "tensors", ", ".join(sizes)
    if it.tokenizer:
        t = it.tokenizer
        yield (
            "tokenizer",
            f"{t.kind or 'unknown kind'}, {t.vocab_size:,} tokens, {t.special:,} special ({t.file})",
        )
    if it.checksums or verbose:
        yield "checksums", ", ".join(it.checksums) or "none"
    if verbose:
        for names in it.shared:
            yield "one storage", listed(names)
        yield from (("files" if n == 0 else "", line) for n, line in enumerate(_files(it)))
    if it.conversion:
        yield "convert", _conversion(it, verbose=verbose)


def _model(it: Inspection) -> str:
    """Format, shards, parameters, dtype and size."""
    parts = [f"{FORMAT_NAMES[it.format]} format"]
    shards = it.ranks or sum(file.role == "weights" for file in it.files)
    if not it.single_file and shards:
        parts.append(counted(shards, "shard"))
    if (it.kv_repeats or 1) > 1:
        parts[-1] += f" (each KV head on {it.kv_repeats})"
    if it.dtypes:
        parts.append(f"{it.parameters.total:,} {'parameters' if it.parameters.whole else 'elements'}")
        parts.append("/".join(dtype_name(count.dtype) for count in it.dtypes))
    return ", ".join([*parts, format_size(it.bytes)])


def _parameters(p: Parameters) -> str:
    layers = f"{p.layers:,}" + (f" ({p.per_layer:,} each)" if p.per_layer else "")
    parts = {"embedding": p.embedding, "norm": p.norm, "head": p.head, "other": p.other}
    named = [f"{name} {count:,}" for name, count in parts.items() if count]
    named[1 if p.embedding else 0 : 0] = [f"layers {layers}"] if p.layers else []
    return f"{p.total:,}" + (f": {', '.join(named)}" if named else "")


def _files(it: Inspection) -> Iterator[str]:
    """A line per file, and one line for three or more consecutive weight files of equal size."""
    runs = groupby(it.files, lambda file: file.role == "weights" and (file.bytes, file.tensors))
    for run in [list(run) for _, run in runs]:
        if run[0].role == "weights" and len(run) > 2:
            each = f"{len(run)} x {format_size(run[0].bytes)}"
            yield f"{run[0].name} to {run[-1].name}: {each}{_tensor_count(run[0], ' each')}"
        else:
            yield from (f"{file.name}: {format_size(file.bytes)}{_tensor_count(file)}" for file in run)
    if len(it.files) > 1:
        yield f"total: {format_size(it.bytes)}"


def _tensor_count(file: File, each: str = "") -> str:
    return f", {counted(file.tensors, 'tensor')}{each}" if file.tensors else ""


def _conversion(it: Inspection, *, verbose: bool) -> str:
    assert it.conversion
    files = counted(len(it.conversion.files), "file")
    text = f"would write {format_size(it.conversion.bytes)} of {dtype_name(it.conversion.dtype)} in {files}"
    if verbose:
        text += f", with up to {it.conversion.peak_memory >> 20} MiB of memory"
    return text


def _weight_kinds(groups: Sequence[WeightGroup], ranks: int | None, width: int) -> RenderableType:
    """A row per kind; without the columns that are the same for all."""
    sharding = [_sharding(group, ranks) for group in groups]
    has_dtypes, has_sharding = len({group.dtype for group in groups}) > 1, any(sharding)
    columns = [Column("weight"), Column("count", is_number=True), Column("shape")]
    columns += [Column("dtype")] * has_dtypes + [Column("sharding")] * has_sharding
    rows = []
    for group, split in zip(groups, sharding, strict=True):
        row = [_short_name(group.name), f"{group.count:,}", format_value(group.shape)]
        rows.append(row + [dtype_name(group.dtype)] * has_dtypes + [split] * has_sharding)
    return fitted(columns, rows, width)


def _short_name(name: str) -> str:
    return name.removeprefix("model.").removeprefix("layers.{layer}.").removesuffix(".weight")


def _sharding(group: WeightGroup, ranks: int | None) -> str:
    if ranks is None:
        return f"one slice in each of {group.copies} files" if group.copies > 1 else ""
    if group.sharded_dim is None:
        return "replicated" if ranks > 1 else ""
    return f"dim {group.sharded_dim}" + (f", {group.copies} copies" if group.copies > 1 else "")


def _comparison(it: Comparison, width: int, *, verbose: bool) -> Iterator[RenderableType]:
    for letter, inspection in (("A", it.a), ("B", it.b)):
        name = FORMAT_NAMES[inspection.format]
        yield styled(f"{letter}: {inspection.path}: {title(inspection)}, {name} format", style="bold")
        yield from finding_lines(f for f in inspection.findings if verbose or not f.is_warning)
    yield from finding_lines(it.findings)
    yield styled()
    limit = None if verbose else _MAX_ROWS
    dtypes = tuple(Mismatch(m.name, dtype_name(m.a), dtype_name(m.b)) for m in it.dtypes)
    dtypes = dtypes if verbose else _grouped(dtypes)
    settings = {"config": it.config, "tokenizer": it.tokenizer}
    for heading, mismatches in (("setting", settings), ("tensor", {"shape": it.shapes, "dtype": dtypes})):
        rows = [
            row
            for kind, found in mismatches.items()
            for row in _limited(
                [(kind, m.name, format_value(m.a), format_value(m.b)) for m in found], 1, limit
            )
        ]
        if rows:
            columns = [Column("differs", needs_heading=False), Column(heading, needs_heading=False)]
            yield fitted([*columns, Column("A"), Column("B")], rows, width)
            yield styled()
    names = [
        row
        for where, missing in (("only in A", it.only_in_a), ("only in B", it.only_in_b))
        for row in _limited([(where, name) for name in missing], 1, limit)
    ]
    if names:
        yield fitted(
            [Column("exists", needs_heading=False), Column("tensor", needs_heading=False)], names, width
        )
        yield styled()
    if it.values:
        yield fitted(_VALUE_COLUMNS, _limited([_value_row(one) for one in it.values], 0, limit), width)
        yield styled()
    yield _comparison_verdict(it)


def _grouped(mismatches: Sequence[Mismatch]) -> tuple[Mismatch, ...]:
    """Mismatches with the same values counted as one; a single tensor keeps its name."""
    names: dict[tuple[str, str], list[str]] = {}
    for mismatch in mismatches:
        names.setdefault((mismatch.a, mismatch.b), []).append(mismatch.name)
    return tuple(
        Mismatch(group[0] if len(group) == 1 else counted(len(group), "tensor"), a, b)
        for (a, b), group in names.items()
    )


def _limited(rows: list[tuple[str, ...]], place: int, limit: int | None) -> list[tuple[str, ...]]:
    """The first rows, then one with the number of the others in the cell at ``place``."""
    if limit is None or len(rows) <= limit:
        return rows
    last = ["" if n > place else cell for n, cell in enumerate(rows[0])]
    last[place] = f"and {len(rows) - limit:,} more"
    return [*rows[:limit], tuple(last)]


_VALUE_COLUMNS = (
    Column("tensor"),
    Column("elements that differ", is_number=True),
    Column("max |A-B|", is_number=True),
    Column("mean |A-B|", is_number=True),
    Column("relative", is_number=True),
    Column("cosine", is_number=True),
)


def _value_row(one: ValueDifference) -> tuple[str, ...]:
    differences = (one.max_difference, one.mean_difference, one.relative_difference)
    numbers = (f"{difference:.3g}" for difference in differences)
    return one.name, f"{one.different:,} of {one.elements:,}", *numbers, f"{one.cosine_similarity:.6f}"


def _comparison_verdict(it: Comparison) -> Text:
    numbers = {
        "config": len(it.config), "tensor names": len(it.only_in_a) + len(it.only_in_b),
        "shapes": len(it.shapes), "dtypes": len(it.dtypes), "tokenizer": len(it.tokenizer),
        "values": len(it.values),
    }  # fmt: skip
    if not it.same:
        found = ", ".join(f"{what} ({number:,})" for what, number in numbers.items() if number)
        return styled(f"The checkpoints differ: {found}", style="bold red")
    if not it.ok:
        return styled("No differences found, but the comparison is incomplete", style="bold red")
    if it.compared is None:
        return styled("OK: no differences in the headers. Use --stats to compare values.", style="bold green")
    return styled(
        f"OK: no differences; compared the values of {counted(it.compared, 'tensor')}", style="bold green"
    )
