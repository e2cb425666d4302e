"""Ends a command: prints its error, on stderr for people and as JSON on stdout, and sets the exit code."""

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

from llama_convert.cli.terminal import Terminal, lines, print_message
from llama_convert.errors import LlamaConvertError, OutputError, UsageError
from llama_convert.redaction import redact

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stderr_console() -> Terminal:
    """Stderr, which has all messages for people: stdout has only data."""
    return Terminal(stderr=True, soft_wrap=True)


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout.

    Args:
        content: an `llama_convert.json_output.envelope`.

    Raises:
        OutputError: stdout is closed or full.
    """
    text = json.dumps(_json_value(content), indent=2, allow_nan=False) + "\n"  # ASCII: the rest is escaped
    try:
        if sys.stdout is None:
            raise OSError("stdout is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = None  # the interpreter would try to flush it at exit
        message = f"Cannot print the result: {error.strerror or error}."
        raise OutputError("OUTPUT_IO", message) from error


def _json_value(value: Any) -> Any:
    """The value without secrets; null for numbers that JSON does not have, strings for other objects."""
    if isinstance(value, dict):
        return {_json_value(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None
    return redact(value if isinstance(value, str) else str(value))


class _SignalInterrupt(KeyboardInterrupt):
    """A signal that interrupts the command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number


def _interrupt(number: int, _frame: object) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
    raise _SignalInterrupt(number)


@contextmanager
def handle_errors(*, as_json: bool, debug: bool) -> Iterator[None]:
    """Turn every exception into a message and an exit code.

    Args:
        as_json: print the error as JSON on stdout too.
        debug: print the traceback too.

    Raises:
        typer.Exit: with the exit code.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    try:
        yield
    except LlamaConvertError as error:
        _fail(error.exit_code, error.code, error, as_json=as_json, debug=debug, known=error)
    except KeyboardInterrupt as error:
        number = signal.Signals(error.number if isinstance(error, _SignalInterrupt) else signal.SIGINT)
        _fail(128 + number, "INTERRUPTED", error, as_json=as_json, debug=debug, message="Interrupted.")
    except MemoryError as error:
        known = OutputError("OUT_OF_MEMORY", "Out of memory.", hint="Use --workers 1.")
        _fail(4, known.code, error, as_json=as_json, debug=debug, known=known)
    except OSError as error:
        known = OutputError("INPUT_IO", f"{error.strerror or error}.", file=error.filename)
        _fail(4, known.code, error, as_json=as_json, debug=debug, known=known)
    except typer.Exit:
        raise
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {error}. Traceback: {_save_traceback()}"
        _fail(70, "INTERNAL", error, as_json=as_json, debug=debug, message=message)


def report_usage_error(error: Exception, *, as_json: bool) -> int:
    """Print an error of the command-line parser.

    Args:
        error: any exception; those that are not Click's are raised again.
        as_json: print it as JSON on stdout too.

    Returns:
        The exit code.
    """
    # Typer has its own copy of Click's classes in some versions, so no class is named here.
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        raise error
    if message := format_message():  # empty where Click printed the help
        from llama_convert.cli.usage import usage_hint, usage_message

        refused = UsageError("BAD_USAGE", usage_message(message), hint=usage_hint(error))
        _print_error(refused.exit_code, refused.code, error, as_json=as_json, known=refused)
    return UsageError.exit_code


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
    _print_error(exit_code, code, error, as_json=as_json, message=message, known=known)
    raise typer.Exit(exit_code) from None


def _print_error(
    exit_code: int,
    code: str,
    error: BaseException,
    *,
    as_json: bool,
    message: str | None = None,
    known: LlamaConvertError | None = None,
) -> None:
    console = stderr_console()
    message, kept = message or (known.headline if known else str(error)), getattr(error, "kept", None)
    hint = _hint(known) if known else None
    resume = kept or ("Nothing to resume." if hasattr(error, "kept") else "")
    if isinstance(error, KeyboardInterrupt):
        print_message(console, f"{message} {resume}".rstrip())
    else:
        if resume:
            print_message(console, resume)
        prefix = "" if message.startswith("internal error: ") else "error: "
        print_message(console, f"{prefix}{message}", style="bold red")
        if known and known.comparison:
            print_message(console, f"  {known.comparison}")
    if hint:
        print_message(console, f"hint: {hint}")
    if as_json:
        from llama_convert import json_output

        content = json_output.error(
            code,
            known.message if known else message,
            known=known,
            hint=hint,
            resumable=getattr(error, "resumable", False),
            saved=kept,
        )
        with suppress(OutputError):  # stderr has the error
            print_json(json_output.envelope(_command(), exit_code, content))


def _command() -> str | None:
    """The command that was typed; None if there is none of this name."""
    from llama_convert.cli.dropin import COMMANDS, rewrite_legacy_options

    first = rewrite_legacy_options(sys.argv[1:])[:1]
    return first[0] if first and first[0] in COMMANDS else None


def _hint(error: LlamaConvertError) -> str | None:
    """What to do: the corrected command line, if the error has corrections of its arguments."""
    hint = error.hint
    if corrections := getattr(error, "instead", None):
        from llama_convert.cli.usage import corrected_command

        hint = corrected_command(corrections) or hint
    return f"Run: {hint}" if hint and hint.startswith(("llama-convert ", "pip install ")) else hint


def _save_traceback() -> str:
    """The name of a new file with the traceback of the current exception, without secrets."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="llama-convert-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(redact(traceback.format_exc()))
    return file.name
