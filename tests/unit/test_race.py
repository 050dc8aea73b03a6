"""Work that another event ends, and work that nothing interrupts."""

from __future__ import annotations

import asyncio

import pytest

from protocol.uncancelled import to_the_end
from worker.race import unless


async def test_what_was_begun_is_ended_however_often_it_is_cancelled() -> None:
    go, ended = asyncio.Event(), []

    async def work() -> str:
        await go.wait()
        ended.append(True)
        return "done"

    task = asyncio.ensure_future(to_the_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert await to_the_end(work()) == "done"


async def test_its_failure_comes_through_unless_nobody_waits_any_more() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        await to_the_end(fail())
    task = asyncio.ensure_future(to_the_end(fail()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_neither_outlives_the_race() -> None:
    left: list[str] = []

    async def forever(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append(name)

    async def soon() -> int:
        await asyncio.sleep(0)
        return 7

    assert await unless(soon(), forever("ended")) == 7
    assert await unless(forever("work"), soon()) is None
    assert left == ["ended", "work"]
