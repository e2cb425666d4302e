"""Tables that fit the terminal: one line per row, or several lines per row where that is too wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from llama_convert.cli.terminal import escaped, lines

_GAP = 2
"""Columns between cells."""


@dataclass(frozen=True)
class Column:
    """A column; its cells are aligned right for numbers."""

    heading: str
    is_number: bool = False
    needs_heading: bool = True
    """Whether a cell in a row of several lines is preceded by the heading."""


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Table | Text:
    """Rows with aligned columns; if the widest row does not fit ``width``, several lines per row.

    Then the first line has the first cell and those that need no heading, and indented lines have the
    others as heading and value.  Lines are broken between cells only.
    """
    rows = [[escaped(cell) for cell in row] for row in rows]
    headings = [column.heading for column in columns]
    widths = [max(map(cell_len, cells)) for cells in zip(headings, *rows, strict=True)]
    if sum(widths) + _GAP * (len(widths) - 1) > width:
        return _several_lines(columns, rows, width)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _several_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Text:
    labeled = [n for n, column in enumerate(columns) if n and column.needs_heading]
    items = [[f"{columns[n].heading} {row[n]}" if row[n] else "" for n in labeled] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*items, strict=True)]
    result: list[str] = []
    for row, cells in zip(rows, items, strict=True):
        first = [cell for n, cell in enumerate(row) if cell and n not in labeled]
        padded = [cell.ljust(length) for cell, length in zip(cells, widths, strict=True)]
        head, *rest = _filled(first, width - 2)
        result += [head, *(f"  {line}" for line in (*rest, *_filled(padded, width - 2)) if line)]
    return lines(result)


def _filled(cells: Sequence[str], width: int, gap: int = _GAP) -> list[str]:
    """As many cells on each line as fit; a cell that is wider than a line is broken between words."""
    result = [""]
    for cell in cells:
        longer = result[-1] + " " * gap + cell if result[-1] else cell
        if cell_len(longer.rstrip()) <= width:
            result[-1] = longer
        elif cell_len(cell.rstrip()) <= width or " " not in cell:
            result.append(cell)
        else:
            result += _filled(cell.split(" "), width, gap=1)
    return [line.rstrip() for line in (result if result[0] else result[1:])]


def facts(rows: Sequence[tuple[str, str]], width: int) -> Table:
    """Names and values; values are broken after commas where possible."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    width -= max((len(name) for name, _ in rows), default=0) + _GAP
    for name, value in rows:
        *parts, last = escaped(value).split(", ")
        table.add_row(name, lines(_filled([*(f"{part}," for part in parts), last], width, gap=1)))
    return table
