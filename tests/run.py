"""Runs the command line in this process, as quickly as a call; `fresh` runs it in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

from tests.peers import ROOT
from tests.schema import check_output


@dataclass(frozen=True)
class Run:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What was printed for programs."""
        return json.loads(self.stdout)


def sizes(content: dict[str, Any]) -> dict[str, int]:
    """Bytes of each file that a JSON output lists."""
    return {file["name"]: file["bytes"] for file in content["files"]}


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
    return _checked(Run(code, stdout.getvalue(), stderr.getvalue()), argv)


def fresh(*arguments: Any, **environment: str) -> Run:
    run = subprocess.run(
        [sys.executable, "-m", "llama_convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )
    return _checked(Run(run.returncode, run.stdout, run.stderr), [*map(str, arguments)])


def _checked(run: Run, arguments: list[str]) -> Run:
    """The run, whose JSON is as the schema says."""
    if "--json" in arguments and not {"-h", "--help"} & set(arguments):
        check_output(run.json)
        assert run.json["exit_code"] == run.exit_code
    return run


_MEASURE = """
import os, subprocess, sys, time

def figure(file, key):
    try:
        lines = open(f"/proc/{process.pid}/{file}").read().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)

began, anonymous = time.perf_counter(), 0
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
    anonymous = max(anonymous, figure("status", "RssAnon:"))
    time.sleep(0.005)
seconds = time.perf_counter() - began
read, written = figure("io", "rchar:"), figure("io", "wchar:")
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss, anonymous, read, written)
"""


@dataclass(frozen=True)
class Measured:
    """What a command took, in a process of its own."""

    seconds: float
    peak: int
    """Bytes of resident memory."""
    anonymous: int
    """Bytes of it that are no file's, as far as samples every 5 ms show; of the first process alone."""
    read: int
    """Bytes asked of the kernel, from page cache or disk."""
    written: int


def measured(command: list[str], **environment: str) -> Measured:
    """Run a command and measure it.

    A small process starts it: the kernel counts what the starting process had at the fork.
    """
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=True,
    )
    exit_code, seconds, kibibytes, anonymous, read, written = run.stdout.split()
    assert exit_code == "0", command
    return Measured(float(seconds), int(kibibytes) * 1024, int(anonymous) * 1024, int(read), int(written))


def peak_memory(*arguments: Any) -> int:
    """Bytes of resident memory that llama-convert needs at its peak."""
    return measured([sys.executable, "-m", "llama_convert", *map(str, arguments)]).peak
