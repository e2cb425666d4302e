"""Retries failed requests to a store."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from llama_convert.errors import InputError, OutputError

ATTEMPTS = 6
_FIRST_PAUSE = 0.2
"""Seconds before the second attempt; each later pause is twice as long, ±30 %."""
CONNECT_TIMEOUT = 10
"""Seconds to wait for a connection."""
READ_TIMEOUT = 60
"""Seconds to wait for the next bytes of a response."""
T = TypeVar("T")


class ShortResponseError(Exception):
    """A server sent fewer or more bytes than the range that was requested."""


def with_retries(action: str, url: str, request: Callable[[], T]) -> T:
    """The result of ``request``, called up to `ATTEMPTS` times with growing pauses.

    Every exception of a library counts as a network fault, except "not found" and "permission denied". Their
    texts are never repeated in messages: they can contain a signature.

    Args:
        action: what the request does, in the infinitive, for the message.
        url: the printable URL, for the message.
        request: sends it.

    Raises:
        InputError: the file does not exist, or access is denied.
        OutputError: every attempt failed.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.7, 1.3))
        try:
            return request()
        except FileNotFoundError:
            raise InputError("INPUT_NOT_FOUND", "Not found.", file=url) from None
        except PermissionError:
            raise _denied(url) from None
        except (InputError, OutputError):
            raise
        except Exception as error:
            status = getattr(error, "status", None) or getattr(error, "errno", None)
            if status in (401, 403):
                raise _denied(url) from None
            reason = f"{type(error).__name__}{f' {status}' if status else ''}"
    message = f"Cannot {action} after {ATTEMPTS} attempts: {reason}."
    hint = "Check the connection. Run the same command again."
    raise OutputError("INPUT_IO", message, file=url, hint=hint)


def _denied(url: str) -> InputError:
    hint = "Check that credentials for the store are configured."
    return InputError("INPUT_PERMISSION", "Permission denied.", file=url, hint=hint)
