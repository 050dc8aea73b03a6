"""The coordinator dials back: whoever asks, at most so much, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from coordinator import dial_back
from coordinator.dial_back import HEADER, MAX_PORTS, MOST_AT_ONCE, DialBack, host_of
from protocol.errors import BadRecord, RateLimited
from protocol.wire import service_pb2 as api

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def a_peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEADER)
    await reader.read()


async def a_web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.fixture
async def client(served: Any) -> AsyncIterator[Any]:
    async with served.client() as made:
        yield made


def ask(client: Any, *ports: int, run_id: bytes | None = None) -> Any:
    request = api.DialBackRequest(run_id=run_id or client.link.run_id, ports=ports)
    return client.stub.DialBack(request, timeout=30)


async def test_only_a_port_where_a_peer_speaks_is_reachable(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial_back, "DIAL_S", 1.0)
    async with listening(a_peer) as peer, listening(a_web_server) as web, listening(nobody) as mute:
        async with listening(nobody) as closed:
            pass
        reply = await ask(client, mute, web, closed, peer)
    # To whoever asks, the other three look the same.
    assert reply == api.DialBackReply(address="127.0.0.1", reachable=[peer])


async def test_what_it_sends_is_no_more_than_a_greeting(client: Any) -> None:
    heard: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADER + bytes(1 << 20))
        try:
            while data := await reader.read(100):
                heard.append(data)
        except ConnectionError:
            return

    async with listening(note) as port:
        assert list((await ask(client, port, port)).reachable) == [port]
    assert heard == [HEADER]


@pytest.mark.parametrize("ports", [(), (4001,) * (MAX_PORTS + 1), (80,), (1023,), (70_000,), (0,)])
async def test_ports_that_are_not_dialled(client: Any, ports: tuple[int, ...]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(client, *ports)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_request_must_be_for_the_run(client: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(client, 4001, run_id=b"x" * 32)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_address_may_ask_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[str] = []

    async def dial(host: str, port: int) -> bool:
        dialled.append(host)
        return True

    monkeypatch.setattr(dial_back, "speaks_libp2p", dial)
    now_s = 0.0
    service = DialBack(lambda: now_s)
    most = dial_back.REQUESTS_PER_ADDRESS.burst
    for _ in range(most):
        await service.answer([4001], "ipv4:192.0.2.1:5")
    with pytest.raises(RateLimited, match=r"192\.0\.2\.1: try again in 5\.0 s"):
        await service.answer([4001], "ipv4:192.0.2.1:6")
    await service.answer([4001], "ipv4:192.0.2.2:5")  # only the one address is slowed down
    now_s = 5.0
    await service.answer([4001], "ipv4:192.0.2.1:5")
    with pytest.raises(BadRecord):  # costs nothing
        await service.answer([], "ipv4:192.0.2.1:5")
    assert dialled == ["192.0.2.1"] * most + ["192.0.2.2", "192.0.2.1"]


async def test_so_many_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = asyncio.Event()

    async def dial(host: str, port: int) -> bool:
        await hold.wait()
        return True

    monkeypatch.setattr(dial_back, "speaks_libp2p", dial)
    service = DialBack(lambda: 0.0)
    async with asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(service.answer([4001], f"ipv4:192.0.2.{number}:5"))
            for number in range(MOST_AT_ONCE)
        ]
        await asyncio.sleep(0)
        with pytest.raises(RateLimited, match="try again in a minute"):
            await service.answer([4001], "ipv4:198.51.100.1:5")
        waiting[0].cancel()  # a client that hangs up gives its place to the next
        await asyncio.wait([waiting[0]])
        hold.set()
        assert (await service.answer([4001], "ipv4:198.51.100.1:5")).reachable == [4001]
    assert sum(not task.cancelled() for task in waiting) == MOST_AT_ONCE - 1


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:%5B2001:db8::7%5D:5000", "2001:db8::7"),  # not its /64: it is dialled
        ("ipv6:[::ffff:192.0.2.1]:5000", "192.0.2.1"),
        ("unix:/tmp/socket", "None"),
        ("ipv4:example.org:5000", "None"),
        ("", "None"),
    ],
)
def test_whom_it_dials(peer: str, host: str) -> None:
    assert str(host_of(peer)) == host


async def test_who_has_no_address_is_not_dialled() -> None:
    assert await DialBack(lambda: 0.0).answer([4001], "unix:/tmp/x") == api.DialBackReply()
