"""Threads that end when their caller is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event


@contextmanager
def interruptible_threads(workers: int) -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """A thread pool, and an event that is set when the context ends; tasks check it between blocks.

    Python waits for the running threads before it handles an exception such as Ctrl-C or exits, so a task
    that does not check the event delays both until it has finished.
    """
    stop = Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool, stop
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
