"""Who does the work, if not this process."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext


def workers_of(scheduler: str | None) -> AbstractContextManager[Executor | None]:
    """The workers of a scheduler, if one is named.

    Raises:
        UsageError: its engine is not installed.
        OutputError: it does not answer.
    """
    if scheduler is None:
        return nullcontext()
    from llama_convert.conversion.workers import dask_executor

    return dask_executor(scheduler)
