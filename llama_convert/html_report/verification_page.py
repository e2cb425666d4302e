"""The page of a verification."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from llama_convert.findings import Finding
from llama_convert.html_report.color_scale import decades, spanning
from llama_convert.html_report.figure import non_finite_note
from llama_convert.html_report.findings_section import findings_section
from llama_convert.html_report.heat_map import heat_map
from llama_convert.html_report.line_plot import Series, line_plot
from llama_convert.html_report.number_format import (
    count,
    enumeration,
    error_order,
    format_number,
    format_percent,
    format_seconds,
)
from llama_convert.html_report.page import (
    Block,
    Column,
    Completion,
    Completions,
    Fact,
    Facts,
    Folded,
    Page,
    Paragraph,
    Section,
    Table,
    Tone,
)
from llama_convert.html_report.run_info import RunInfo
from llama_convert.html_report.tensor_grid import TensorValue
from llama_convert.html_report.visible_text import visible_token
from llama_convert.redaction import redact
from llama_convert.units import format_size
from llama_convert.verification.report import Check, CheckReport, Status, VerifyReport

Measures = Mapping[str, Any]

FORMATS = {"huggingface": "Hugging Face format", "meta": "Meta format"}

_FIGURES = {
    "top1_agreement": "Top-1 agreement",
    "max_kl": "Max KL divergence (nats)",
    "mean_kl": "Mean KL divergence (nats)",
    "max_logit_difference": "Max logit difference",
    "max_head_difference": "Max logit difference, LM head alone",
    "bits_per_byte": "Bits per byte",
    "perplexity": "Perplexity per token",
}
"""Measures that are a single number, and their names."""

_LIMITS = {
    **_FIGURES,
    "embedding": "Embedding, relative error",
    "probe": "One layer or the LM head, relative error",
    "divergence": "All layers together, relative error",
}
"""Limits, and their names."""

_LIMITED = {"probe": ("local", "probe", "head")}
"""The measures that a limit applies to, where it is not just the one of the same name."""

_LAYER_SERIES = {
    "divergence": ("end to end", "first"),
    "local": ("layer alone, text", "second"),
    "probe": ("layer alone, random vectors", "third"),
}
"""Measures of a layer: name and style of their lines."""

MAX_ROWS = 256
"""Rows of a table; those with the largest errors are kept."""


def verification_page(report: VerifyReport, run: RunInfo | None = None) -> Page:
    """The page of a verification.

    Findings come first if a check failed, the table of checks otherwise.
    """
    status, tone, summary = _verdict(report)
    findings = findings_section(_located(report))
    sections = [Section("Checks", list(_checks(report))), *([findings] if findings else [])]
    if not report.ok:
        sections.reverse()
    sections += _measurements(report)
    if report.completions:
        sections.append(Section("Completions", [_completions(report.completions)]))
    if report.files:
        sections.append(Section("Official checksums", [_official_checksums(report)]))
    if limits := [block for check in report.checks for block in _limits(check)]:
        sections.append(Section("Limits", limits))
    if run:
        sections.append(run.section)
    return Page(
        title=f"Verification report: {folder_name(report.path)}"
        + (f" vs {folder_name(report.source)}" if report.source else ""),
        status=status,
        tone=tone,
        summary=summary,
        facts=list(_facts(report)),
        sections=sections,
    )


def folder_name(path: Path | str) -> str:
    """The last component of a path, or of its URL."""
    printed = redact(str(path))
    return PurePosixPath(printed).name or printed


def _verdict(report: VerifyReport) -> tuple[str, Tone, str]:
    """The result in a word, its tone and in sentences; INCOMPLETE if every check was skipped."""
    passed, failed, skipped = (
        [check.check.value for check in report.checks if check.status is status]
        for status in (Status.PASS, Status.FAIL, Status.SKIPPED)
    )
    if not passed and not failed:
        return "INCOMPLETE", "warn", "No check ran."
    warnings = sum(finding.is_warning for check in report.checks for finding in check.findings)
    rest = f" Skipped: {enumeration(skipped)}." if skipped else ""
    rest += f" {count(warnings, 'warning')}." if warnings else ""
    n_run = len(passed) + len(failed)
    if failed:
        return "FAIL", "bad", f"{len(failed)} of {count(n_run, 'check')} failed: {enumeration(failed)}.{rest}"
    return "PASS", "good", f"{len(passed)} of {count(n_run, 'check')} passed: {enumeration(passed)}.{rest}"


def _facts(report: VerifyReport) -> Iterator[Fact]:
    yield "Output", f"{report.path} ({FORMATS.get(report.format, report.format)})"
    if report.source:
        format_name = report.source_format or "unknown format"
        yield "Source", f"{report.source} ({FORMATS.get(format_name, format_name)})"
    else:
        yield "Source", "none: the output is verified by itself"
    yield "Release", report.release or "not recognized"


def _located(report: VerifyReport) -> list[tuple[str | None, Finding]]:
    return [(check.check.value, finding) for check in report.checks for finding in check.findings]


def _checks(report: VerifyReport) -> Iterator[Block]:
    """A row for each check; what else was checked and measured is folded below."""
    columns = [Column("Check"), Column("Status", "status"), Column("Summary"), Column("Time", "number")]
    rows = [
        (
            check.check.value,
            check.status.value,
            check.summary,
            "–" if check.status is Status.SKIPPED else format_seconds(check.seconds),
        )
        for check in report.checks
    ]
    yield Table(columns, rows)
    details = [(check.check.value, check.details) for check in report.checks if check.details]
    if details:
        yield Folded("Details", [Table([Column("Check"), Column("Checked and measured")], details)])


def _measurements(report: VerifyReport) -> Iterator[Section]:
    """A section for each group of measures that exists."""
    measures: dict[Check, Measures] = {check.check: check.measures for check in report.checks}
    if figures := [figure for each in measures.values() for figure in _single_figures(each)]:
        yield Section("Key figures", [Facts(figures, prominent=True)])
    if tensors := measures.get(Check.WEIGHTS, {}).get("tensors"):
        yield weights_section(tensors)
    logits = measures.get(Check.LOGITS, {})
    if logits.get("layers"):
        yield _layers_section(logits)
    if logits.get("kl"):
        yield _kl_section(logits)
    if norms := measures.get(Check.VALUES, {}).get("norms"):
        yield _norms_section(norms)


def _single_figures(measures: Measures) -> Iterator[Fact]:
    for key, name in _FIGURES.items():
        if key in measures:
            yield name, (format_percent if key == "top1_agreement" else format_number)(measures[key])


def weights_section(tensors: Sequence[Measures], n_compared: int | None = None) -> Section:
    """The relative error of every tensor.

    Args:
        tensors: for each ``tensor`` (its name), ``elements``, ``different``, ``max_difference`` and
            ``relative_difference``.
        n_compared: the number of tensors that were compared, if ``tensors`` has only those that differ.
    """
    n_compared = n_compared or len(tensors)
    title = "Weights: relative error by layer and kind"
    different = [row for row in tensors if row["different"]]
    if different:
        caption = f"{len(different):,} of {count(n_compared, 'tensor')} differ."
        caption += non_finite_note(row["relative_difference"] for row in different)
    else:
        caption = f"All {count(n_compared, 'tensor')} are identical."
    caption += (
        " The relative error of a tensor is the norm of the difference divided by the norm of the source."
    )
    values = [
        TensorValue(row["tensor"], row["relative_difference"], _difference(row), is_zero=not row["different"])
        for row in tensors
    ]
    blocks: list[Block] = [heat_map(title, caption, values, decades("identical"))]
    if different:
        worst = sorted(different, key=lambda row: error_order(row["relative_difference"]), reverse=True)
        columns = [
            Column("Tensor", "code"),
            Column("Relative error", "number"),
            Column("Max difference", "number"),
            Column("Elements that differ", "number"),
        ]
        rows = [
            (
                row["tensor"],
                format_number(row["relative_difference"]),
                format_number(row["max_difference"]),
                f"{row['different']:,} of {row['elements']:,}",
            )
            for row in worst[:MAX_ROWS]
        ]
        blocks.append(Folded(_table_summary("Tensors that differ", len(different)), [Table(columns, rows)]))
    return Section(title, blocks)


def _table_summary(title: str, n_rows: int) -> str:
    shown = f"top {MAX_ROWS} of {n_rows:,} by error" if n_rows > MAX_ROWS else f"{n_rows:,}"
    return f"{title} ({shown})"


def _difference(row: Measures) -> str:
    if not row["different"]:
        return "identical"
    return (
        f"relative error {format_number(row['relative_difference'])}, "
        f"max difference {format_number(row['max_difference'])}, "
        f"{row['different']:,} of {row['elements']:,} elements differ"
    )


def _norms_section(norms: Sequence[Measures]) -> Section:
    title = "Values: root mean square by layer and kind"
    values = [
        TensorValue(row["tensor"], row["rms"], format_number(row["rms"]), is_zero=row["rms"] == 0)
        for row in norms
    ]
    caption = "Root mean square of the elements of each tensor." + non_finite_note(v.value for v in values)
    return Section(title, [heat_map(title, caption, values, spanning(values))])


def _layers_section(measures: Measures) -> Section:
    title = "Per-layer relative error"
    rows: Sequence[Measures] = measures["layers"]
    limit: float = measures["threshold"]["probe"]
    above = [
        index for index, row in enumerate(rows) if not all(row[name] <= limit for name in ("local", "probe"))
    ]
    if above:
        caption = f"Layer {rows[above[0]]['layer']} is the first above the limit."
        caption += f" {len(above)} of {count(len(rows), 'layer')} are." if len(above) > 1 else ""
    else:
        caption = "No layer is above the limit."
    caption += non_finite_note(row[name] for row in rows for name in _LAYER_SERIES)
    caption += (
        " A layer alone gets the same input in source and output: hidden states of a text, or random vectors."
        " End to end, each model continues from its own hidden states, so rounding accumulates."
    )
    series = [
        Series(
            name,
            style,  # type: ignore[arg-type]
            [row[key] for row in rows],
            [f"layer {row['layer']}, {name}: {format_number(row[key])}" for row in rows],
        )
        for key, (name, style) in _LAYER_SERIES.items()
    ]
    plot = line_plot(
        title,
        caption,
        "layer",
        [str(row["layer"]) for row in rows],
        series,
        limit,
        f"limit for a layer alone, {format_number(limit)}",
        (above[0], f"layer {rows[above[0]]['layer']}") if above else None,
    )
    return Section(title, [plot])


def _kl_section(measures: Measures) -> Section:
    title = "KL divergence per position"
    kl: Sequence[float] = measures["kl"]
    positions: Sequence[int] = measures["positions"]
    limit: float = measures["threshold"]["max_kl"]
    predictions: Sequence[Measures] = measures.get("predictions") or [{}] * len(kl)
    worst, position = max(zip(kl, positions, strict=True), key=lambda pair: error_order(pair[0]))
    caption = f"Max: {format_number(worst)} nats at position {position:,}." + non_finite_note(kl)
    titles = [
        f"position {position:,}"
        + (f", token {_token(row, 'token')}" if row else "")
        + f": {format_number(value)}"
        for value, position, row in zip(kl, positions, predictions, strict=True)
    ]
    plot = line_plot(
        title,
        caption,
        "position",
        [f"{position:,}" for position in positions],
        [Series("KL(source || output)", "second", kl, titles)],
        limit,
        f"limit, {format_number(limit)}",
    )
    order = sorted(range(len(kl)), key=lambda index: error_order(kl[index]), reverse=True)
    rows = [_kl_row(positions[index], kl[index], predictions[index]) for index in sorted(order[:MAX_ROWS])]
    columns = [Column("Position", "number")]
    columns += [Column("Token", "code")] if predictions[0] else []
    columns += [Column("KL (nats)", "number")]
    if predictions[0]:
        columns += [Column("Top-1 source", "code"), Column("Top-1 output", "code"), Column("Top-1", "status")]
    table = Table(columns, rows)
    return Section(title, [plot, Folded(_table_summary("Positions", len(kl)), [table])])


def _kl_row(position: int, kl: float, prediction: Measures) -> tuple[str, ...]:
    if not prediction:
        return f"{position:,}", format_number(kl)
    source, output = prediction["source_top1"], prediction["output_top1"]
    return (
        f"{position:,}",
        _token(prediction, "token"),
        format_number(kl),
        _token(prediction, "source_top1"),
        _token(prediction, "output_top1"),
        "same" if source == output else "differs",
    )


def _token(prediction: Measures, key: str) -> str:
    """The text of a token in quotes, and its id."""
    text = prediction.get(f"{key}_text")
    return f"{visible_token(text)} ({prediction[key]})" if text is not None else f"{prediction[key]}"


def _completions(texts: Mapping[str, str]) -> Completions:
    """Completions side by side, the first difference of source and output marked."""
    order = sorted(texts, key=lambda side: {"source": 0, "output": 1}.get(side, 2))
    if not {"source", "output"} <= texts.keys():
        return Completions("", [Completion(side, texts[side], "", "") for side in order])
    source, output = texts["source"], texts["output"]
    if source == output:
        return Completions(
            "Source and output are identical.", [Completion(side, texts[side], "", "") for side in order]
        )
    pairs = enumerate(zip(source, output, strict=False))
    first = next((n for n, (a, b) in pairs if a != b), min(len(source), len(output)))
    note = f"The first difference is after {count(first, 'character')}."
    return Completions(note, [_split(side, texts[side], first) for side in order])


def _split(side: str, text: str, first: int) -> Completion:
    """A text that differs from another at index ``first``; the rest of that word is the difference."""
    end = next((n for n in range(first + 1, len(text)) if text[n].isspace()), len(text))
    return Completion(side, text[:first], text[first:end] or "(end)", text[end:])


def _official_checksums(report: VerifyReport) -> Folded:
    verdicts = Counter(file.verdict for file in report.files)
    columns = [
        Column("File", "code"),
        Column("Verdict", "status"),
        Column("Provenance"),
        Column("Checksum", "code"),
        Column("Size", "number"),
    ]
    rows = [
        (
            file.file,
            file.verdict,
            "; ".join(filter(None, [file.message, file.provenance])),
            f"{file.algorithm} {file.digest}" if file.digest else "–",
            format_size(file.size),
        )
        for file in report.files
    ]
    summary = ", ".join(f"{number:,} {verdict}" for verdict, number in verdicts.items())
    return Folded(f"{count(len(rows), 'file')}: {summary}", [Table(columns, rows)])


def _limits(check: CheckReport) -> Iterator[Block]:
    """The limits of a check with the max of the measures that each applies to, and the reason for them."""
    limits: dict[str, Any] = dict(check.measures.get("threshold", {}))
    if "limit" in check.measures:
        limits["bits_per_byte"] = check.measures["limit"]
    reason = limits.pop("reason", None)
    if not limits:
        return
    rows = []
    for name, limit in limits.items():
        value = max(_limited(check.measures, name), key=error_order, default=math.nan)
        status = "within" if value <= limit else "exceeded"
        rows.append((_LIMITS.get(name, name), format_number(limit), format_number(value), status))
    columns = [
        Column(f"Limit of {check.check.value}"),
        Column("Limit", "number"),
        Column("Max", "number"),
        Column("Status", "status"),
    ]
    yield Table(columns, rows)
    if reason:
        yield Paragraph(f"Reason: {reason}.")


def _limited(measures: Measures, name: str) -> Iterator[float]:
    """The measures that a limit applies to, of the model and of every layer."""
    for key in _LIMITED.get(name, (name,)):
        for row in (measures, *measures.get("layers", ())):
            if key in row:
                yield row[key]
