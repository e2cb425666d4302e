"""How two checkpoints differ, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.table import Table
from rich.text import Text

from llama_convert.cli.messages import LAYOUTS, finding_lines, shown, title
from llama_convert.cli.terminal import lines, styled
from llama_convert.inspection.differences import Comparison, Differing, ValueDifference

_HEADS = ("what", "name", "A", "B")
_SHOWN = 20
"""Differences of one kind that are listed; the rest are counted."""


def comparison_parts(it: Comparison) -> Iterator[Table | Text]:
    """Both sides, every difference, and the verdict."""
    for letter, side in (("A", it.a), ("B", it.b)):
        yield styled(f"{letter}  {side.path}: {title(side)}, {LAYOUTS[side.layout]} layout", style="bold")
        yield from finding_lines(finding for finding in side.findings if not finding.is_warning)
    yield from finding_lines(it.findings)
    settings = [*_rows("config", it.config), *_rows("tokenizer", it.tokenizer)]
    tensors = [*_rows("shape", it.shapes), *_rows("dtype", it.dtypes)]
    names = [*_names("only in A", it.only_in_a), *_names("only in B", it.only_in_b)]
    for heads, rows in ((_HEADS, settings), (_HEADS, tensors), (_HEADS[:2], names)):
        if rows:
            yield _table(heads, rows)
            yield styled()
    if it.values:
        heads = ("values of", "elements\nthat differ", "largest\ndifference", "relative")
        yield _table(heads, _values(it.values))
        yield styled()
    yield styled(_verdict(it), style="bold green" if it.ok else "bold red")


def _rows(what: str, found: tuple[Differing, ...]) -> Iterator[tuple[str, ...]]:
    for one in found[:_SHOWN]:
        yield what, one.name, shown(one.a), shown(one.b)
    if len(found) > _SHOWN:
        yield what, f"and {len(found) - _SHOWN} more", "", ""


def _names(what: str, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield from ((what, name) for name in names[:_SHOWN])
    if len(names) > _SHOWN:
        yield what, f"and {len(names) - _SHOWN} more"


def _values(values: tuple[ValueDifference, ...]) -> Iterator[tuple[str, ...]]:
    for one in values[:_SHOWN]:
        different = f"{one.different:,} of {one.elements:,}"
        yield one.name, different, f"{one.max_difference:.3g}", f"{one.relative_difference:.3g}"
    if len(values) > _SHOWN:
        yield f"and {len(values) - _SHOWN} more", "", "", ""


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(lines(head.split("\n")), overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _verdict(it: Comparison) -> str:
    counts = {
        "hyper-parameters": it.config, "names": (*it.only_in_a, *it.only_in_b), "shapes": it.shapes,
        "dtypes": it.dtypes, "tokenizer": it.tokenizer, "values of tensors": it.values,
    }  # fmt: skip
    found = ", ".join(f"{what} ({len(of)})" for what, of in counts.items() if of)
    if found:
        return f"they differ: {found}"
    if it.findings or not (it.a.ok and it.b.ok):
        return "no difference was found, but not all could be looked at"
    if it.compared is None:
        return "the same, as far as headers tell (--stats compares the values)"
    return f"the same, values of {it.compared} tensors included"
