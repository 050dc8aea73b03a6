"""How long another side may be silent, not counting the time that we ourselves make it wait.

Invariant: a peer is given up for its own silence only, never for the owner's limit on our line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar

_scopes: ContextVar[tuple[asyncio.Timeout, ...]] = ContextVar("patience", default=())


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """As :func:`asyncio.timeout`; it stands still while somebody inside is :func:`not_counted`."""
    async with asyncio.timeout(seconds) as scope:
        token = _scopes.set((*_scopes.get(), scope))
        try:
            yield
        finally:
            _scopes.reset(token)


@contextmanager
def not_counted() -> Iterator[None]:
    """What is waited for in here is our own doing."""
    clock = asyncio.get_running_loop().time
    began_s = clock()
    held = [(scope, scope.when()) for scope in _scopes.get() if not scope.expired()]
    for scope, _ in held:
        scope.reschedule(None)
    try:
        yield
    finally:
        for scope, until_s in held:
            if until_s is not None:
                with suppress(RuntimeError):  # it has ended meanwhile
                    scope.reschedule(until_s + clock() - began_s)
