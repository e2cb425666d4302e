"""List of tensors with their statistics: sorted, as a table, or as CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llama_convert.cli.messages import dtype_name, format_value
from llama_convert.cli.tables import Column, fitted
from llama_convert.cli.terminal import escaped
from llama_convert.errors import OutputError, UsageError
from llama_convert.inspection.records import Tensor
from llama_convert.text import natural_key
from llama_convert.units import format_size

if TYPE_CHECKING:
    from llama_convert.inspection.stats import Histogram, Stats

_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "12345678"
_NAME, _SIZE = "name", "size"


@dataclass(frozen=True)
class _Statistic:
    """A statistic that tensors can be sorted by."""

    field: str
    """Attribute of `Stats`."""
    ascending: bool = False
    share: bool = False
    """Whether it counts elements: tensors are ordered by its share of them."""


_STATISTICS = {
    "min": _Statistic("min", ascending=True),
    "max": _Statistic("max"),
    "absmax": _Statistic("absmax"),
    "p99.9": _Statistic("p999"),
    "mean": _Statistic("mean"),
    "std": _Statistic("std"),
    "zero": _Statistic("near_zero", share=True),
    "nan": _Statistic("nan"),
    "inf": _Statistic("inf"),
}
SORT_COLUMNS = (_NAME, _SIZE, *_STATISTICS)
"""Names that ``--sort`` accepts."""


def sorted_tensors(
    tensors: Sequence[Tensor], column: str | None = None, top: int | None = None
) -> tuple[Tensor, ...]:
    """Tensors in the order of a column, the first ``top`` of them.

    Names and min are in ascending order, everything else in descending order.  Tensors without a value come
    last; equal ones stay in model order.

    Raises:
        UsageError: there is no such column.
    """
    ordered = list(tensors)
    if column == _NAME:
        ordered.sort(key=lambda tensor: natural_key(tensor.name))
    elif column == _SIZE:
        ordered.sort(key=lambda tensor: -tensor.bytes)
    elif column is not None:
        statistic = statistic_named(column)
        ordered.sort(key=lambda tensor: _sort_key(tensor.stats, statistic))
    return tuple(ordered[:top])


def statistic_named(column: str) -> _Statistic:
    """The statistic with this name.

    Raises:
        UsageError: there is none.
    """
    if column not in _STATISTICS:
        message = f"--sort {column}: No such column."
        raise UsageError("BAD_USAGE", message, expected=", ".join(SORT_COLUMNS))
    return _STATISTICS[column]


def needs_stats(column: str | None) -> bool:
    """Whether sorting by this column needs statistics.

    Raises:
        UsageError: there is no such column.
    """
    return column not in (None, _NAME, _SIZE) and bool(statistic_named(str(column)))


def _sort_key(stats: Stats | None, statistic: _Statistic) -> tuple[bool, float]:
    value = getattr(stats, statistic.field) if stats else None
    if value is None:
        return True, 0.0
    if stats and statistic.share:
        value /= max(1, stats.elements)
    return False, value if statistic.ascending else -value


def tensor_table(tensors: Sequence[Tensor], width: int, *, ascii_only: bool) -> Table | Text:
    """One row per tensor.

    Args:
        tensors: the tensors to list.
        width: columns of the terminal.
        ascii_only: draw histograms with digits instead of bars.
    """
    has_stats = any(tensor.stats for tensor in tensors)
    columns = [Column("tensor"), Column("shape", needs_heading=False), Column("dtype", needs_heading=False)]
    if not has_stats:
        return _without_stats(columns, tensors, width)
    columns += [
        Column("histogram", needs_heading=False),
        *(
            Column(name, is_number=True)
            for name in ("min", "max", "absmax", "p99.9", "mean", "std", "near zero")
        ),
        Column("NaN, Inf", needs_heading=False),
    ]
    bars = _ASCII_BARS if ascii_only else _BARS
    rows = [[*_description(tensor), *_cells(tensor.stats, bars)] for tensor in tensors]
    return fitted(columns, rows, width)


def _without_stats(columns: list[Column], tensors: Sequence[Tensor], width: int) -> Table | Text:
    """Name, shape, dtype and size; files unless all tensors are in the same ones."""
    columns = [*columns, Column("size", is_number=True, needs_heading=False)]
    rows = [[*_description(tensor), format_size(tensor.bytes)] for tensor in tensors]
    if len({tensor.files for tensor in tensors}) > 1:
        columns.append(Column("file"))
        rows = [[*row, _file_names(tensor)] for row, tensor in zip(rows, tensors, strict=True)]
    return fitted(columns, rows, width)


def _description(tensor: Tensor) -> tuple[str, str, str]:
    return tensor.name, format_value(tensor.shape), dtype_name(tensor.dtype)


def _cells(stats: Stats | None, bars: str) -> tuple[str, ...]:
    if stats is None:
        return ("",) * 9
    values = (stats.min, stats.max, stats.absmax, stats.p999, stats.mean, stats.std)
    numbers = ("none" if value is None else f"{value:.4g}" for value in values)
    near_zero = f"{100 * stats.near_zero / max(1, stats.elements):.3g}%"
    not_finite = ", ".join(f"{n:,} {name}" for n, name in ((stats.nan, "NaN"), (stats.inf, "Inf")) if n)
    return (_drawn(stats.histogram, bars), *numbers, near_zero, not_finite)


def _drawn(histogram: Histogram | None, bars: str) -> str:
    """One bar per bin; empty bins are blank."""
    if histogram is None:
        return ""
    highest = max(histogram.counts)
    levels = [-(-count * len(bars) // highest) for count in histogram.counts]
    return "".join(bars[level - 1] if level else " " for level in levels)


def _file_names(tensor: Tensor) -> str:
    if len(tensor.files) < 3:
        return ", ".join(tensor.files)
    return f"{tensor.files[0]} and {len(tensor.files) - 1} more"


_CSV_FIELDS: dict[str, Callable[[Tensor], object]] = {
    "name": lambda tensor: escaped(tensor.name),
    "meta_name": lambda tensor: tensor.meta_name,
    "huggingface_name": lambda tensor: tensor.huggingface_name,
    "shape": lambda tensor: "x".join(map(str, tensor.shape)),
    "dtype": lambda tensor: tensor.dtype,
    "bytes": lambda tensor: tensor.bytes,
    "stored_in": lambda tensor: escaped(";".join(tensor.files)),
}


def to_csv(tensors: Sequence[Tensor]) -> str:
    """A header and a line for each tensor, as RFC 4180 defines them.

    The columns are the JSON fields of a tensor and of its statistics, without the histogram.  Dimensions of a
    shape are separated by ``x``, files by ``;``.  Control characters in names are escaped.
    """
    stats = next((tensor.stats for tensor in tensors if tensor.stats), None)
    names = [field.name for field in fields(stats) if field.name != "histogram"] if stats else []
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*_CSV_FIELDS, *names])
    for tensor in tensors:
        statistics = [getattr(tensor.stats, name, None) for name in names]
        writer.writerow([*(read(tensor) for read in _CSV_FIELDS.values()), *statistics])
    return text.getvalue()


def print_csv(tensors: Sequence[Tensor]) -> None:
    """Write `to_csv` to stdout.

    Raises:
        OutputError: stdout is closed or full.
    """
    try:
        if sys.stdout is None:
            raise OSError("stdout is closed")
        sys.stdout.write(to_csv(tensors))
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = None  # the interpreter does not try to flush it again at exit
        message = f"The result cannot be printed: {error.strerror or error}."
        raise OutputError("OUTPUT_IO", message) from error
