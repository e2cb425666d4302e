"""The command line: one thin file a command, one renderer for people and one for programs."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run ``llama-convert`` on the arguments of this process."""
    # Before torch is imported: its threads that wait are to leave their cores to whoever reads or decodes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from llama_convert.cli.app import app
    from llama_convert.cli.dropin import modernise

    arguments = modernise(sys.argv[1:])
    if "--json" not in arguments:
        app(args=arguments, prog_name="llama-convert")
        return
    from llama_convert.cli.outcome import refuse_usage

    try:
        sys.exit(app(args=arguments, prog_name="llama-convert", standalone_mode=False))
    except Exception as error:
        sys.exit(refuse_usage(error))
