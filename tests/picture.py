"""The README's picture: the screen after a conversion of a 1B model and its verification.

`python -m tests.picture OUT.svg` writes a checkpoint of that shape with random weights, in 7.5 GB of disk.
"""

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

from llama_convert import shard
from tests import large
from tests.peers import ROOT

WIDTH = 92
COMMANDS = (
    "llama-convert convert Llama3.2-1B-Instruct llama-3.2-1b-instruct",
    "llama-convert verify llama-3.2-1b-instruct --source Llama3.2-1B-Instruct",
)
REMOTE = re.compile(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", re.DOTALL)
"""Rich's references to a font on another host; any monospaced font will do."""


def terminal(command: str, folder: Path) -> str:
    """Everything that a terminal receives from a command, with escape sequences."""
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
        except OSError:  # the process has ended
            pass
    assert process.wait() == 0, received.decode()
    return received.decode()


def settled(received: str) -> str:
    """The final screen, without lines that were erased or overwritten."""
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


def _write_source(folder: Path) -> None:
    """A checkpoint in the shape of Llama 3.2 1B with random weights; like Meta's files, with CRC-32s."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as unchecked:
        shard(large.make(Path(unchecked, "1B"), large.SHAPES["3.2-1B"]), folder, mp=1)
    for name in ("llama-convert.json", "README.md", "NOTICE"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(ROOT / ".peers/meta/llama_models/llama3/tokenizer.model", folder)


def picture() -> str:
    """An SVG of both commands and their output."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        _write_source(Path(folder, "Llama3.2-1B-Instruct"))
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "green"), (command, "bold")))
            console.print(Text.from_ansi(settled(terminal(command, Path(folder)))))
    svg = console.export_svg(title="llama-convert", unique_id="conversion")
    return REMOTE.sub("", svg).replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
