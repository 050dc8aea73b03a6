"""Work that was begun is ended, whoever stops waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; a cancellation meanwhile takes effect after it.

    For what must not be left half-done: a client may hang up between the commit of what it asked
    for and the news of it to everybody else; a process may just be being reaped.

    Raises:
        asyncio.CancelledError: the caller was cancelled; the work is done nevertheless.
    """
    task = asyncio.ensure_future(work)  # owned here: it has ended when this returns
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen: nobody is left to hear of it
        raise cancelled
    return task.result()
