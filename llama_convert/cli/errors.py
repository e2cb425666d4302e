"""How a command ends: one result or one error, for people on stderr or for programs as JSON on stdout."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from typing import Any

import typer

from llama_convert.cli.terminal import Terminal, lines, styled
from llama_convert.errors import LlamaConvertError, OutputError, UsageError
from llama_convert.redaction import redact

SCHEMA = 1
"""Version of the JSON envelope; it changes when a field's meaning does."""


def stderr_console() -> Terminal:
    """Where everything for people goes: stderr, so that stdout stays data."""
    return Terminal(stderr=True, soft_wrap=True)


def print_json(envelope: dict[str, Any]) -> None:
    """One JSON object on stdout.

    Raises:
        OutputError: nobody can read it: stdout is closed, or full.
    """
    content = _sayable({"schema": SCHEMA, **envelope})
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"  # ASCII: everything else is escaped
    try:
        if sys.stdout is None:
            raise OSError("stdout is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = None  # nor will the interpreter try again as it exits
        raise OutputError("OUTPUT_IO", f"the result cannot be printed: {error.strerror or error}") from error


def _sayable(value: Any) -> Any:
    """Plain data: null for numbers that JSON does not have, and the names that places are called by."""
    if isinstance(value, dict):
        return {_sayable(key): _sayable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sayable(each) for each in value]
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None
    return redact(value if isinstance(value, str) else str(value))


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(KeyboardInterrupt):
    """A signal that ends the run as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number


def _stop(number: int, _frame: object) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # one is enough: what it has begun is to be finished
    raise _Stopped(number)


@contextmanager
def outcome(*, as_json: bool, debug: bool) -> Iterator[None]:
    """Turn whatever ends the command into its exit code and one message; with ``debug``, a traceback too."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)
    try:
        yield
    except LlamaConvertError as error:
        _fail(error.exit_code, error.code, error, as_json=as_json, debug=debug, known=error)
    except KeyboardInterrupt as error:
        number = signal.Signals(error.number if isinstance(error, _Stopped) else signal.SIGINT)
        _fail(128 + number, "STOPPED", error, as_json=as_json, debug=debug, message="Interrupted.")
    except MemoryError as error:
        _fail(4, "MEMORY", error, as_json=as_json, debug=debug, message="out of memory; try --workers 1")
    except OSError as error:
        message = f"{error.filename or 'a file'}: {error.strerror or error}"
        _fail(4, "INPUT_IO", error, as_json=as_json, debug=debug, message=message)
    except typer.Exit:
        raise
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {error}; the traceback is in {_save_traceback()}"
        _fail(70, "INTERNAL", error, as_json=as_json, debug=debug, message=message)


def refuse_usage(error: Exception, *, as_json: bool) -> int:
    """Tell what the parser of the command line refuses, as anything else is told; the exit code."""
    # As Click's errors have, wherever Typer keeps them.
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        raise error
    if message := format_message().partition(" (Possible options")[0]:  # none where help was shown instead
        from llama_convert.cli.usage import likely

        refused = UsageError("BAD_USAGE", message, hint=likely(error))
        _tell(2, refused.code, error, as_json=as_json, known=refused)
    return 2


def _fail(
    exit_code: int,
    code: str,
    error: BaseException,
    *,
    as_json: bool,
    debug: bool,
    message: str | None = None,
    known: LlamaConvertError | None = None,
) -> None:
    if debug:
        stderr_console().print(lines("".join(traceback.format_exception(error)).rstrip().split("\n")))
    _tell(exit_code, code, error, as_json=as_json, message=message, known=known)
    raise typer.Exit(exit_code) from None


def _tell(
    exit_code: int,
    code: str,
    error: BaseException,
    *,
    as_json: bool,
    message: str | None = None,
    known: LlamaConvertError | None = None,
) -> None:
    console = stderr_console()
    message, kept = message or str(known or error), getattr(error, "kept", None)
    hint = _hint(known) if known else None
    resume = kept or ("Nothing to resume." if hasattr(error, "kept") else "")
    if isinstance(error, KeyboardInterrupt):
        text = styled(f"{message} {resume}".rstrip())
    else:
        if resume:
            console.print(resume)
        text = styled(f"error: {message}", style="bold red")
    console.print(text, soft_wrap=not console.file.isatty())  # broken between words, on a terminal
    if hint:
        console.print(f"hint: {hint}")  # as one line, so that it can be copied
    if as_json:
        envelope = {
            "ok": False,
            "exit_code": exit_code,
            "code": code,
            "message": known.message if known else message,
            "file": str(known.file) if known and known.file else None,
            "tensor": known.tensor if known else None,
            "hint": hint,
            "resumable": getattr(error, "resumable", False),
            "kept": kept,
        }
        with suppress(OutputError):  # then stderr has said it alone
            print_json(envelope)


def _hint(error: LlamaConvertError) -> str | None:
    """What to do; as the whole command to type, where only other words of it were meant."""
    instead = getattr(error, "instead", None)
    if instead is None:
        return error.hint
    from llama_convert.cli.usage import retyped

    return retyped(instead) or error.hint


def _save_traceback() -> str:
    with tempfile.NamedTemporaryFile(
        "w", prefix="llama-convert-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(redact(traceback.format_exc()))
    return file.name
