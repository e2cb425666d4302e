"""Workers on other machines, by an engine that is there already."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from llama_convert.errors import OutputError, UsageError

_PATIENCE = 30
"""Seconds until a scheduler that does not answer is given up."""


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """The workers of a Dask scheduler; one that dies has its files done again by another.

    Args:
        address: such as ``tcp://host:8786``.

    Raises:
        UsageError: the extra ``[dask]`` is not installed.
        OutputError: nobody answers there.
    """
    try:
        from distributed import Client
    except ImportError:
        hint = "pip install 'llama-convert[dask]'"
        raise UsageError("EXTRA_MISSING", "--scheduler needs the extra [dask]", hint=hint) from None
    try:
        client: Any = Client(address, timeout=_PATIENCE)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        message = f"no Dask scheduler answers: {error}"
        raise OutputError("SCHEDULER_UNREACHABLE", message, file=address) from error
    with client:
        yield client.get_executor(pure=False)
