"""Something that changes, for whoever waits for it."""

from __future__ import annotations

import asyncio


class News:
    """What is waited for is a state, not an event: who comes late misses nothing."""

    def __init__(self) -> None:
        self._change = asyncio.Event()

    def tell(self) -> None:
        """Wake everybody who waits."""
        self._change.set()
        self._change = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait for any change, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._change.wait()
        except TimeoutError:
            return
