"""The Typer application: its commands, and the options without a command."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_convert import __version__
from llama_convert.cli.command import command_class
from llama_convert.cli.convert import convert_command
from llama_convert.cli.help import explain_command, help_command
from llama_convert.cli.inspect import diff_command, inspect_command
from llama_convert.cli.shard import shard_command
from llama_convert.cli.verify import verify_command

app = typer.Typer(
    name="llama-convert",
    help="Convert Llama checkpoints between Meta and Hugging Face formats, and verify them.",
    epilog="Without a command, options are those of `convert`:\n\n"
    "llama-convert --input_dir SRC --output_dir DST --model_size 8B",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_DEPENDENCIES = ("isal", "numpy", "rich", "safetensors", "typer", "xxhash")


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from platform import platform, python_version

    from llama_convert.extras import EXTRAS, installed_version, missing_packages

    typer.echo(f"llama-convert {__version__}")
    typer.echo(f"Python {python_version()}, {platform()}")
    typer.echo(", ".join(f"{name} {installed_version(name)}" for name in _DEPENDENCIES))
    for extra, packages in EXTRAS.items():
        found = (f"{name} {installed_version(name)}" for name in packages)
        missing = missing_packages(extra)
        state = f"missing: {', '.join(missing)}" if missing else ", ".join(found)
        typer.echo(f"[{extra}] {state}")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Show the version, those of Python and the dependencies, and which extras are installed.",
        ),
    ] = False,
) -> None:
    """Convert Llama checkpoints between Meta and Hugging Face formats, and verify them."""


_COMMON_OUTPUT = ("verify", "overwrite", "dry_run", "output")
app.command("convert", cls=command_class("to", "dtype", *_COMMON_OUTPUT))(convert_command)
app.command("shard", cls=command_class("mp", "max_shard_size", *_COMMON_OUTPUT))(shard_command)
app.command("verify", cls=command_class("source", "check", "device", "prompt", "report", "as_json"))(
    verify_command
)
app.command("inspect", cls=command_class("tensors", "stats", "sort", "top", "as_csv", "report", "as_json"))(
    inspect_command
)
app.command("diff", cls=command_class("stats", "report", "as_json"))(diff_command)
app.command("help")(help_command)
app.command("explain")(explain_command)
