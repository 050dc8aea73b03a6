"""Messages on a real stream of which one side's owner has limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

from hivemind.p2p import P2P

from worker import frames
from worker.limits import Limits
from worker.messages import Stream, read_message, write_message
from worker.meter import NetworkBudget
from worker.pacing import Rank

GROUP = bytes(20)
KBIT_S = 4000
RATE = KBIT_S * 125


@asynccontextmanager
async def connection() -> AsyncIterator[
    tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamWriter]
]:
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *ends: accepted.put_nowait(ends), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        other_reader, other_writer = await accepted.get()
        try:
            yield reader, writer, other_reader, other_writer
        finally:
            writer.close()
            other_writer.close()


def chunk(index: int, size: int) -> frames.Frame:
    return frames.chunk(GROUP, index, size, bytes([index]) * size)


async def test_frames_arrive_whole_and_at_the_rate() -> None:
    budget = NetworkBudget(Limits(upload_kbit_s=KBIT_S))
    sizes = [1, 4096, 16_384, 16_385, 200_000, 300_000, 5]
    async with asyncio.timeout(60), connection() as (_, writer, reader, _):
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:

            async def send() -> None:
                for index, size in enumerate(sizes):
                    await write_message(writer, chunk(index, size), budget.toll(Rank.REDUCE))
                await write_message(writer, P2P.END_OF_STREAM, budget.toll(Rank.REDUCE))

            tasks.create_task(send())
            for index, size in enumerate(sizes):
                assert await read_message(reader, frames.Frame) == chunk(index, size)
            assert await read_message(reader, frames.Frame) is None
        took_s = time.monotonic() - began_s
    assert took_s >= (sum(sizes) - budget.up.pacer.slack_bytes) / RATE
    assert budget.day.up_bytes > sum(sizes)


async def test_a_slow_reader_holds_the_sender_back() -> None:
    budget = NetworkBudget(Limits(download_kbit_s=KBIT_S))
    count, size = 12, 100_000
    async with asyncio.timeout(60), connection() as (reader, writer, other_reader, other):
        stream = Stream(reader, writer, frames.Frame, budget.toll(Rank.REDUCE))

        async def send() -> None:
            for index in range(count):
                await write_message(other, chunk(index, size))

        arrivals = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            for index in range(count):
                assert await stream.receive() == chunk(index, size)
                arrivals.append(time.monotonic())
    slack = budget.down.pacer.slack_bytes
    assert arrivals[-1] - arrivals[0] >= ((count - 1) * size - slack) / RATE
    assert all(b >= a for a, b in pairwise(arrivals))


async def test_a_stream_that_breaks_while_it_waits_lets_others_pass() -> None:
    budget = NetworkBudget(Limits(upload_kbit_s=KBIT_S))
    async with asyncio.timeout(60), connection() as (_, writer, reader, _):
        async with asyncio.TaskGroup() as tasks:
            given_up = tasks.create_task(
                write_message(writer, chunk(1, 1_000_000), budget.toll(Rank.REDUCE))
            )
            await reader.readexactly(20_000)
            given_up.cancel()
        assert not budget.up.waiting
        await budget.toll(Rank.BLOBS).send(16_384)
