"""``llama-convert inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llama_convert.cli import options as cli

if TYPE_CHECKING:
    from llama_convert.inspection.differences import Comparison
    from llama_convert.inspection.records import Inspection

Inspected = Annotated[
    str | None,
    typer.Argument(
        metavar="PATH", show_default=False, help="A folder in either layout, or a .pth or .safetensors file."
    ),
]
Other = Annotated[
    str | None,
    typer.Argument(metavar="PATH2", show_default=False, help="Another, to compare with."),
]
Tensors = Annotated[
    str | None,
    typer.Option(
        metavar="[GLOB]",
        show_default=False,
        help="List all tensors, or those whose name in either layout GLOB matches, such as 'layers.0.*'.",
    ),
]
StatsToo = Annotated[
    bool,
    typer.Option(
        "--stats",
        help="Read the weights once: least, largest, mean, deviation, NaN, Inf, zeros, histogram; "
        "of two checkpoints, compare the values.",
    ),
]


def inspect_command(
    path: Inspected = None,
    other: Other = None,
    tensors: Tensors = None,
    stats: StatsToo = False,
    verbose: cli.Verbose = False,
    as_json: cli.AsJson = False,
    debug: cli.Debug = False,
    help_all: cli.HelpAll = False,
) -> None:
    """Say what a checkpoint is, or how two differ; no weight is read, so it takes a moment.

    Told are the release and how it shows, the hyper-parameters, ranks and how
    they cut the weights, dtypes, parameters, files, the tokenizer, what a
    conversion would write, and whatever is odd or wrong.
    Exit code 1 if something is wrong, or if the two differ.

    [bold]Examples[/bold]

      llama-convert inspect Llama3.1-405B-Instruct-MP16

      llama-convert inspect consolidated.00.pth --tensors

      llama-convert inspect llama-3.1-8b --tensors 'layers.0.*' --stats

      llama-convert inspect Llama3.1-8B llama-3.1-8b --stats --json
    """
    from llama_convert.cli.errors import handle_errors, print_json, stderr_console

    console = stderr_console()
    with handle_errors(as_json=as_json, debug=debug):
        from llama_convert.errors import UsageError
        from llama_convert.inspection.describe import inspect
        from llama_convert.observer import Observer

        if path is None:
            hint = "llama-convert inspect PATH; see llama-convert inspect --help"
            raise UsageError("BAD_USAGE", "PATH is missing", hint=hint)
        if other and tensors:
            raise UsageError("BAD_USAGE", "--tensors lists the tensors of one checkpoint, not of two")
        observer = Observer()
        if stats:
            from llama_convert.cli.progress import ConsoleObserver

            observer = ConsoleObserver(console, quiet=as_json, verbose=verbose)
        result: Inspection | Comparison
        if other:
            from llama_convert.inspection.compare import compare

            result = compare(path, other, stats=stats, observer=observer)
        else:
            result = inspect(path, tensors=tensors, stats=stats, observer=observer)
        if as_json:
            print_json({"command": "inspect", "exit_code": 0 if result.ok else 1, **result.to_json()})
        else:
            from llama_convert.cli.inspect_report import print_result

            print_result(result)
        if not result.ok:
            raise typer.Exit(1)
