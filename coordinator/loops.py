"""Work that is done again and again while the server runs, whatever fails in between.

Invariant: a passing failure ends no loop. It is a trouble (:mod:`coordinator.troubles`) until the
same work succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from coordinator.database import DatabaseAway
from coordinator.troubles import Troubles
from protocol.errors import TransientError

_RETRY_S = 5.0


async def for_ever(
    work: Callable[[], Awaitable[bool | None]], every_s: float, troubles: Troubles
) -> None:
    """Do ``work`` until it says that there is no more of it, wait, and again; run as a task."""
    while True:
        try:
            while await work():
                pass
            troubles.end(work.__name__)
        except TransientError as error:
            _note(work, error, troubles)
        await asyncio.sleep(every_s)


async def whenever(
    due: asyncio.Event, work: Callable[[], Awaitable[bool]], troubles: Troubles
) -> None:
    """When ``due`` is set, do ``work`` until it has nothing more to do; run as a task."""
    while True:
        await due.wait()
        due.clear()
        try:
            while await work():
                pass
            troubles.end(work.__name__)
        except TransientError as error:
            _note(work, error, troubles)
            await asyncio.sleep(_RETRY_S)
            due.set()


def _note(work: Callable[..., object], error: TransientError, troubles: Troubles) -> None:
    if not isinstance(error, DatabaseAway):  # that is told once for everything that needs it
        troubles.begin(work.__name__, error)
