"""Work that another event may make pointless."""

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


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
