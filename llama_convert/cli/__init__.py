"""The command line: one thin file a command, one renderer for people and one for programs."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run ``llama-convert`` on the arguments of this process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an escape for each character that it has not
    # Before torch is imported: its threads that wait are to leave their cores to whoever reads or decodes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from llama_convert.cli.app import app
    from llama_convert.cli.dropin import modernise, names_a_shell

    arguments = modernise(sys.argv[1:])
    if names_a_shell(arguments):
        # Typer takes a shell's name only where it is told not to guess; else it ignores the name.
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    try:
        ended = app(args=arguments, prog_name="llama-convert", standalone_mode=False)
    except Exception as error:
        from llama_convert.cli.errors import refuse_usage

        ended = refuse_usage(error, as_json="--json" in arguments)
    sys.exit(ended)
