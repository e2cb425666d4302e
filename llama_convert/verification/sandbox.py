"""Runs untrusted tokenizers in a child process with limits on memory and CPU time.

A tokenizer's file decides what the libraries compute.  A normalizer of 500 bytes can need gigabytes, a
regular expression or a template years, and a failed allocation in a library ends its process.  All code that
runs a tokenizer, or whose cost depends on the file, is called through `run_isolated`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER_JSON
from llama_convert.formats.strict_json import MAX_LISTS_OF_TOKENIZER, parse_json
from llama_convert.units import format_size

_MEMORY, _MEMORY_PER_BYTE = 512 << 20, 40
"""Bytes of address space.  Checking Llama 3's tokenizer, 11 MB of files, needs 330 MB."""
_SECONDS, _BYTES_PER_SECOND = 20, 100_000
"""CPU time, which does not depend on the load of the machine.  Llama 3's tokenizer needs 4 s."""
_NAMES = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model", "tokenizer_config.json")
_ONE_THREAD = {
    "MALLOC_ARENA_MAX": "1",  # the arena of each thread would use 64 MiB of address space
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_COMMAND = ("-m", "llama_convert.verification.sandbox")
_MAX_ANSWER = 64 << 20
_HEAD = struct.Struct("<iQ")
"""Precedes each answer: exit status and size."""
_HINT = "Compare normalizer, pre_tokenizer and decoder with those of the model that the tokenizer comes from."


def run_isolated(call: str, paths: Sequence[Path], *arguments: Any, **more_paths: Path | None) -> Any:
    """The result of one of the functions in `_calls`, as plain data.

    Args:
        call: name of the function.
        paths: its first arguments: tokenizer files or folders of them, whose size determines the limits.
        arguments: its other positional arguments, as plain data.
        more_paths: its keyword arguments that are paths.

    Raises:
        InputError: the function raises one, exceeds the limits, or crashes.
    """
    named = {name: path for name, path in more_paths.items() if path}
    size = sum(map(_size, [*paths, *named.values()]))
    memory, seconds = _MEMORY + _MEMORY_PER_BYTE * size, _SECONDS + size // _BYTES_PER_SECOND
    request = {
        "call": call,
        "paths": [os.path.abspath(path) for path in paths],
        "arguments": arguments,
        "more_paths": {name: os.path.abspath(path) for name, path in named.items()},
        "memory": memory,
        "seconds": seconds,
    }
    status, output = _server.call(json.dumps(request).encode())
    limit = f"{format_size(memory)} of memory"
    if status < 0:
        name = signal.Signals(-status).name
        used = f"{seconds} s of CPU time" if name == "SIGXCPU" else limit
        reason = f"The tokenizer needs more than {used}, or crashes its library ({name})."
        raise InputError("TOKENIZER_RESOURCES", reason, file=paths[0], hint=_HINT)
    if status:
        raise RuntimeError(output.decode(errors="replace"))
    answer: dict[str, Any] = parse_json(output, max_lists=MAX_LISTS_OF_TOKENIZER)
    if answer.get("out_of_memory"):
        raise InputError(
            "TOKENIZER_RESOURCES", f"The tokenizer needs more than {limit}.", file=paths[0], hint=_HINT
        )
    if error := answer.get("error"):
        raise InputError(**error)
    return answer["result"]


@dataclass(frozen=True)
class IsolatedTokenizer:
    """A tokenizer file that encodes and decodes in the child process.

    Every call raises an `InputError` if the file is damaged.
    """

    file: Path
    """``tokenizer.model`` or ``tokenizer.json``."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, BOS first; names of special tokens are encoded as text."""
        ids: list[int] = run_isolated("encode", [self.file], text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = run_isolated("decode", [self.file], list(ids))
        return text

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """The text of each token id by itself."""
        texts: list[str] = run_isolated("decode_each", [self.file], list(ids))
        return texts


class _Server:
    """A process that has imported the tokenizer libraries; a fork of it answers each call.

    It starts with the first call and ends with this process, or with an exception during a call.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        """Process id of the process that started it; a fork of that process starts its own server."""
        self._lock = Lock()

    def call(self, request: bytes) -> tuple[int, bytes]:
        """The exit status of the fork, negative if a signal ended it, and its output."""
        with self._lock:
            process = self._process if self._owner == os.getpid() else None
            process = process or self._start()
            try:
                assert process.stdin
                assert process.stdout
                process.stdin.write(request + b"\n")
                process.stdin.flush()
                status, size = _HEAD.unpack(process.stdout.read(_HEAD.size))
                return status, process.stdout.read(size)
            except BaseException:  # also Ctrl-C: the answer is no longer needed
                self._process = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise

    def _start(self) -> subprocess.Popen[bytes]:
        absolute = filter(os.path.isabs, sys.path)  # without the current folder: its modules are untrusted
        self._process = subprocess.Popen(
            [sys.executable, *_COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(absolute)},
            start_new_session=True,  # Ctrl-C goes to this process alone
        )
        self._owner = os.getpid()
        return self._process


_server = _Server()


def _size(path: Path) -> int:
    """Bytes that are read of a tokenizer file, or of all tokenizer files in a folder."""
    total = 0
    for file in [path / name for name in _NAMES] if path.is_dir() else [path]:
        with suppress(OSError):
            total += min(file.stat().st_size, MAX_TOKENIZER_JSON)
    return total


def _calls() -> dict[str, Callable[..., Any]]:
    """The functions that can be called, by name."""
    from llama_convert.verification.tokenizer import check_original, check_tokenizer, compare_tokenizers
    from llama_convert.verification.tokenizer.codec import decode, decode_each, encode

    checks = {each.__name__: each for each in (check_original, check_tokenizer, compare_tokenizers)}
    return {
        **{name: _as_data(check) for name, check in checks.items()},
        "encode": encode,
        "decode": decode,
        "decode_each": decode_each,
    }


def _as_data(check: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*arguments: Any, **named: Any) -> Any:
        result = check(*arguments, **named)
        return None if result is None else asdict(result)

    return checked


def _limit(kind: int, most: int) -> None:
    """Set a limit of this process unless it already has a lower one."""
    limits = resource.getrlimit(kind)
    soft = min([most, *(each for each in limits if each != resource.RLIM_INFINITY)])
    with suppress(ValueError, OSError):  # macOS does not limit address space
        resource.setrlimit(kind, (soft, limits[1]))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        call, paths = _calls()[request["call"]], map(Path, request["paths"])
        named = {name: Path(path) for name, path in request["more_paths"].items()}
        return {"result": call(*paths, *request["arguments"], **named)}
    except InputError as error:
        fields = ("code", "message", "file", "hint", "expected", "found")
        values = {name: getattr(error, name) for name in fields}
        return {"error": {name: value if value is None else str(value) for name, value in values.items()}}
    except MemoryError:
        return {"out_of_memory": True}


def _answer_and_exit(line: bytes, output: int) -> NoReturn:
    """In the fork: answer one request within its limits, then exit."""
    status = 1
    try:
        request = parse_json(line)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_CPU, request["seconds"])
        _limit(resource.RLIMIT_AS, request["memory"])
        content, status = json.dumps(_answer(request)).encode(), 0
    except BaseException:
        content = traceback.format_exc().encode()
    with os.fdopen(output, "wb") as stream:
        stream.write(content)
    os._exit(status)


def _serve(line: bytes) -> tuple[int, bytes]:
    """Fork to answer a request; returns the exit status of the fork and its output."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _answer_and_exit(line, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read(_MAX_ANSWER + 1)
    if len(content) > _MAX_ANSWER:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), content[:_MAX_ANSWER]


def main() -> None:
    """Answer the requests on stdin, one per line, until it is closed."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print to stdout
    _calls()
    for line in sys.stdin.buffer:
        status, content = _serve(line)
        output.write(_HEAD.pack(status, len(content)) + content)
        output.flush()


if __name__ == "__main__":
    main()
