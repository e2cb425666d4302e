"""The Typer application: its commands, and the options that stand before them."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_convert import __version__
from llama_convert.cli.convert import convert_command
from llama_convert.cli.help import explain_command, help_command
from llama_convert.cli.inspect import diff_command, inspect_command
from llama_convert.cli.shard import shard_command
from llama_convert.cli.verify import verify_command

app = typer.Typer(
    name="llama-convert",
    help="Convert Meta's Llama checkpoints to Hugging Face safetensors, in flat memory and with proof.",
    epilog="Without a command, options are those of `convert`:\n\n"
    "llama-convert --input_dir SRC --output_dir DST --model_size 8B",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


_THAT_MATTER = ("torch", "numpy", "safetensors", "tokenizers", "tiktoken", "sentencepiece", "isal", "xxhash")
"""What reads, computes, checks or writes a checkpoint's bytes."""


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version
    from platform import platform, python_version

    typer.echo(f"llama-convert {__version__}")
    typer.echo(f"Python {python_version()}, {platform()}")
    typer.echo(", ".join(f"{name} {version(name)}" for name in _THAT_MATTER))
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Show the versions that matter, and exit.",
        ),
    ] = False,
) -> None:
    """Convert Meta's Llama checkpoints to Hugging Face safetensors, in flat memory and with proof."""


app.command("convert")(convert_command)
app.command("shard")(shard_command)
app.command("verify")(verify_command)
app.command("inspect")(inspect_command)
app.command("diff")(diff_command)
app.command("help")(help_command)
app.command("explain")(explain_command)
