"""Runs the command line in forks of one process that has imported it: as isolated as a process, but quick.

Each fork may use a bounded amount of memory, and is killed after a time that only a command that hangs needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers import ROOT

HANG = 120
"""Seconds; a guard, not a measure."""
MEMORY = 2 << 30
"""Bytes of address space."""

_SERVER = """
import json, os, resource, signal, sys
from llama_convert.cli import main
import llama_convert.cli.app
import llama_convert.conversion.convert, llama_convert.inspection.inspect, llama_convert.verification.verify
import llama_convert.verification.structure, llama_convert.verification.values
import llama_convert.cli.inspect_report, llama_convert.cli.verify_report, llama_convert.cli.result

hang, memory = map(int, sys.argv[1:])
for line in sys.stdin:
    words, out = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(hang)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(os.path.join(out, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["llama-convert", *words]
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    exit_code: int
    """Negative: the signal that ended it."""
    peak: int
    """Bytes of resident memory."""
    stdout: bytes
    stderr: bytes


class Forks:
    def __init__(self, out: Path) -> None:
        self._out = out
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(HANG), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def run(self, *words: Any) -> Ended:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps([[str(word) for word in words], str(self._out)]).encode() + b"\n")
        self._server.stdin.flush()
        exit_code, peak = json.loads(self._server.stdout.readline())
        stdout, stderr = ((self._out / name).read_bytes() for name in ("stdout", "stderr"))
        return Ended(exit_code, peak, stdout, stderr)

    def close(self) -> None:
        self._server.communicate()
