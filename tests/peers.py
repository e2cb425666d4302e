"""Runs code we did not write, each version in a process of its own.

`Peer("transformers-4.45").run(code, **arguments)` executes `code` in a long-lived interpreter that sees the
packages of ``.peers/transformers-4.45`` before those of the test environment; of several folders, the first
that has a package gives it.  The code reads its arguments as globals and leaves its answer in `result`; both
travel as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

_WORKER = """
import json, sys, traceback
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    request = json.loads(line)
    scope = dict(request["arguments"])
    try:
        exec(compile(request["code"], "<test>", "exec"), scope)
        answer = {"result": scope.get("result")}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
"""


class PeerError(Exception):
    """The code raised; the text is the peer's traceback."""


class Peer:
    def __init__(self, *names: str) -> None:
        folders = [ROOT / ".peers" / name for name in names]
        for folder in folders:
            assert folder.is_dir(), f"{folder} is missing: run `make .peers/ready`"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "warning",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, code: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"code": textwrap.dedent(code), "arguments": arguments}
        print(json.dumps(request, default=str), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
