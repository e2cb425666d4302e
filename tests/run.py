"""Runs the command line in this process, as quickly as a call; `fresh` runs it in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

from tests.peers import ROOT


@dataclass(frozen=True)
class Run:
    exit_code: int
    stdout: str
    stderr: str


def llama_convert(*arguments: Any) -> Run:
    from llama_convert.cli import main

    stdout, stderr = io.StringIO(), io.StringIO()
    argv = ["llama-convert", *map(str, arguments)]
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return Run(code, stdout.getvalue(), stderr.getvalue())


def fresh(*arguments: Any, **environment: str) -> Run:
    run = subprocess.run(
        [sys.executable, "-m", "llama_convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )
    return Run(run.returncode, run.stdout, run.stderr)
