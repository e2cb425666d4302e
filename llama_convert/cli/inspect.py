"""``llama-convert inspect`` and its alias for two checkpoints, ``llama-convert diff``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from llama_convert.cli import options as cli

if TYPE_CHECKING:
    from pathlib import Path

    from llama_convert.cli.terminal import Terminal
    from llama_convert.inspection.records import Comparison, Inspection
    from llama_convert.observer import Observer

_CHECKPOINT = "a folder in Meta or Hugging Face format, a .pth or .safetensors file, or a URL."
_LISTS_TENSORS = "Lists all tensors unless --tensors is given."


def _sort_columns(incomplete: str) -> list[str]:
    """Columns that a shell offers."""
    from llama_convert.cli.tensor_table import SORT_COLUMNS

    return [name for name in SORT_COLUMNS if name.startswith(incomplete)]


CheckpointPath = Annotated[
    str | None,
    typer.Argument(metavar="PATH", show_default=False, help=f"The checkpoint: {_CHECKPOINT}"),
]
OtherPath = Annotated[
    str | None,
    typer.Argument(
        metavar="PATH2", show_default=False, help="A second checkpoint, to compare with the first."
    ),
]
PathA = Annotated[
    str | None,
    typer.Argument(metavar="A", show_default=False, help=f"The first checkpoint: {_CHECKPOINT}"),
]
PathB = Annotated[
    str | None,
    typer.Argument(metavar="B", show_default=False, help="The second checkpoint, in either format."),
]
Tensors = Annotated[
    str | None,
    typer.Option(
        metavar="[GLOB]",
        show_default=False,
        help="List tensors, or those whose name in either format matches GLOB, for example 'layers.0.*'.",
    ),
]
Stats = Annotated[
    bool,
    typer.Option(
        "--stats",
        help="Read all weights once. Shows min, max, mean, standard deviation, max magnitude (absmax), "
        "99.9th percentile of the magnitudes (p99.9), share of magnitudes below 1e-6 (near zero), NaN, Inf "
        "and a histogram. For two checkpoints: compares values.",
    ),
]
CompareValues = Annotated[
    bool,
    typer.Option(
        "--stats",
        help="Read all weights once. Shows max and mean difference, relative difference and cosine "
        "similarity of each tensor that differs.",
    ),
]
Sort = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        autocompletion=_sort_columns,
        show_default=False,
        help="Sort tensors by name or size, or with --stats by min, max, absmax, p99.9, mean, std, zero "
        "(near zero), nan or inf. Name and min sort in ascending order, the others in descending order. "
        f"{_LISTS_TENSORS}",
    ),
]
Top = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", show_default=False, help=f"List the first N tensors only. {_LISTS_TENSORS}"
    ),
]
AsCsv = Annotated[
    bool, typer.Option("--csv", help=f"Write tensors to stdout as CSV, one line per tensor. {_LISTS_TENSORS}")
]


def inspect_command(
    path: CheckpointPath = None,
    other: OtherPath = None,
    tensors: Tensors = None,
    stats: Stats = False,
    sort: Sort = None,
    top: Top = None,
    as_csv: AsCsv = False,
    config_from: cli.ConfigFrom = None,
    report: cli.Report = None,
    verbose: cli.Verbose = False,
    as_json: cli.AsJson = False,
    debug: cli.Debug = False,
    help_all: cli.HelpAll = False,
) -> None:
    """Show what a checkpoint contains, or how two checkpoints differ.

    Reads headers only, so it is nearly instant; `--stats` reads all weights.
    Exit code 1 if the checkpoint has an error, or if the two differ.

    [bold]Examples[/bold]

      llama-convert inspect Llama-3.1-405B-Instruct-MP16

      llama-convert inspect consolidated.00.pth --tensors

      llama-convert inspect llama-3.1-8b --stats --sort absmax --top 10

      llama-convert inspect llama-3.1-8b --tensors 'layers.0.*' --csv

      llama-convert inspect Llama-3.1-8B llama-3.1-8b --stats --json
    """
    from llama_convert.cli.errors import handle_errors, stderr_console

    console = stderr_console()
    with handle_errors(as_json=as_json, debug=debug):
        from llama_convert.checkpoints.suggestions import existing_folder
        from llama_convert.cli.messages import finding_lines
        from llama_convert.cli.tensor_table import needs_stats, print_csv, sorted_tensors
        from llama_convert.errors import UsageError
        from llama_convert.inspection.inspect import inspect

        if path is None:
            raise UsageError("BAD_USAGE", "PATH is missing.", hint="Run: llama-convert inspect PATH")
        if as_csv and as_json:
            raise UsageError("BAD_USAGE", "--csv and --json exclude each other.", hint="Pass one of them.")
        if other is not None:
            given = {
                "--tensors": tensors,
                "--sort": sort,
                "--top": top,
                "--csv": as_csv or None,
                "--config-from": config_from,
            }
            for name, value in given.items():
                if value is not None:
                    message = f"{name} only applies to one checkpoint."
                    raise UsageError("BAD_USAGE", message, hint="Remove PATH2.")
            _compare(path, other, console, stats=stats, report=report, verbose=verbose, as_json=as_json)
            return
        if needs_stats(sort) and not stats:
            raise UsageError("BAD_USAGE", f"--sort {sort} needs statistics.", hint="Add --stats.")
        if tensors is None and (sort or top or as_csv):
            tensors = "*"
        page = _report_file(report)
        observer = _observer(console, stats=stats, quiet=as_json, verbose=verbose)
        settings = config_from and existing_folder(config_from)
        result = inspect(path, tensors=tensors, stats=stats, config_from=settings, observer=observer)
        if page:
            from llama_convert.cli.report_file import write_inspection

            write_inspection(result, page, tensors=tensors, stats=stats, config_from=config_from)
        result = replace(result, tensors=sorted_tensors(result.tensors, sort, top))
        if not as_csv:
            _print(result, verbose=verbose, as_json=as_json)
            return
        for line in finding_lines(finding for finding in result.findings if not finding.is_warning):
            console.print(line)
        print_csv(result.tensors)
        if not result.ok:
            raise typer.Exit(1)


def diff_command(
    a: PathA = None,
    b: PathB = None,
    stats: CompareValues = False,
    report: cli.Report = None,
    verbose: cli.Verbose = False,
    as_json: cli.AsJson = False,
    debug: cli.Debug = False,
    help_all: cli.HelpAll = False,
) -> None:
    """Show how two checkpoints differ. The same as `inspect A B`.

    Compares settings, tensor names, shapes, dtypes and the tokenizer from the headers; `--stats` also
    compares values. The two may be in different formats. Exit code 1 if they differ.

    [bold]Examples[/bold]

      llama-convert diff llama-3.1-8b my-fine-tune

      llama-convert diff Llama-3.1-8B llama-3.1-8b --stats
    """
    from llama_convert.cli.errors import handle_errors, stderr_console

    console = stderr_console()
    with handle_errors(as_json=as_json, debug=debug):
        from llama_convert.errors import UsageError

        if a is None or b is None:
            missing = "A" if a is None else "B"
            raise UsageError("BAD_USAGE", f"{missing} is missing.", hint="Run: llama-convert diff A B")
        _compare(a, b, console, stats=stats, report=report, verbose=verbose, as_json=as_json)


def _compare(
    a: str,
    b: str,
    console: Terminal,
    *,
    stats: bool,
    report: Path | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Compare two checkpoints and print the result.

    Raises:
        typer.Exit: with code 1 if they differ.
    """
    from llama_convert.cli.report_file import write_inspection
    from llama_convert.inspection.compare import compare

    page = _report_file(report)
    result = compare(
        a, b, stats=stats, observer=_observer(console, stats=stats, quiet=as_json, verbose=verbose)
    )
    if page:
        write_inspection(result, page, tensors=None, stats=stats)
    _print(result, verbose=verbose, as_json=as_json)


def _report_file(report: Path | None) -> Path | None:
    """The file of ``--report``, checked before anything is read."""
    if report is None:
        return None
    from llama_convert.cli.report_file import check_report_file

    file = report.expanduser()
    check_report_file(file)
    return file


def _observer(console: Terminal, *, stats: bool, quiet: bool, verbose: bool) -> Observer:
    """Shows progress if weights are read."""
    from llama_convert.observer import Observer

    if not stats:
        return Observer()
    from llama_convert.cli.progress import ConsoleObserver

    return ConsoleObserver(console, quiet=quiet, verbose=verbose)


def _print(result: Inspection | Comparison, *, verbose: bool, as_json: bool) -> None:
    """Print the result.

    Raises:
        typer.Exit: with code 1 if it is not OK.
    """
    if as_json:
        from llama_convert.cli.errors import print_json
        from llama_convert.json_output import envelope, to_json

        print_json(envelope("inspect", 0 if result.ok else 1, to_json(result)))
    else:
        from llama_convert.cli.inspect_report import print_result

        print_result(result, verbose=verbose)
    if not result.ok:
        raise typer.Exit(1)
