"""An inspection as a person reads it: a column of facts, then lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llama_convert.cli.inspect_tensors import tensor_list
from llama_convert.cli.messages import LAYOUTS, finding_lines, settings, shown, title
from llama_convert.cli.terminal import styled
from llama_convert.cli.verify_report import page, print_page
from llama_convert.inspection.records import File, Inspection, Kind, Parameters, Release
from llama_convert.units import format_size

if TYPE_CHECKING:
    from llama_convert.inspection.differences import Comparison

Facts = Iterator[tuple[str, str]]


def print_result(result: Inspection | Comparison) -> None:
    """The result on stdout."""
    console = page()
    if isinstance(result, Inspection):
        plain = console.options.ascii_only or console.legacy_windows
        parts = _inspection(result, console.width, plain=plain)
    else:
        from llama_convert.cli.inspect_differences import comparison_parts

        parts = comparison_parts(result)
    print_page(console, parts)


def _inspection(it: Inspection, width: int, *, plain: bool) -> Iterator[Table | Text]:
    yield styled(f"{it.path}: {title(it)}", style="bold")
    yield _facts(_told(it))
    if it.tensors:
        yield styled()
        yield tensor_list(it.tensors, width, plain=plain)
    elif it.kinds:
        yield styled()
        yield _kinds(it.kinds, it.ranks)
    yield from finding_lines(it.findings)


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, value)
    return table


def _told(it: Inspection) -> Facts:
    ranks = f", {it.ranks} rank{'s' * (it.ranks > 1)}" if it.ranks else ""
    repeats = f", each KV head on {it.kv_repeats} of them" if (it.kv_repeats or 1) > 1 else ""
    yield "layout", f"{LAYOUTS[it.layout]}{ranks}{repeats}"
    if it.release:
        yield from _release(it.release)
    if it.config or it.raw_config:
        yield "model", settings(it.config or it.raw_config or {})
    if it.dtypes:
        yield ("parameters" if it.parameters.whole else "elements"), _parameters(it.parameters)
        yield (
            "dtypes",
            "; ".join(f"{d.dtype}: {d.tensors} tensors, {format_size(d.bytes)}" for d in it.dtypes),
        )
    if it.tokenizer:
        t = it.tokenizer
        yield "tokenizer", f"{t.kind or 'of no Llama'}, {t.words:,} words, {t.special} special ({t.file})"
    yield "checksums", "; ".join(it.checksums) or "none"
    for names in it.shared:
        yield "one storage", _some(names)
    yield from (("files" if n == 0 else "", line) for n, line in enumerate(_files(it)))
    if it.conversion:
        files = f"{len(it.conversion.files)} file{'s' * (len(it.conversion.files) > 1)}"
        memory = f"{it.conversion.peak_memory >> 20} MiB of memory"
        cast = f"with a cast about {it.conversion.peak_memory_with_cast >> 20} MiB"
        size = f"{format_size(it.conversion.bytes)} of {it.conversion.dtype}"
        yield "conversion", f"writes {size} in {files}, in about {memory} ({cast})"


def _release(release: Release) -> Facts:
    yield "told by", "; ".join(release.evidence)
    if release.alternatives:
        yield "could be", ", ".join(release.alternatives)


def _parameters(p: Parameters) -> str:
    layers = f"{p.layers:,}" + (f" ({p.per_layer:,} each)" if p.per_layer else "")
    parts = {"embedding": p.embedding, "norm": p.norm, "head": p.head, "other": p.other}
    named = [f"{name} {count:,}" for name, count in parts.items() if count]
    named[1 if p.embedding else 0 : 0] = [f"layers {layers}"] if p.layers else []
    return f"{p.total:,}" + (f": {', '.join(named)}" if named else "")


def _files(it: Inspection) -> Iterator[str]:
    """A line for each file, and one for a run of alike ones."""
    runs = [list(run) for _, run in groupby(it.files, lambda f: f.role == "weights" and (f.bytes, f.tensors))]
    for run in runs:
        if run[0].role == "weights" and len(run) > 2:
            each = f"{len(run)} of {format_size(run[0].bytes)}"
            yield f"{run[0].name} to {run[-1].name}: {each}{_holds(run[0], ' each')}"
        else:
            yield from (f"{file.name}: {format_size(file.bytes)}{_holds(file)}" for file in run)
    if len(it.files) > 1:
        yield f"{format_size(it.bytes)} in all"


def _holds(file: File, each: str = "") -> str:
    return f", {file.tensors} tensors{each}" if file.tensors else ""


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _kinds(kinds: Sequence[Kind], ranks: int | None) -> Table:
    """A line for each kind; what is alike for all of them is said above."""
    several = len({kind.dtype for kind in kinds}) > 1
    cuts = [_cut(kind, ranks) for kind in kinds]
    table = Table(box=None, pad_edge=False)
    table.add_column("kind of weight", overflow="fold")
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    if several:
        table.add_column("dtype", no_wrap=True)
    if any(cuts):
        table.add_column("on the ranks" if ranks else "", overflow="fold")
    for kind, cut in zip(kinds, cuts, strict=True):
        cells = [str(kind.count), shown(kind.shape), *([kind.dtype] if several else [])]
        table.add_row(_short(kind.name), *cells, *([cut] if any(cuts) else []))
    return table


def _short(name: str) -> str:
    return name.removeprefix("model.").removeprefix("layers.{layer}.").removesuffix(".weight")


def _cut(kind: Kind, ranks: int | None) -> str:
    if ranks is None:
        return f"a slice in each of {kind.copies} files" if kind.copies > 1 else ""
    if kind.cut is None:
        return "whole on each" if ranks > 1 else ""
    return f"cut on axis {kind.cut}" + (f", {kind.copies} copies" if kind.copies > 1 else "")
