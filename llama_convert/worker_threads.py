"""Threads that end when their caller is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event


@contextmanager
def interruptible_threads(workers: int) -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """A thread pool, and an event that is set when the context ends.

    Tasks must check the event between blocks: Python waits for running threads before it handles an exception
    (for example Ctrl-C) or exits.
    """
    stop = Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool, stop
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
