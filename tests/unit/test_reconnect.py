"""A worker whose address changed leaves its connection to the coordinator; nothing else ends."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coordinator.blobs import Blob
from protocol.errors import TransientError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.session import Session


@pytest.fixture
async def session(served: Any) -> AsyncIterator[Session]:
    opened = await Session.connect(served.link, Identity.generate())
    yield opened
    await opened.close()


class Slow:
    """Stands in a call of the server until it is let go; later calls pass."""

    def __init__(self, call: Any) -> None:
        self._call, self.calls, self.reached = call, 0, asyncio.Event()

    async def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            self.reached.set()
            await asyncio.Event().wait()
        return await self._call(*arguments)


async def test_a_call_under_way_is_made_again(
    served: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(served.engine.hello_head)
    monkeypatch.setattr(served.engine, "hello_head", slow)
    async with asyncio.TaskGroup() as tasks:
        greeting = tasks.create_task(session.hello())
        await slow.reached.wait()
        await session.reconnect()
        assert (await greeting).manifest == served.run.manifest
    assert slow.calls == 2


async def test_somebody_who_wants_the_call_to_end_has_his_way(
    served: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(served.engine.hello_head)
    monkeypatch.setattr(served.engine, "hello_head", slow)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60) as timeout, asyncio.TaskGroup() as tasks:
            tasks.create_task(session.hello())
            await slow.reached.wait()
            timeout.reschedule(0)
            await asyncio.Event().wait()
    assert slow.calls == 1


async def test_the_event_stream_breaks_and_is_opened_again(session: Session) -> None:
    me = session.identity.peer_id
    await session.enrol(
        wire.Enrolment(
            run_id=session.link.run_id,
            worker=me,
            donor=me,
            client_version="0.1.0",
            device=wire.Device(device_class="cpu"),
            client_mode=True,
        )
    )
    stream = session.watch()
    await anext(stream)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.reconnect())
        with pytest.raises(TransientError, match="given up for another"):
            await anext(stream)
    assert (await anext(session.watch())).run_head


async def test_a_download_breaks_and_can_go_on(
    served: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = Blob.pieces

    async def stalling(blob: Blob, offset: int) -> AsyncIterator[api.Piece]:
        async for piece in pieces(blob, offset):
            if offset:
                yield piece
                continue
            yield api.Piece(offset=0, total_bytes=piece.total_bytes, data=piece.data[:1000])
            await asyncio.Event().wait()

    monkeypatch.setattr(Blob, "pieces", stalling)
    assert session.greeting.run_head is not None
    weights = session.greeting.run_head.record.weights_sha256
    stream = session.blob_pieces(weights, 0)
    data = (await anext(stream)).data
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.reconnect())
        with pytest.raises(TransientError, match="given up for another"):
            await anext(stream)
    async for piece in session.blob_pieces(weights, len(data)):
        data += piece.data
    assert hashlib.sha256(data).digest() == weights
