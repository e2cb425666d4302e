"""The page of an inspection of one checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llama_convert.html_report.color_scale import spanning
from llama_convert.html_report.findings_section import findings_section
from llama_convert.html_report.heat_map import heat_map
from llama_convert.html_report.number_format import count, format_number
from llama_convert.html_report.page import Block, Column, Fact, Facts, Folded, Page, Section, Table
from llama_convert.html_report.run_info import RunInfo
from llama_convert.html_report.tensor_grid import TensorValue
from llama_convert.html_report.verification_page import FORMATS, folder_name
from llama_convert.inspection.records import Inspection, Parameters, Tensor, WeightGroup
from llama_convert.units import format_size

if TYPE_CHECKING:
    from llama_convert.inspection.stats import Stats

MAX_TENSORS = 5000
"""Tensors that a page lists; Llama 3.1 405B has 1138."""


def inspection_page(result: Inspection, run: RunInfo | None = None) -> Page:
    """The page of an inspection; findings come first if there are errors."""
    findings = findings_section([(None, finding) for finding in result.findings])
    sections = [*([findings] if findings else []), *_sections(result)]
    if findings and result.ok:
        sections.append(sections.pop(0))
    if run:
        sections.append(run.section)
    n_errors = sum(not finding.is_warning for finding in result.findings)
    n_warnings = len(result.findings) - n_errors
    return Page(
        title=f"Inspection report: {folder_name(result.path)}",
        status="OK" if result.ok else "ERRORS",
        tone="good" if result.ok else "bad",
        summary=f"{count(n_errors, 'error')}, {count(n_warnings, 'warning')}.",
        facts=[("Path", str(result.path)), *checkpoint_facts(result)],
        sections=sections,
    )


def checkpoint_facts(result: Inspection) -> Iterator[Fact]:
    """Release, format, counts and the files around the weights."""
    if result.release:
        yield "Release", result.release.title
        yield "Evidence", "; ".join(result.release.evidence) or "none"
        if result.release.alternatives:
            yield "Other possible releases", ", ".join(result.release.alternatives)
    else:
        yield "Release", "not recognized"
    yield "Format", FORMATS.get(result.format, result.format)
    if result.ranks:
        repeats = result.kv_repeats or 1
        replicated = f"; each KV head is on {repeats} of them" if repeats > 1 else ""
        yield "Tensor-parallel ranks", f"{result.ranks}{replicated}"
    yield ("Parameters" if result.parameters.whole else "Elements"), f"{result.parameters.total:,}"
    if result.dtypes:
        dtypes = (f"{d.dtype}: {count(d.tensors, 'tensor')}, {format_size(d.bytes)}" for d in result.dtypes)
        yield "Dtypes", "; ".join(dtypes)
    if result.tokenizer:
        tokenizer = result.tokenizer
        kind = tokenizer.kind or "unknown kind"
        yield (
            "Tokenizer",
            f"{kind}, {tokenizer.vocab_size:,} tokens, {tokenizer.special:,} special ({tokenizer.file})",
        )
    yield "Checksums", "; ".join(result.checksums) or "none"
    yield "Files", f"{count(len(result.files), 'file')}, {format_size(result.bytes)}"
    if result.conversion:
        output = result.conversion
        yield (
            "Conversion",
            f"{format_size(output.bytes)} of {output.dtype} in {count(len(output.files), 'file')}, "
            f"{output.peak_memory >> 20} MiB of memory",
        )


def _sections(result: Inspection) -> Iterator[Section]:
    if result.config:
        yield Section("Config", [_config(result.config)])
    elif result.raw_config:
        yield Section("Config", [_config(result.raw_config)])
    yield Section("Parameters", [Facts(list(_parameters(result.parameters)))])
    if result.kinds:
        yield Section("Kinds of tensors", [_kinds(result.kinds, has_ranks=result.ranks is not None)])
    if any(tensor.stats for tensor in result.tensors):
        yield from _statistics(result.tensors)
    elif result.tensors:
        yield Section("Tensors", [_tensors(result.tensors)])
    if result.shared:
        rows = [(", ".join(names), str(len(names))) for names in result.shared]
        columns = [Column("Tensors in one storage", "code"), Column("Number", "number")]
        yield Section("Shared storages", [Table(columns, rows)])
    if result.files:
        yield Section("Files", [_files(result)])


def _config(config: dict[str, object]) -> Table:
    rows = [(name, format_value(value)) for name, value in config.items()]
    return Table([Column("Hyper-parameter", "code"), Column("Value", "code")], rows)


def format_value(value: object) -> str:
    """A hyper-parameter, shape or other value of a checkpoint."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={format_value(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parameters(parameters: Parameters) -> Iterator[Fact]:
    each = f" ({parameters.per_layer:,} each)" if parameters.per_layer else ""
    yield "Total", f"{parameters.total:,}"
    for name, number, note in (
        ("Embedding", parameters.embedding, ""),
        ("Layers", parameters.layers, each),
        ("Final norm", parameters.norm, ""),
        ("LM head", parameters.head, ""),
        ("Other tensors", parameters.other, ""),
    ):
        if number:
            yield name, f"{number:,}{note}"


def _kinds(kinds: Sequence[WeightGroup], *, has_ranks: bool) -> Table:
    columns = [
        Column("WeightGroup", "code"),
        Column("Number", "number"),
        Column("Shape", "code"),
        Column("Dtype", "code"),
    ]
    columns += [Column("Sharding")] if has_ranks else []
    rows = [
        (
            kind.name,
            f"{kind.count:,}",
            format_value(kind.shape),
            kind.dtype,
            *([_sharding(kind)] if has_ranks else []),
        )
        for kind in kinds
    ]
    return Table(columns, rows)


def _sharding(kind: WeightGroup) -> str:
    if kind.sharded_dim is None:
        return "replicated"
    return f"dim {kind.sharded_dim}" + (f", {kind.copies} copies" if kind.copies > 1 else "")


def _files(result: Inspection) -> Folded:
    columns = [
        Column("File", "code"),
        Column("Role"),
        Column("Tensors", "number"),
        Column("Size", "number"),
    ]
    rows = [
        (
            file.name,
            file.role,
            f"{file.tensors:,}" if file.tensors is not None else "–",
            format_size(file.bytes),
        )
        for file in result.files
    ]
    return Folded(f"{count(len(rows), 'file')}, {format_size(result.bytes)}", [Table(columns, rows)])


def _tensors(tensors: Sequence[Tensor]) -> Block:
    columns = [
        Column("Tensor", "code"),
        Column("Shape", "code"),
        Column("Dtype", "code"),
        Column("Size", "number"),
        Column("Files", "code"),
    ]
    rows = [
        (
            tensor.name,
            format_value(tensor.shape),
            tensor.dtype,
            format_size(tensor.bytes),
            ", ".join(tensor.files),
        )
        for tensor in tensors[:MAX_TENSORS]
    ]
    return Folded(_tensors_summary(tensors), [Table(columns, rows)])


def _tensors_summary(tensors: Sequence[Tensor]) -> str:
    if len(tensors) > MAX_TENSORS:
        return f"The first {MAX_TENSORS:,} of {count(len(tensors), 'tensor')}"
    return count(len(tensors), "tensor")


_STATISTICS = ("Min", "Max", "Max magnitude", "p99.9", "Mean", "Std", "Near zero", "NaN", "Inf")


def _statistics(tensors: Sequence[Tensor]) -> Iterator[Section]:
    """Heat maps of the standard deviation and of the max magnitude, then all statistics as a table."""
    measured = [(tensor, tensor.stats) for tensor in tensors if tensor.stats]
    n_non_finite = sum(stats.nan + stats.inf > 0 for _, stats in measured)
    non_finite = f" Tensors with NaN or infinite elements: {n_non_finite:,}." if n_non_finite else ""
    for title, caption, values in (
        (
            "Standard deviation by layer and kind",
            "Standard deviation of the finite elements of each tensor.",
            [stats.std for _, stats in measured],
        ),
        (
            "Max magnitude by layer and kind",
            "The max absolute value of the finite elements of each tensor.",
            [stats.absmax for _, stats in measured],
        ),
    ):
        cells = [
            _tensor_value(tensor, stats, value)
            for (tensor, stats), value in zip(measured, values, strict=True)
        ]
        yield Section(title, [heat_map(title, caption + non_finite, cells, spanning(cells))])
    columns = [Column("Tensor", "code"), Column("Shape", "code"), Column("Dtype", "code")]
    columns += [Column(name, "number") for name in _STATISTICS]
    rows = [
        (tensor.name, format_value(tensor.shape), tensor.dtype, *_cells(stats))
        for tensor, stats in measured[:MAX_TENSORS]
    ]
    table = Table(columns, rows)
    yield Section("Statistics", [Folded(_tensors_summary([tensor for tensor, _ in measured]), [table])])


def _tensor_value(tensor: Tensor, stats: Stats, value: float | None) -> TensorValue:
    """A cell of a heat map; without finite elements its value is NaN."""
    detail = "no finite element" if value is None else format_number(value)
    bad = [f"{number:,} {name}" for number, name in ((stats.nan, "NaN"), (stats.inf, "Inf")) if number]
    return TensorValue(
        tensor.name, math.nan if value is None else value, ", ".join([detail, *bad]), is_zero=value == 0
    )


def _cells(stats: Stats) -> tuple[str, ...]:
    numbers = (stats.min, stats.max, stats.absmax, stats.p999, stats.mean, stats.std)
    shown = ("–" if number is None else format_number(number) for number in numbers)
    near_zero = f"{stats.near_zero / stats.elements:.2%}" if stats.elements else "–"
    return (*shown, near_zero, f"{stats.nan:,}", f"{stats.inf:,}")
