"""A figure of values on a logarithmic axis that has a place for zero, NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from llama_convert.html_report.figure import LINE_HEIGHT, WIDTH, Label, text_width, thinned
from llama_convert.html_report.number_format import format_power

_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 12, 14, 46
_PLOT_HEIGHT = 250
_ROW = 24
"""Min distance of two labels of the vertical axis."""


@dataclass(frozen=True)
class Series:
    """One line, with a value for each place on the horizontal axis."""

    name: str
    style: Literal["first", "second", "third"]
    """Color, dashes and markers."""
    values: Sequence[float]
    titles: Sequence[str]
    """The tooltip of each marker."""


@dataclass(frozen=True)
class Marker:
    """One value."""

    x: float
    y: float
    title: str
    is_finite: bool


@dataclass(frozen=True)
class DrawnSeries:
    """A series in the figure's coordinates."""

    name: str
    style: str
    lines: Sequence[str]
    """Points of each run of finite values, as SVG writes them."""
    markers: Sequence[Marker]


@dataclass(frozen=True)
class LinePlot:
    """Geometry in units of the figure's view box, `WIDTH` wide."""

    macro: ClassVar[str] = "line_plot"
    title: str
    caption: str
    height: float
    left: float
    right: float
    bottom: float
    series: Sequence[DrawnSeries]
    grid: Sequence[float]
    """Heights of the horizontal lines."""
    labels: Sequence[Label]
    limit: float | None
    """Height of the limit's line."""
    limit_name: str
    marked: Marker | None
    """A place on the horizontal axis to mark with a vertical band, and its label."""
    marked_anchor: Literal["start", "end"]


def line_plot(
    title: str,
    caption: str,
    axis: str,
    ticks: Sequence[str],
    series: Sequence[Series],
    limit: float | None,
    limit_name: str,
    marked: tuple[int, str] | None = None,
) -> LinePlot:
    """A figure of one or more series on a logarithmic axis.

    Args:
        title: what the lines show.
        caption: what the reader should see first.
        axis: what the horizontal axis shows.
        ticks: a label for each place on it.
        series: the lines.
        limit: a value to draw a horizontal line at.
        limit_name: its name in the legend.
        marked: index and label of a place on the horizontal axis to mark.
    """
    values = [value for each in series for value in each.values]
    scale = _LogAxis([*values, limit] if limit is not None else values)
    pitch = (WIDTH - _LEFT - _RIGHT - 20) / max(len(ticks) - 1, 1)
    if len(ticks) > 1:
        columns = [_LEFT + 10 + index * pitch for index in range(len(ticks))]
    else:
        columns = [(_LEFT + WIDTH - _RIGHT) / 2] * len(ticks)
    foot = _TOP + _PLOT_HEIGHT
    labels = [Label(_LEFT - 10, y, text, "end", soft=True) for y, text in scale.ticks]
    shown = thinned(list(zip(columns, ticks, strict=True)), pitch)
    labels += [Label(x, foot + 14, text, "middle", soft=True) for x, text in shown]
    labels.append(Label((_LEFT + WIDTH - _RIGHT) / 2, foot + 14 + LINE_HEIGHT + 3, axis, "middle", soft=True))
    mark = Marker(columns[marked[0]], _TOP, marked[1], is_finite=True) if marked else None
    return LinePlot(
        title=title,
        caption=caption,
        height=foot + _BOTTOM,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        bottom=foot,
        series=[_drawn(each, columns, scale, has_markers=pitch >= 5) for each in series],
        grid=[y for y, _ in scale.ticks],
        labels=labels,
        limit=scale.height(limit) if limit is not None else None,
        limit_name=limit_name,
        marked=mark,
        marked_anchor="end" if mark and mark.x + 12 + text_width(mark.title) > WIDTH - _RIGHT else "start",
    )


class _LogAxis:
    """Powers of ten; below them a row for zero, above them one for NaN and infinity, where needed."""

    def __init__(self, values: Sequence[float]) -> None:
        logs = [math.log10(value) for value in values if math.isfinite(value) and value > 0]
        self._low = math.floor(min(logs, default=0.0))
        self._high = max(math.ceil(max(logs, default=0.0)), self._low + 1)
        has_zeros = any(value <= 0 for value in values if math.isfinite(value))
        has_others = not all(map(math.isfinite, values))
        self._top = _TOP + _ROW * has_others
        self._bottom = _TOP + _PLOT_HEIGHT - _ROW * has_zeros
        decades = self._high - self._low
        step = math.ceil(decades * _ROW / (self._bottom - self._top))
        powers = range(self._low, self._high + 1, step)
        self.ticks = [(self._height(power), format_power(power)) for power in powers]
        """Height and label of each."""
        if has_zeros:
            self.ticks.append((self.height(0.0), "0"))
        if has_others:
            self.ticks.append((self.height(math.nan), "NaN, ∞"))

    def height(self, value: float) -> float:
        """Where a value is drawn."""
        if not math.isfinite(value):
            return _TOP
        if value <= 0:
            return _TOP + _PLOT_HEIGHT
        return self._height(math.log10(value))

    def _height(self, exponent: float) -> float:
        part = (exponent - self._low) / (self._high - self._low)
        return round(self._bottom - part * (self._bottom - self._top), 2)


def _drawn(series: Series, columns: Sequence[float], scale: _LogAxis, *, has_markers: bool) -> DrawnSeries:
    """The series in the figure's coordinates; NaN and infinity break its line, and always have a marker."""
    markers = [
        Marker(round(x, 2), scale.height(value), title, math.isfinite(value))
        for x, value, title in zip(columns, series.values, series.titles, strict=True)
    ]
    is_broken = not all(marker.is_finite for marker in markers)
    shown = [marker for marker in markers if has_markers or is_broken or not marker.is_finite]
    return DrawnSeries(series.name, series.style, list(_lines(markers)), shown)


def _lines(markers: Sequence[Marker]) -> Iterator[str]:
    run: list[str] = []
    for marker in markers:
        if marker.is_finite:
            run.append(f"{marker.x:g},{marker.y:g}")
        elif run:
            yield " ".join(run)
            run = []
    if run:
        yield " ".join(run)
