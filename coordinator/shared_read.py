"""One read for everybody who asks at the same time.

Invariant: what a caller gets was read after it had asked. So nothing is ever stale, and a thousand
callers cost no more than two reads: the one under way, which is too old for them, and the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from protocol.uncancelled import to_the_end

T = TypeVar("T")


class SharedRead(Generic[T]):
    """Shares the results of ``read`` among those who wait."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._read = read
        self._one_at_a_time = asyncio.Lock()
        self._begun = 0
        self._value: tuple[int, T] | None = None  # number of its read, result

    async def get(self) -> T:
        """Read, or wait for a read that another caller begins; raises what that raises."""
        wanted = self._begun + 1
        async with self._one_at_a_time:
            if self._value is None or self._value[0] < wanted:
                self._begun += 1
                # Others wait for it too: a caller that hangs up does not end it for them.
                self._value = (self._begun, await to_the_end(self._read()))
            return self._value[1]
