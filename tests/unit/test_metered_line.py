"""gRPC's way past the meter, with real sockets on loopback."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from worker.limits import Limits
from worker.meter import NetworkBudget
from worker.metered_line import MeteredLine

KIB = 1 << 10


@asynccontextmanager
async def far_end(gives: int = 0) -> AsyncIterator[tuple[str, asyncio.Queue[int]]]:
    """A server that sends so many bytes to everybody, and tells what comes."""
    came: asyncio.Queue[int] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(gives))
        while data := await reader.read(1 << 16):
            came.put_nowait(len(data))
        came.put_nowait(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        yield f"{host}:{port}", came


@asynccontextmanager
async def line_to(address: str, path: Path, budget: NetworkBudget) -> AsyncIterator[MeteredLine]:
    line = MeteredLine(address, path, budget)
    line.open()
    try:
        yield line
    finally:
        await line.close()
        await line.close()
    assert path not in set(path.parent.iterdir())


async def test_bytes_go_through_both_ways_and_are_counted(tmp_path: Path) -> None:
    budget, path = NetworkBudget(), tmp_path / "line.sock"
    async with far_end(300 * KIB) as (address, came), line_to(address, path, budget):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(bytes(500 * KIB))
        assert await reader.readexactly(300 * KIB) == bytes(300 * KIB)
        total = 0
        while total < 500 * KIB:
            total += await came.get()
        writer.close()
        while await came.get():  # the end passes, too
            pass
    assert 500 * KIB < budget.day.up_bytes < 560 * KIB
    assert 300 * KIB < budget.day.down_bytes < 360 * KIB


async def test_a_limit_holds_each_way_and_changes_at_once(tmp_path: Path) -> None:
    limits = Limits(upload_kbit_s=1600, download_kbit_s=1600)  # 200 kB/s
    budget, path = NetworkBudget(limits), tmp_path / "line.sock"
    async with far_end(4096 * KIB) as (address, came), line_to(address, path, budget):
        reader, writer = await asyncio.open_unix_connection(path)
        began_s = time.monotonic()
        writer.write(bytes(1024 * KIB))
        read = sent = 0
        async with asyncio.timeout(60):
            while read < 300 * KIB or sent < 300 * KIB:
                if read < 300 * KIB:
                    read += len(await reader.read(8 * KIB))
                while not came.empty():
                    sent += came.get_nowait()
                await asyncio.sleep(0)
        took_s = time.monotonic() - began_s
        slack = budget.down.pacer.slack_bytes
        assert took_s >= (300 * KIB - slack) / 200_000
        budget.change(Limits())
        async with asyncio.timeout(60):
            rest = await reader.readexactly(4096 * KIB - read)
        assert len(rest) == 4096 * KIB - read
        writer.close()


async def test_what_comes_unread_is_bounded(tmp_path: Path) -> None:
    """The far end can send no more than the kernel keeps while we make it wait."""
    budget, path = NetworkBudget(Limits(download_kbit_s=8)), tmp_path / "line.sock"
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * KIB)
    host, port = listening.getsockname()
    async with line_to(f"{host}:{port}", path, budget):
        _, writer = await asyncio.open_unix_connection(path)
        accepted, _ = await asyncio.to_thread(listening.accept)
        with listening, accepted:
            accepted.settimeout(1.0)
            sent = 0
            with pytest.raises(TimeoutError):
                while True:
                    sent += await asyncio.to_thread(accepted.send, bytes(4 * KIB))
        assert sent < 256 * KIB
        writer.close()


async def test_a_far_end_that_does_not_answer_ends_the_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
    path = tmp_path / "line.sock"
    async with line_to(address, path, NetworkBudget()):
        reader, writer = await asyncio.open_unix_connection(path)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    budget, path = NetworkBudget(Limits(upload_kbit_s=1)), tmp_path / "line.sock"
    async with far_end() as (address, _):
        async with line_to(address, path, budget):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(bytes(100 * KIB))
            for _ in range(3000):
                if budget.up.waiting:
                    break
                await asyncio.sleep(0.01)
            assert budget.up.waiting
        assert not budget.up.waiting
        with pytest.raises(ConnectionResetError):  # what it had sent was never read
            async with asyncio.timeout(30):
                await reader.read()
        writer.close()
    path.write_text("")  # left by a kill -9
    async with line_to(address, path, budget):
        assert stat.S_ISSOCK(path.stat().st_mode)


async def test_descriptors_that_run_out_for_a_while_cost_no_more_than_that(tmp_path: Path) -> None:
    budget, path = NetworkBudget(), tmp_path / "line.sock"
    _, most = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with far_end(KIB) as (address, _came), line_to(address, path, budget):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, capture_logs() as logs:
            client.setblocking(False)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
            try:
                client.connect(str(path))
                async with asyncio.timeout(60):
                    while not logs:  # noqa: ASYNC110 - what it says is all that is seen of it
                        await asyncio.sleep(0.01)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert logs[0]["event"] == "line cannot accept"
            async with asyncio.timeout(60):
                assert await asyncio.get_running_loop().sock_recv(client, KIB)
