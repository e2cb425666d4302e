"""What must hold of an output folder however a run ends; and runs that end at a chosen call.

A run is a child of this process that has everything imported, so thousands of them are cheap.  `Calls` stands
between it and the operating system, counts, and lets a test act at any of the calls.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import faulthandler
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.manifest import file_matches, read_manifest
from llama_convert.cli import app, main, progress, result
from llama_convert.conversion import finalize, reshard, staging, to_huggingface, to_meta
from tests.limits import HANG
from tests.peers import ROOT

IMPORTED = (app, progress, result, reshard, to_huggingface, to_meta)
"""All that a run imports; its modules are there before it begins."""
Files = dict[str, bytes]
STAGING = ".llama-convert"
OURS = {".journal", ".publishing", ".publishing-new", ".probe"}
"""What may be staged next to files of the output; besides, files with these prefixes:"""
OURS_TOO = (".journal.", ".old-", ".taken-")
MANIFEST = "llama-convert.json"
LOADERS = ("config.json", "params.json")
"""Without one of them, nothing takes a folder for a model."""


# The commands.


@dataclass(frozen=True)
class Case:
    """A command, and what an unbroken run of it writes."""

    name: str
    source: Path
    arguments: tuple[str, ...]
    whole: Files

    def command(self, out: Path, *more: Any) -> list[str]:
        name, *options = self.arguments
        return [name, str(self.source), str(out), "--workers", "2", *options, *map(str, more)]

    def moved(self, source: Path) -> Case:
        """The same of a copy of the source, for the test to change."""
        shutil.copytree(self.source, source)
        return Case(self.name, source, self.arguments, self.whole)


META1, META2 = ROOT / "fixtures/llama3.2-tied", ROOT / "fixtures/llama2-mp2"
COMMANDS: dict[str, tuple[Path | None, tuple[str, ...]]] = {
    "convert one rank": (META1, ("convert",)),
    "convert two ranks": (META2, ("convert", "--max-shard-size", "100KB")),
    "shard --mp": (META2, ("shard", "--mp", "4")),
    "shard --max-shard-size": (None, ("shard", "--max-shard-size", "100KB")),
    "convert --to meta": (None, ("convert", "--to", "meta", "--mp", "2")),
}


def make_cases(folder: Path) -> dict[str, Case]:
    """All commands; those without a source take one in Hugging Face's layout that is made here."""
    huggingface = folder / "source"
    assert run(["convert", str(META2), str(huggingface)]).exit_code == 0
    cases = {}
    for number, (name, (source, arguments)) in enumerate(COMMANDS.items()):
        case = Case(name, source or huggingface, arguments, {})
        out = folder / str(number)
        ended = run(case.command(out))
        assert ended.exit_code == 0, ended.stderr
        case.whole.update(read(out))
        assert MANIFEST in case.whole
        manifest = read_manifest(out)
        assert manifest
        assert all(file_matches(out / file, said) for file, said in manifest["files"].items())
        shutil.rmtree(out)
        cases[name] = case
    return cases


# The invariant.


def read(folder: Path) -> Files:
    """The files that stand in a folder, links as what they say, but for the staging folder."""
    if not folder.is_dir():
        return {}
    return {
        path.name: os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in folder.iterdir()
        if path.name != STAGING
    }


def check(
    out: Path, case: Case, *, others: Files | None = None, older: Files | None = None, ended: object = ""
) -> str:
    """See that the folder holds no model, or a whole one, and all that is not ours as it was.

    Args:
        out: the output folder.
        case: what was run.
        others: what was in the folder before, that is no model.
        older: the model that was in the folder before.
        ended: is told of a failure.

    Returns:
        "none", "new" or "old".
    """
    found, others, older = read(out), others or {}, older or {}
    found.pop(f"{STAGING}-probe", None)
    for name, content in others.items():
        assert found.pop(name, None) == content, (name, ended)
    _check_staging(out / STAGING, OURS | {*case.whole, *older}, ended)
    if found == case.whole:
        return "new"
    if older and found == older:
        return "old"
    for name, content in found.items():
        assert content in (case.whole.get(name), older.get(name)), (name, ended)
    for loader in (*LOADERS, MANIFEST):
        if loader in found:
            assert any(
                model.get(loader) == found[loader] and _weights(found) == _weights(model)
                for model in (case.whole, older)
            ), (loader, ended)
    return "none"


def _check_staging(staging: Path, names: set[str], ended: object) -> None:
    """See that it holds nothing but folders of runs, and they nothing but what runs write."""
    if not staging.is_dir() or staging.is_symlink():
        return
    for place, folders, files in os.walk(staging):
        nested = ("run-", "shared") if place == str(staging) else OURS_TOO
        assert all(folder.startswith(nested) for folder in folders), (place, folders, ended)
        known = {".lock"} if place == str(staging) else names
        assert all(name in known or name.startswith(OURS_TOO) for name in files), (place, files, ended)
        assert not any(Path(place, file).is_symlink() for file in files), (place, files, ended)


def staged(out: Path) -> Path:
    """The folder in which a run that was killed has staged its files; where it would be, if there is none."""
    folders = sorted((out / STAGING).glob("run-*")) if (out / STAGING).is_dir() else []
    assert len(folders) <= 1, folders
    return folders[0] if folders else out / STAGING / "run-none"


def _weights(files: Files) -> Files:
    return {name: files[name] for name in files if name.endswith((".safetensors", ".pth", ".index.json"))}


# Runs.


@dataclass(frozen=True)
class Ended:
    exit_code: int
    """Negative: the signal that killed it."""
    stdout: str
    stderr: str
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Name and path of each call, in order, where the run came to its end."""

    @property
    def message(self) -> str:
        lines = [line for line in self.stderr.splitlines() if not line.startswith(("hint: ", "  "))]
        return lines[-1] if lines else ""


Real = Callable[..., Any]
Act = Callable[["Calls", str, str, Real, tuple[Any, ...], dict[str, Any]], Any]
"""Told of calls, name, path, the real function and its arguments: calls it, or does something else."""

CHANGES = [
    "ftruncate",
    "fsync",
    "io_open",
    "mkdir",
    "open",
    "posix_fallocate",
    "pwrite",
    "rename",
    "replace",
    "rmdir",
    "unlink",
    "write",
    "write_bytes",
]
"""Calls that change what is on disk."""
READS = ["pread", "preadv"]


class Calls:
    """Stands before the operating system's calls that concern files in some folders."""

    def __init__(self, roots: Iterable[Path], act: Act | None) -> None:
        self.roots = tuple(str(root) for root in roots)
        self.act = act
        self.log: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        for name in (*CHANGES, *READS):
            if name not in ("io_open", "write_bytes"):
                self._wrap(os, name, name)
        for module in (io, builtins):
            self._wrap(module, "open", "io_open")
        self._wrap(Path, "write_bytes", "write_bytes")
        for module in (finalize, staging):
            self._wrap(module, "write_new", "write_bytes")

    def _wrap(self, owner: Any, attribute: str, name: str) -> None:
        real = getattr(owner, attribute)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = self._path(name, args, kwargs)
            if not path.startswith(self.roots):
                return real(*args, **kwargs)
            with self.lock:
                self.log.append((name, path))
            if self.act:
                return self.act(self, name, path, real, args, kwargs)
            return real(*args, **kwargs)

        setattr(owner, attribute, wrapped)

    @staticmethod
    def _path(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        mode = kwargs.get("mode", args[1] if len(args) > 1 else "r")
        if name == "io_open" and not set(mode) & set("wax+"):
            return ""
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else os.fspath(args[0])
        return ""

    def count(self, *names: str) -> int:
        """How often these were called so far."""
        with self.lock:
            return sum(name in names for name, _ in self.log)


def run(
    arguments: list[str], act: Act | None = None, roots: Iterable[Path] = (), setup: Callable[[], object] = id
) -> Ended:
    """Run the command line in a child process."""
    return Child(arguments, act, roots, setup).ended()


class Child:
    """The command line in a child process that has begun."""

    def __init__(
        self,
        arguments: list[str],
        act: Act | None = None,
        roots: Iterable[Path] = (),
        setup: Callable[[], object] = id,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._stdout, self._stderr, self._log = (
            Path(self._folder.name, name) for name in ("stdout", "stderr", "log")
        )
        self._status: int | None = None
        self._child = os.fork()
        if not self._child:
            _be_the_run(arguments, act, roots, setup, (self._stdout, self._stderr, self._log))

    def is_paused(self) -> bool:
        """Whether it pauses at a call, see `pause_at`; when it comes to its end, it does not."""
        _, status = os.waitpid(self._child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._status = status
        return False

    def ended(self) -> Ended:
        """How it ends; it continues if it was paused."""
        if self._status is None:
            os.kill(self._child, signal.SIGCONT)
            _, self._status = os.waitpid(self._child, 0)
        with self._folder:
            return Ended(
                os.waitstatus_to_exitcode(self._status),
                self._stdout.read_text(),
                self._stderr.read_text(),
                [(name, path) for name, path in json.loads(self._log.read_text())]
                if self._log.exists()
                else [],
            )


def _be_the_run(
    arguments: list[str],
    act: Act | None,
    roots: Iterable[Path],
    setup: Callable[[], object],
    files: tuple[Path, Path, Path],
) -> None:
    """The child's whole life."""
    code: Any = 1
    try:
        for number, file in zip((1, 2), files, strict=False):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        faulthandler.dump_traceback_later(HANG, exit=True, file=2)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["llama-convert", *arguments]
        if setup is not id:
            setup()
        real_open, calls = open, Calls(roots, act) if act or roots else None
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        if calls:
            with real_open(files[2], "w") as file:
                json.dump(calls.log, file)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


# What to do at a call.


def signal_at(number: int, what: int, names: Iterable[str] = CHANGES, *, torn: bool = False) -> Act:
    """Send a signal before the ``number``th of these calls; torn, when half of its bytes are written."""
    names = tuple(names)

    def act(
        calls: Calls, name: str, path: str, real: Real, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if name in names and calls.count(*names) == number:
            if torn and name in ("write", "pwrite", "write_bytes"):
                half = (args[0], args[1][: len(args[1]) // 2], *args[2:])
                real(*half)
            os.kill(os.getpid(), what)
        return real(*args, **kwargs)

    return act


def pause_at(number: int) -> Act:
    """Pause the whole process before the ``number``th call that changes what is on disk."""
    return signal_at(number, signal.SIGSTOP)


def fail_at(number: int, what: str, fault: int | str) -> Act:
    """Let the ``number``th call of one name fail with an error number, or be "short", or take "nothing"."""

    def act(
        calls: Calls, name: str, path: str, real: Real, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if name != what or calls.count(what) != number:
            return real(*args, **kwargs)
        if fault == "short":
            return real(args[0], args[1][:1], *args[2:])
        if fault == "nothing":
            return 0
        if name == "write_bytes":
            real(args[0], args[1][: len(args[1]) // 2])
        assert isinstance(fault, int)
        file = args[0] if isinstance(args[0], str | Path) else None
        raise OSError(fault, os.strerror(fault), *([str(file)] if file else []))

    return act


def fresh_folder(folder: Path) -> Path:
    """An absent folder to write to."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


FAULTS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EDQUOT", "EACCES", "EINTR")}
