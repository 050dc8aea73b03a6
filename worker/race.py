"""Work that another event may make pointless, and work that nothing may interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def unless(
    work: Coroutine[Any, Any, Result], ended: Coroutine[Any, Any, object]
) -> Result | None:
    """Do ``work`` unless ``ended`` completes first; neither outlives this call.

    Returns:
        The result of ``work``, or None when it was cancelled.

    Raises:
        What ``work`` or ``ended`` raises, as it is (not in a group).
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(work)
            ending = tasks.create_task(ended)
            await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            ending.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None
    return None if working.cancelled() else working.result()


async def to_the_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end; a cancellation meanwhile takes effect after it.

    For what must not be left half-done: a process that is being reaped, say.
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


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
