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

    app(args=modernise(sys.argv[1:]), prog_name="llama-convert")
