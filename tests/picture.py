"""The README's picture: what a terminal shows of a real conversion and its verification.

`python -m tests.picture OUT.svg`"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.peers import ROOT

WIDTH = 92
COMMANDS = (
    "llama-convert convert llama2-mp2 llama-2-hf",
    "llama-convert verify llama-2-hf --source llama2-mp2",
)
REMOTE = re.compile(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", re.DOTALL)
"""Where rich has its font fetched from another host; any monospaced one does."""


def terminal(command: str, folder: Path) -> str:
    """What a terminal receives from a command, escape sequences and all."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(folder), "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    process = subprocess.Popen(
        command.split(), cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    received = b""
    with open(ours, "rb", buffering=0) as stream:
        try:
            while chunk := stream.read(65536):
                received += chunk
        except OSError:  # the other side is closed
            pass
    assert process.wait() == 0, received.decode()
    return received.decode()


def settled(received: str) -> str:
    """What stands there at the end: a line that was erased, or written over, is gone."""
    lines = [""]
    for part in re.split(r"(\n|\r|\x1b\[2K|\x1b\[1A|\x1b\[\?25[hl])", received.replace("\r\n", "\n")):
        if part == "\n":
            lines.append("")
        elif part in ("\r", "\x1b[2K"):
            lines[-1] = ""
        elif part == "\x1b[1A":
            lines.pop()
        elif not part.startswith("\x1b[?25"):
            lines[-1] += part
    return "\n".join(lines)


def picture() -> str:
    """An SVG of both commands and all they say."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "fixtures/llama2-mp2", Path(folder) / "llama2-mp2")
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "green"), (command, "bold")))
            console.print(Text.from_ansi(settled(terminal(command, Path(folder)))))
    svg = console.export_svg(title="llama-convert", unique_id="conversion")
    return REMOTE.sub("", svg).replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
