"""Workers on other machines."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext


def open_executor(scheduler: str | None) -> AbstractContextManager[Executor | None]:
    """An executor on the workers of a Dask scheduler; None without an address.

    Raises:
        UsageError: Dask is not installed.
        OutputError: the scheduler does not answer.
    """
    if scheduler is None:
        return nullcontext()
    from llama_convert.conversion.workers import dask_executor

    return dask_executor(scheduler)
