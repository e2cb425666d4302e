"""A list of tensors, with their values' figures where those were asked for; narrow or wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from llama_convert.cli.terminal import styled
from llama_convert.inspection.records import Tensor
from llama_convert.units import format_size

if TYPE_CHECKING:
    from llama_convert.inspection.histogram import Histogram
    from llama_convert.inspection.stats import Stats

_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "12345678"
_WIDE = 130
"""Columns from which a tensor and its figures stand on one line."""


def tensor_list(tensors: Sequence[Tensor], width: int, *, plain: bool) -> Table:
    """A row for each tensor; in less than `_WIDE` columns its figures stand below it.

    Args:
        tensors: what to list.
        width: columns there are.
        plain: the terminal has no characters for bars, so histograms are of digits.
    """
    if not any(tensor.stats for tensor in tensors):
        return _plain(tensors)
    bars = _PLAIN_BARS if plain else _BARS
    return _wide(tensors, bars) if width >= _WIDE else _narrow(tensors, bars)


def _plain(tensors: Sequence[Tensor]) -> Table:
    """Names, shapes and sizes; the dtype and the files only where they are not the same for all."""
    dtypes, files = {one.dtype for one in tensors}, {one.files for one in tensors}
    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    if len(dtypes) > 1:
        table.add_column("dtype", no_wrap=True)
    if len(files) > 1:
        table.add_column("in", overflow="fold")
    for one in tensors:
        cells = [*([one.dtype] if len(dtypes) > 1 else []), *([_files(one)] if len(files) > 1 else [])]
        table.add_row(one.name, _shape(one), format_size(one.bytes), *cells)
    return table


def _wide(tensors: Sequence[Tensor], bars: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    for name in ("min", "max", "mean", "std", "zeros"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("histogram", no_wrap=True)
    table.add_column("NaN, Inf", no_wrap=True)
    for one in tensors:
        table.add_row(one.name, _shape(one), one.dtype, *_figures(one.stats, bars))
    return table


def _narrow(tensors: Sequence[Tensor], bars: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    for one in tensors:
        low, high, mean, std, zeros, histogram, bad = _figures(one.stats, bars)
        table.add_row(styled((one.name, "bold"), f"  {_shape(one)} {one.dtype}"))
        if one.stats:
            figures = f"{low} to {high}, mean {mean}, std {std}, {zeros} zeros"
            table.add_row(styled(f"  {histogram}  {figures}" + (f", {bad}" if bad else "")))
    return table


def _figures(stats: Stats | None, bars: str) -> tuple[str, ...]:
    if stats is None:
        return ("",) * 7
    numbers = (stats.min, stats.max, stats.mean, stats.std)
    bad = ", ".join(f"{n:,} {what}" for n, what in ((stats.nan, "NaN"), (stats.inf, "Inf")) if n)
    shown = ("none" if number is None else f"{number:.4g}" for number in numbers)
    return (*shown, f"{stats.zeros:,}", _drawn(stats.histogram, bars), bad)


def _drawn(histogram: Histogram | None, bars: str) -> str:
    """A bar for each bin, empty ones blank."""
    if histogram is None:
        return ""
    most = max(histogram.counts)
    levels = [-(-count * len(bars) // most) for count in histogram.counts]
    return "".join(bars[level - 1] if level else " " for level in levels)


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"


def _files(tensor: Tensor) -> str:
    if len(tensor.files) < 3:
        return ", ".join(tensor.files)
    return f"{tensor.files[0]} and {len(tensor.files) - 1} more"
