"""Independent pieces of work on a few threads: for numpy and hashing, which let go of the
interpreter's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_MOST_THREADS = 4
"""Beyond that, memory and the interpreter's lock are what such work waits for."""

T = TypeVar("T")


def thread_count() -> int:
    """Threads that work is worth being divided among here."""
    available = getattr(os, "sched_getaffinity", None)
    count = len(available(0)) if available is not None else os.cpu_count() or 1
    return min(count, _MOST_THREADS)


def for_each(work: Callable[[int], T], count: int) -> list[T]:
    """``work(0)`` to ``work(count - 1)``, in no certain order, all finished on return.

    Returns:
        What they gave, by number.

    Raises:
        Exception: what one of them raised.
    """
    threads = min(thread_count(), count)
    if threads <= 1:
        return [work(number) for number in range(count)]
    with ThreadPoolExecutor(threads, thread_name_prefix="pieces") as pool:
        return list(pool.map(work, range(count)))
