"""A verification as one page to show: HTML with its plots inside it, without scripts and without a network.

matplotlib draws each plot twice, for wide and for narrow screens, in colours that are only names; the page's
style sheet says what they are, by day, by night and on paper.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_convert import __version__
from llama_convert.errors import OutputError
from llama_convert.units import format_size
from llama_convert.verify.report import Finding, Level, LevelReport, Status, VerifyReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measures = dict[str, Any]
Row = dict[str, Any]
Point = tuple[float, float]

WIDE, NARROW = 880, 380
"""Pixels across at which a plot is drawn; the page scales it from there."""

ROW = 24
"""Pixels from one line of a scale to the next, at least."""

LAYER = re.compile(r"\blayers\.(\d{1,4})\.")
"""What a tensor's name says of its layer, in either layout."""

LABELLED = 5
"""How many of the tensors that differ are named."""

PANELS = 16
"""How many kinds of tensors get a panel; a Llama has twelve."""

# Stand-ins in what matplotlib draws for colours that the style sheet knows by name.
COLOURS = {
    name: f"#00000{number}"
    for number, name in enumerate(("ink", "soft", "line", "accent", "second", "good", "bad", "tint"), start=1)
}
INK, SOFT, LINE, ACCENT, SECOND, GOOD, BAD, TINT = COLOURS.values()

STYLE: dict[Any, object] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid.axis": "y",
    "axes.labelcolor": SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 13,
    "grid.color": LINE,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0,
    "legend.fontsize": 13,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "path.simplify": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
}

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Verdict:
    """The answer, in a word and in a sentence."""

    word: str
    sentence: str
    tone: str
    """``good``, ``bad`` or ``warn``."""


@dataclass(frozen=True)
class Plot:
    """A picture for wide screens, the same for narrow ones, and in words what they show."""

    title: str
    caption: str
    wide: str
    narrow: str
    numbered: Sequence[tuple[str, str]] = ()
    """What its numerals stand for, from 1 on: a tensor's name and what is said of it."""


@dataclass(frozen=True)
class Threshold:
    """A limit, and how near to it the worst of what was measured came."""

    name: str
    limit: float
    reached: float | None


@dataclass(frozen=True)
class Thresholds:
    """The limits of one level, and why they are where they are."""

    level: Level
    limits: Sequence[Threshold]
    reasons: Sequence[str]


def write_page(report: VerifyReport, file: Path, *, when: datetime | None = None) -> None:
    """Write ``report`` as one HTML page that needs nothing else; ``when`` it was made, now unless given.

    Raises:
        OutputError: ``file`` cannot be written.
    """
    page = _render(report, when or datetime.now().astimezone())
    try:
        file.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError("OUTPUT_IO", f"cannot be written: {error.strerror or error}", file=file) from error


def _render(report: VerifyReport, when: datetime) -> str:
    """The page's text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llama_convert", "verify"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "seconds": _seconds, "size": format_size}
    return environment.get_template("page.html.jinja").render(
        report=report,
        verdict=_verdict(report),
        findings=_findings(report),
        figures=[figure for level in report.levels for figure in _figures(level.measures)],
        plots=_plots(report),
        thresholds=[found for level in report.levels if (found := _thresholds(level))],
        when=when,
        version=__version__,
    )


# What is said in words


def _verdict(report: VerifyReport) -> Verdict:
    """FAIL if a level failed, PASS if all were run and none did."""
    passed, failed, skipped = (
        [level.level.value for level in report.levels if level.status is status]
        for status in (Status.PASS, Status.FAIL, Status.NOT_RUN)
    )
    warnings = sum(finding.warning for level in report.levels for finding in level.findings)
    rest = f" Not looked at: {_enumerated(skipped)}." if skipped else ""
    rest += f" {warnings} warning{'s' * (warnings > 1)}." if warnings else ""
    if failed:
        sentence = f"{len(failed)} of {len(report.levels)} levels failed: {_enumerated(failed)}.{rest}"
        return Verdict("FAIL", sentence, "bad")
    if not passed:
        return Verdict("incomplete", "Nothing was looked at.", "warn")
    sentence = f"Nothing is wrong with {_enumerated(passed)}.{rest}"
    return Verdict("incomplete", sentence, "warn") if skipped else Verdict("PASS", sentence, "good")


def _enumerated(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _findings(report: VerifyReport) -> list[tuple[Level, Finding]]:
    """Errors before warnings; among them the cheapest level first, whose faults explain those of others."""
    findings = [(level.level, finding) for level in report.levels for finding in level.findings]
    return sorted(findings, key=lambda found: found[1].warning)


def _figures(measures: Measures) -> Iterator[tuple[str, str]]:
    """The single figures that people ask for, by name."""
    if (agreement := measures.get("top1_agreement")) is not None:
        # Rounded down: 100 % is said only of what is.
        finite = math.isfinite(agreement)
        percent = f"{math.floor(agreement * 1e4) / 1e2:g}" if finite else _figure(agreement)
        yield "top-1 agreement", f"{percent} %"
    names = {
        "max_kl": "largest KL",
        "mean_kl": "mean KL",
        "max_logit_difference": "largest logit difference",
        "bits_per_byte": "bits per byte",
        "perplexity": "perplexity",
    }
    yield from (
        (name, _figure(measures[key])) for key, name in names.items() if measures.get(key) is not None
    )


def _thresholds(level: LevelReport) -> Thresholds | None:
    """The limits that a level's measures were held against; None where there are none."""
    measures = level.measures
    given: Measures = measures.get("threshold") or {}
    limits = [
        Threshold(name.replace("_", " ").replace("kl", "KL"), limit, _reached(measures, name))
        for name, limit in given.items()
        if isinstance(limit, int | float)
    ]
    if (limit := measures.get("limit")) is not None:
        limits.append(Threshold("bits per byte", limit, measures.get("bits_per_byte")))
    reasons = [reason for reason in (given.get("reason"), measures.get("reason")) if reason]
    return Thresholds(level.level, limits, reasons) if limits else None


def _reached(measures: Measures, name: str) -> float | None:
    """The worst that was measured of ``name``, for the whole or in any layer."""
    if measures.get(name) is not None:
        return float(measures[name])
    return max((value for _, value in _series(measures.get("layers"), name)), key=_badness, default=None)


def _badness(value: float) -> tuple[bool, float]:
    """Orders values from good to bad: NaN and infinity are worse than any number."""
    finite = math.isfinite(value)
    return not finite, value if finite else 0.0


def _figure(value: float) -> str:
    """Three digits: ``0.693``, ``1.25 × 10⁻⁷``, ``NaN``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    power = _power(int(exponent))
    mantissa = mantissa.rstrip("0").rstrip(".")
    return power if mantissa == "1" else f"{mantissa} × {power}"


def _power(exponent: int) -> str:
    """``10⁻⁷``."""
    return f"10{str(exponent).translate(SUPERSCRIPT)}"


def _seconds(seconds: float) -> str:
    """``0.04 s``, ``12.3 s``, ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return "{} min {} s".format(*divmod(round(seconds), 60))


# How a plot is made


@contextmanager
def _style() -> Iterator[None]:
    """Set matplotlib as it comes, whatever its user's own settings are, with ours on top."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _plots(report: VerifyReport) -> list[Plot]:
    """A plot for each of the measures that there are."""
    makers = {
        Level.VALUES: (_norms_plot,),
        Level.WEIGHTS: (_weights_plot,),
        Level.LOGITS: (_layers_plot, _kl_plot, _bits_plot),
    }
    levels = [level for level in report.levels if level.measures and level.level in makers]
    if not levels:
        return []
    with _style():
        made = (make(level) for level in levels for make in makers[level.level])
        return [plot for plot in made if plot]


def _plot(
    title: str,
    caption: str,
    draw: Callable[[Figure], None],
    heights: tuple[int, int],
    numbered: Sequence[tuple[str, str]] = (),
) -> Plot:
    """Draw a plot in both widths, each with its own of ``heights``."""
    wide, narrow = (
        _svg(f"{title}. {caption}", draw, width, height)
        for width, height in zip((WIDE, NARROW), heights, strict=True)
    )
    return Plot(title, caption, wide, narrow, numbered)


def _svg(label: str, draw: Callable[[Figure], None], width: int, height: int) -> str:
    """What ``draw`` draws, as an element to be put into HTML."""
    import matplotlib
    from markupsafe import escape
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = f"{label} {width}"
    figure = Figure(figsize=(width / 72, height / 72))
    draw(figure)
    text = StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"\s*<defs>\s*<style.*?</defs>", "", text.getvalue(), count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{body}'


def _axes(figure: Figure, *, left: int = 64, right: int = 10, top: int = 22, bottom: int = 42) -> Axes:
    """Axes with margins in pixels."""
    width, height = figure.get_size_inches() * 72
    return figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )


def _narrow(figure: Figure) -> bool:
    return bool(figure.get_figwidth() * 72 < WIDE)


def _series(rows: Iterable[Row] | None, name: str, position: str | None = None) -> list[Point]:
    """Where and what each of ``rows`` has of ``name``; those that have none are left out."""
    return [
        (float(row.get(position, index) if position else index), float(row[name]))
        for index, row in enumerate(rows or ())
        if row.get(name) is not None
    ]


class _Scale:
    """Powers of ten up the side, with a row below them for zeros and one above for NaN and infinity."""

    def __init__(self, axes: Axes, values: Sequence[float], zero: str = "0") -> None:
        logs = [math.log10(value) for value in values if math.isfinite(value) and value > 0]
        low = math.floor(min(logs, default=0))
        high = max(math.ceil(max(logs, default=0)), low + 1)
        extremes = {zero: any(v <= 0 for v in values), "NaN, ∞": any(not math.isfinite(v) for v in values)}
        room = max(axes.bbox.height - ROW * sum(extremes.values()), ROW)
        row = (high - low) * ROW / room
        self.zeros, self.infinities = low - row, high + row
        ticks = range(low, high + 1, math.ceil((high - low) * ROW / room)) if logs else ()
        rows = {float(tick): _power(tick) for tick in ticks}
        places = zip((self.zeros, self.infinities), extremes.items(), strict=True)
        rows |= {place: label for place, (label, shown) in places if shown}
        axes.set_yticks(list(rows), list(rows.values()))
        margin = (high - low) * 0.06
        axes.set_ylim(min(rows) - margin, max(*rows, high if logs else self.zeros) + margin)
        axes.grid(axis="y", linewidth=1)

    def place(self, value: float) -> float:
        """How high ``value`` stands."""
        if not math.isfinite(value):
            return self.infinities
        return math.log10(value) if value > 0 else self.zeros

    def line(self, axes: Axes, points: Sequence[Point], colour: str, label: str, marker: str) -> None:
        """Draw ``points`` as a line; where one is no number it breaks, and a cross is in the row above."""
        broken = [x for x, value in points if not math.isfinite(value)]
        dotted = broken or axes.bbox.width / len(points) > 5
        axes.plot(
            [x for x, _ in points],
            [self.place(value) if math.isfinite(value) else math.nan for _, value in points],
            color=colour,
            label=label,
            marker=marker if dotted else "",
            markersize=4,
        )
        self.crosses(axes, broken)

    def crosses(self, axes: Axes, where: Sequence[float]) -> None:
        """Mark what is NaN or infinite."""
        if where:
            axes.plot(where, [self.infinities] * len(where), "x", color=BAD, markersize=7, markeredgewidth=2)

    def limit(self, axes: Axes, limit: float, colour: str, label: str) -> None:
        """Draw a line that was not to be passed."""
        axes.axhline(self.place(limit), color=colour, linewidth=1.2, linestyle=(0, (5, 4)), label=label)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=columns, columnspacing=1.6)


def _not_finite(values: Iterable[float]) -> str:
    """A sentence on the values that are no numbers; empty where all are."""
    count = sum(not math.isfinite(value) for value in values)
    return f" NaN or infinite: {count:,}, crosses on the upper edge." if count else ""


# The plots


def _weights_plot(level: LevelReport) -> Plot | None:
    """How far each tensor is from its counterpart, in the order of the model."""
    rows: list[Row] = level.measures.get("tensors") or []
    points = _series(rows, "relative_difference")
    if not points:
        return None
    different = [point for point in points if rows[int(point[0])].get("different") or point[1] != 0]
    worst = sorted(different, key=lambda point: _badness(point[1]), reverse=True)[:LABELLED]
    colour = BAD if level.status is Status.FAIL else ACCENT

    def draw(figure: Figure) -> None:
        axes = _axes(figure, top=22 if different else 4)
        frame = [1e-6, 1.0] if different else []
        scale = _Scale(axes, [0.0, *frame, *(value for _, value in points)], "identical")
        axes.set_xlim(-0.5 - len(rows) / 100, len(rows) - 0.5 + len(rows) / 100)
        starts = _layer_starts([str(row.get("tensor", "")) for row in rows])
        _foot(axes, "tensors in the model's order" + (", by layer" if starts else ""), starts)
        same = sorted({x for x, _ in points} - {x for x, _ in different})
        _blocks(axes, [int(x) for x in same], scale.zeros, len(rows))
        _stems(axes, scale, different, colour, len(rows))
        scale.crosses(axes, [x for x, value in different if not math.isfinite(value)])
        _numerals(axes, [(x, scale.place(value)) for x, value in worst])

    if different:
        caption = f"{len(different):,} of {len(points):,} tensors differ."
    else:
        caption = f"All {len(points):,} tensors are identical."
    caption += _not_finite(value for _, value in points)
    heights = (300, 280) if different else (84, 84)
    numbered = [(str(rows[int(x)].get("tensor", "")), _difference(rows[int(x)])) for x, _ in worst]
    return _plot("Relative difference of each tensor", caption, draw, heights, numbered)


def _difference(row: Row) -> str:
    """How a tensor differs, as far as that is known."""
    parts = [f"relative difference {_figure(row['relative_difference'])}"]
    if row.get("max_difference") is not None:
        parts.append(f"largest {_figure(row['max_difference'])}")
    if row.get("different") is not None:
        whole = f" of {row['elements']:,}" if row.get("elements") is not None else ""
        parts.append(f"{row['different']:,}{whole} values differ")
    return "; ".join(parts)


def _blocks(axes: Axes, places: Sequence[int], height: float, count: int) -> None:
    """A block for each of ``places``; neighbours run together where there is no room between them."""
    gap = 0.15 if axes.bbox.width / count > 6 else 0.0
    runs = [[place] for place in places]
    if not gap:
        grouped = itertools.groupby(enumerate(places), lambda pair: pair[1] - pair[0])
        runs = [[place for _, place in run] for _, run in grouped]
    xs = [x for run in runs for x in (run[0] - 0.5 + gap, run[-1] + 0.5 - gap, math.nan)]
    axes.plot(xs, [height] * len(xs), color=GOOD, linewidth=8, solid_capstyle="butt")


def _stems(axes: Axes, scale: _Scale, points: Sequence[Point], colour: str, count: int) -> None:
    """A stem for each point, and a head where there is room for heads."""
    finite = [(x, scale.place(value)) for x, value in points if math.isfinite(value)]
    xs = [position for x, _ in finite for position in (x, x, math.nan)]
    ys = [height for _, top in finite for height in (scale.zeros, top, math.nan)]
    pitch = axes.bbox.width / count
    axes.plot(xs, ys, color=colour, linewidth=min(max(pitch * 0.6, 0.8), 2), solid_capstyle="butt")
    if len(finite) <= 150:
        axes.plot([x for x, _ in finite], [y for _, y in finite], "o", color=colour, markersize=5)


def _layer_starts(names: Sequence[str]) -> dict[int, str]:
    """Where the first tensor of each layer is, and the layer's number."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if match := LAYER.search(name):
            first.setdefault(match[1], index)
    return {index: layer for layer, index in first.items()}


def _numerals(axes: Axes, points: Sequence[Point]) -> None:
    """Number ``points`` from 1 on, each above its point and clear of those before it."""
    taken: list[Point] = []
    for number, point in enumerate(points, start=1):
        x, y = axes.transData.transform(point)
        y += 8
        while any(abs(x - other_x) < 11 and abs(y - other_y) < 13 for other_x, other_y in taken):
            y += 13
        taken.append((x, y))
        offset = y - axes.transData.transform(point)[1]
        axes.annotate(
            str(number),
            point,
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            weight="bold",
            annotation_clip=False,
        )


def _layers_plot(level: LevelReport) -> Plot | None:
    """How far the layers are from the source's, carried through and each for itself."""
    rows = level.measures.get("layers")
    limits: Measures = level.measures.get("threshold") or {}
    series = {name: _series(rows, name, "layer") for name in ("divergence", "probe")}
    points = list(itertools.chain(*series.values()))
    if not points:
        return None
    values = [value for _, value in points]
    held = [limits[name] for name in series if limits.get(name) is not None]
    first = min(
        (x for name, points in series.items() for x, value in points if _exceeds(value, limits.get(name))),
        default=None,
    )

    def draw(figure: Figure) -> None:
        axes = _axes(figure, top=56 if _narrow(figure) else 40)
        scale = _Scale(axes, [*values, *held])
        for (name, line), colour, marker in zip(series.items(), (ACCENT, SECOND), "os", strict=True):
            if line:
                scale.line(axes, line, colour, name, marker)
            if line and limits.get(name) is not None:
                scale.limit(axes, limits[name], colour, f"its limit, {_figure(limits[name])}")
        _foot(axes, "layer", {layer: str(layer) for layer in sorted({int(x) for x, _ in points})})
        if first is not None:
            _first_above(axes, first)
        _legend(axes, 2 if _narrow(figure) else 4)

    if first is not None:
        caption = f"Layer {first:.0f} is the first {'above its limit' if held else 'that has no number'}."
    else:
        caption = "No layer is above its limit." if held else "The layers, first to last."
    return _plot("Difference of each layer", caption + _not_finite(values), draw, (340, 320))


def _exceeds(value: float, limit: float | None) -> bool:
    return not math.isfinite(value) or (limit is not None and value > limit)


def _first_above(axes: Axes, layer: float) -> None:
    """Mark the first layer that exceeds its limit, with words on its left, where the lines are still low."""
    low, high = axes.get_xlim()
    left = layer - low > (high - low) / 5
    axes.axvline(layer, color=BAD, linewidth=6, alpha=0.22)
    axes.annotate(
        f"layer {layer:.0f}",
        (layer, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-8 if left else 8, -2),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        color=BAD,
        weight="bold",
    )


def _foot(axes: Axes, label: str, ticks: dict[int, str]) -> None:
    """Label places along the foot, as many as there is room for at even distances."""
    column = 20 + 8 * max(map(len, ticks.values()), default=0)
    step = next(step for step in _round_numbers() if len(ticks) * column <= axes.bbox.width * step)
    shown = dict(list(ticks.items())[::step])
    axes.set_xticks(list(shown), list(shown.values()))
    axes.set_xlabel(label)


def _round_numbers() -> Iterator[int]:
    """Count 1, 2, 5, 10, 20, 50 and so on."""
    return (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))


def _kl_plot(level: LevelReport) -> Plot | None:
    """How far the predictions are from the source's at each position."""
    kl: list[float] = level.measures.get("kl") or []
    if not kl:
        return None
    positions: Sequence[int] = level.measures.get("positions") or range(len(kl))
    limit = (level.measures.get("threshold") or {}).get("max_kl")
    worst, position = max(zip(kl, positions, strict=False), key=lambda pair: _badness(pair[0]))

    def draw(figure: Figure) -> None:
        axes = _axes(figure, top=40)
        scale = _Scale(axes, kl if limit is None else [*kl, limit])
        scale.line(axes, list(enumerate(kl)), ACCENT, "divergence", "o")
        if limit is not None:
            scale.limit(axes, limit, ACCENT, f"its limit, {_figure(limit)}")
        _foot(axes, "position", {index: f"{position:,}" for index, position in enumerate(positions)})
        _legend(axes, 2)

    caption = f"The worst, {_figure(worst)}, is at position {position:,}." + _not_finite(kl)
    return _plot("KL divergence of the predictions", caption, draw, (280, 280))


def _bits_plot(level: LevelReport) -> Plot | None:
    """How hard the model finds a plain passage, against what it may."""
    bits, limit = level.measures.get("bits_per_byte"), level.measures.get("limit")
    if bits is None:
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure, left=4, right=4, top=24, bottom=26)
        finite = bits if math.isfinite(bits) else 0.0
        end = max(finite * 1.15, (limit or 1.0) * 2)
        axes.barh(0, end, height=1, color=TINT)
        axes.barh(0, finite, height=1, color=BAD if _exceeds(bits, limit) else GOOD)
        free = limit if limit is not None and finite <= limit < finite + end / 10 else finite
        axes.text(free + end / 100, 0, _figure(bits), va="center", weight="bold")
        if limit is not None:
            axes.plot([limit, limit], [-0.7, 0.7], color=INK)
            axes.text(limit, 0.85, f"limit {_figure(limit)}", ha="center", color=SOFT)
        axes.set_ylim(-0.7, 0.7)
        axes.set_xlim(0, end)
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)

    held = "" if limit is None else f"; a model that speaks stays below {_figure(limit)}"
    return _plot("Bits per byte of a plain passage", f"{_figure(bits)}{held}.", draw, (96, 96))


def _norms_plot(level: LevelReport) -> Plot | None:
    """How large the values of each kind of tensor are, over the layers."""
    rows: list[Row] = level.measures.get("norms") or []
    kinds: dict[str, list[tuple[int, float]]] = {}
    for index, value in _series(rows, "rms"):
        layer, kind = _kind(str(rows[int(index)].get("tensor", "")))
        kinds.setdefault(kind, []).append((layer, value))
    if not kinds:
        return None
    values = [value for points in kinds.values() for _, value in points]
    last = max(0, *(layer for points in kinds.values() for layer, _ in points))
    shown = dict(list(kinds.items())[:PANELS])

    def panel(axes: Axes, kind: str, points: Sequence[tuple[int, float]]) -> None:
        scale = _Scale(axes, values)
        places = [(layer if layer >= 0 else last / 2, value) for layer, value in points]
        scale.line(axes, places, ACCENT, kind, "o")
        axes.set_title(kind, loc="left", size=12, color=INK, pad=5, parse_math=False)
        _foot(axes, "", {layer: str(layer) for layer in range(last + 1)})
        axes.set_xlim(-0.5 - last / 50, last + 0.5 + last / 50)

    def draw(figure: Figure) -> None:
        columns = 2 if _narrow(figure) else 4
        grid = figure.subplots(
            math.ceil(len(shown) / columns), columns, sharex=True, sharey=True, squeeze=False
        )
        width, height = figure.get_size_inches() * 72
        figure.subplots_adjust(
            left=60 / width,
            right=1 - 6 / width,
            top=1 - 24 / height,
            bottom=40 / height,
            hspace=0.42,
            wspace=0.08,
        )
        for axes, (kind, points) in zip(grid.flat, shown.items(), strict=False):
            panel(axes, kind, points)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()

    caption = "Root mean square of the values, layer by layer." + _not_finite(values)
    if len(shown) < len(kinds):
        caption += f" The first {len(shown)} of {len(kinds):,} kinds are shown."
    extremes = any(value <= 0 for value in values) + any(not math.isfinite(value) for value in values)
    panel_height = 116 + ROW * extremes
    wide, narrow = (64 + panel_height * math.ceil(len(shown) / columns) for columns in (4, 2))
    return _plot("Size of the values of each kind of tensor", caption, draw, (wide, narrow))


def _kind(tensor: str) -> tuple[int, str]:
    """The layer, or -1, and the short name of what a tensor is in every layer: ``q_proj``."""
    match = LAYER.search(tensor)
    words = tensor[match.end() if match else 0 :].removesuffix(".weight").split(".")
    kind = words[-1].encode("ascii", "replace").decode()
    return int(match[1]) if match else -1, kind if len(kind) <= 26 else f"{kind[:25]}…"
