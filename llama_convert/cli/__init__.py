"""The command line: one thin file a command, one renderer for people and one for programs."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``llama-convert`` on the arguments of this process."""
    from llama_convert.cli.app import app
    from llama_convert.cli.dropin import modernise

    app(args=modernise(sys.argv[1:]), prog_name="llama-convert")
