"""Requests that are tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from llama_convert.errors import InputError, OutputError

_FORBIDDEN = "permission denied; are the credentials in place?"
ATTEMPTS = 6
_FIRST_PAUSE = 0.2  # seconds; each is about twice the one before
CONNECT, READ = 10, 60
"""Seconds until an answer, and until the next bytes of one, are given up."""
T = TypeVar("T")


class ShortAnswerError(Exception):
    """A server sent fewer bytes than it was asked for, or more."""


def persistently(what: str, where: str, ask: Callable[[], T]) -> T:
    """What ``ask`` returns; asked again, after longer and longer pauses, where it fails.

    Whatever a library raises counts as a network fault, except a plain refusal.  None of its words
    are repeated: they may hold a signature.

    Raises:
        InputError: there is no such thing, or we may not have it.
        OutputError: it fails again and again.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.7, 1.3))
        try:
            return ask()
        except FileNotFoundError:
            raise InputError("INPUT_NOT_FOUND", f"{where}: not found") from None
        except PermissionError:
            raise InputError("INPUT_PERMISSION", f"{where}: {_FORBIDDEN}") from None
        except (InputError, OutputError):
            raise
        except Exception as error:
            status = getattr(error, "status", None) or getattr(error, "errno", None)
            if status in (401, 403):
                raise InputError("INPUT_PERMISSION", f"{where}: {_FORBIDDEN}") from None
            last = f"{type(error).__name__}{f' {status}' if status else ''}"
    raise OutputError("INPUT_IO", f"{where}: {what} fails: {last}; tried {ATTEMPTS} times")
