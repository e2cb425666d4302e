"""The page of a comparison of two checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llama_convert.html_report.findings_section import findings_section
from llama_convert.html_report.inspection_page import checkpoint_facts, format_value
from llama_convert.html_report.number_format import count, enumeration
from llama_convert.html_report.page import Block, Column, Folded, Page, Section, Table, Tone
from llama_convert.html_report.run_info import RunInfo
from llama_convert.html_report.verification_page import MAX_ROWS, folder_name, weights_section
from llama_convert.inspection.records import Comparison, Inspection, Mismatch


def comparison_page(result: Comparison, run: RunInfo | None = None) -> Page:
    """The page of a comparison: what differs, then both checkpoints side by side."""
    findings = findings_section(
        [
            *((None, finding) for finding in result.findings),
            *(("A", finding) for finding in result.a.findings),
            *(("B", finding) for finding in result.b.findings),
        ]
    )
    status, tone, summary = _verdict(result)
    sections = [*([findings] if findings else []), *_differences(result)]
    if findings and result.a.ok and result.b.ok and not result.findings:
        sections.append(sections.pop(0))
    sections.append(Section("Both checkpoints", [_both(result)]))
    if run:
        sections.append(run.section)
    return Page(
        title=f"Comparison report: {folder_name(result.a.path)} vs {folder_name(result.b.path)}",
        status=status,
        tone=tone,
        summary=summary,
        facts=[("A", str(result.a.path)), ("B", str(result.b.path))],
        sections=sections,
    )


def _verdict(result: Comparison) -> tuple[str, Tone, str]:
    """The result in a word, its tone and in a sentence."""
    if not result.same:
        counts = {
            "hyper-parameter": result.config,
            "tensor name": (*result.only_in_a, *result.only_in_b),
            "shape": result.shapes,
            "dtype": result.dtypes,
            "tokenizer property": result.tokenizer,
            "tensor's values": result.values,
        }
        found = [_counted(len(items), noun) for noun, items in counts.items() if items]
        return "DIFFERENT", "bad", f"Different: {enumeration(found)}."
    if not result.ok:
        return "INCOMPLETE", "warn", "No difference found, but not everything could be compared."
    if result.compared is None:
        return "SAME", "good", "The headers match. Values were not compared: add --stats."
    return "SAME", "good", f"The headers and the values of {count(result.compared, 'tensor')} match."


def _counted(number: int, noun: str) -> str:
    if noun.startswith("tensor's"):
        return f"the values of {count(number, 'tensor')}"
    if noun.endswith("property"):
        return f"{number} tokenizer {'property' if number == 1 else 'properties'}"
    return count(number, noun)


def _differences(result: Comparison) -> Iterator[Section]:
    """A section for each kind of difference that was found."""
    for title, column, found in (
        ("Config", "Hyper-parameter", result.config),
        ("Tokenizer", "Property", result.tokenizer),
        ("Shapes", "Tensor", result.shapes),
        ("Dtypes", "Tensor", result.dtypes),
    ):
        if found:
            yield Section(title, [_side_by_side(column, found)])
    names = [(name, "A") for name in result.only_in_a] + [(name, "B") for name in result.only_in_b]
    if names:
        table = Table([Column("Tensor", "code"), Column("Only in")], names[:MAX_ROWS])
        yield Section(
            "Tensor names", [_folded(f"{count(len(names), 'tensor')} in only one of them", names, table)]
        )
    if result.compared is not None and (tensors := _tensor_differences(result)):
        yield weights_section(tensors, result.compared)


def _side_by_side(column: str, found: Sequence[Mismatch]) -> Block:
    rows = [(each.name, format_value(each.a), format_value(each.b)) for each in found[:MAX_ROWS]]
    table = Table([Column(column, "code"), Column("A", "code"), Column("B", "code")], rows)
    return table if len(found) <= 20 else _folded(count(len(found), "difference"), found, table)


def _folded(summary: str, items: Sequence[object], table: Table) -> Folded:
    more = f" (the first {MAX_ROWS})" if len(items) > MAX_ROWS else ""
    return Folded(summary + more, [table])


def _tensor_differences(result: Comparison) -> list[Mapping[str, Any]]:
    """Rows for `weights_section`: all compared tensors if their names are known, else those that differ."""
    different = {value.name: value for value in result.values}
    excluded = {*result.only_in_b, *(each.name for each in result.shapes)}
    names = [name for name in _tensor_names(result.b) if name not in excluded]
    if len(names) != result.compared or not different.keys() <= set(names):
        names = list(different)
    same = {"different": 0, "max_difference": 0.0, "relative_difference": 0.0, "elements": 0}
    return [{"tensor": name, **(_row(different[name]) if name in different else same)} for name in names]


def _row(value: Any) -> dict[str, Any]:
    row: dict[str, Any] = asdict(value)
    del row["name"]
    return row


def _tensor_names(checkpoint: Inspection) -> Iterator[str]:
    """The names of a checkpoint's tensors, as far as its kinds and its number of layers show them."""
    n_layers = int((checkpoint.config or {}).get("n_layers", 0))
    for kind in checkpoint.kinds:
        if "{layer}" not in kind.name:
            yield kind.name
        elif kind.count == n_layers:
            yield from (kind.name.replace("{layer}", str(layer)) for layer in range(n_layers))


def _both(result: Comparison) -> Table:
    facts = [dict(checkpoint_facts(each)) for each in (result.a, result.b)]
    names = dict.fromkeys([*facts[0], *facts[1]])
    rows = [(name, facts[0].get(name, "–"), facts[1].get(name, "–")) for name in names]
    return Table([Column("Property"), Column("A"), Column("B")], rows)
