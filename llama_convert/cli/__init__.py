"""The command line: one module per command, with messages for people on stderr and JSON on stdout."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run ``llama-convert`` on the arguments of this process, and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the encoding may lack characters
    # Before torch is imported: its waiting threads must not take cores from those that read or decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from llama_convert.cli.app import app
    from llama_convert.cli.dropin import names_a_shell, rewrite_legacy_options

    arguments = rewrite_legacy_options(sys.argv[1:])
    if names_a_shell(arguments):
        # Typer ignores the name of the shell unless its detection is disabled.
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    try:
        exit_code = app(args=arguments, prog_name="llama-convert", standalone_mode=False)
    except Exception as error:
        from llama_convert.cli.errors import report_usage_error

        exit_code = report_usage_error(error, as_json="--json" in arguments)
    sys.exit(exit_code)
