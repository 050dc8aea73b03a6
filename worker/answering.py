"""Answering one stream, as long as its caller is there, and no longer.

Invariant: whatever a handler does, its caller gets an end: of the answers, a refusal in words, or
"internal error" for a bug of ours, which must not take the peer down.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

import structlog
from google.protobuf.message import Message
from hivemind.p2p import P2PContext
from hivemind.proto import p2pd_pb2

from protocol.errors import ProtocolError
from worker.messages import read_message, write_message
from worker.meter import FREE, Toll
from worker.patience import patience

log = structlog.get_logger()

LINGER_S = 5.0
"""How long an answered stream waits for its caller to hang up, so that the answer arrives."""

STALL_S = 60.0
"""A caller that neither sends what is due nor takes what it asked for is given up after this: it
would hold a stream, and with it a place among those served, for as long as it likes."""


async def answer_stream(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handler: Callable[[Any, P2PContext], AsyncIterator[Message]],
    kind: type[Message],
    context: P2PContext,
    toll: Toll = FREE,
) -> None:
    """Answer one stream, or stop when its caller has hung up."""
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[Message]:
        while True:
            async with patience(STALL_S):
                message = await read_message(reader, kind, toll)
            if message is None:
                break
            yield message
        ended.set()

    async def hang_up() -> None:
        await ended.wait()
        with suppress(OSError):  # a caller that was killed closes by a reset
            await reader.read(1)  # nothing may follow the end: returns when the caller closes

    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(_answer(writer, handler, requests(), context, toll))
        leaving = tasks.create_task(hang_up())
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        answering.cancel()
        leaving.cancel()
    # Closing with unread input would reset the connection and lose our last words.
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while late := await reader.read(1 << 16):
                await toll.receive(len(late))


async def _answer(
    writer: asyncio.StreamWriter,
    handler: Callable[[Any, P2PContext], AsyncIterator[Message]],
    requests: AsyncIterator[Message],
    context: P2PContext,
    toll: Toll,
) -> None:
    problem = p2pd_pb2.RPCError()  # empty: the end of the answers
    try:
        async with aclosing(handler(requests, context)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                async with patience(STALL_S):
                    await write_message(writer, reply, toll)
    except (OSError, asyncio.IncompleteReadError):  # a TimeoutError is an OSError
        return  # the caller is gone, or might as well be
    except ProtocolError as error:
        log.debug("stream_refused", peer=str(context.remote_id), why=str(error))
        problem.message = str(error)[:500]
    except Exception:  # the boundary: a bug in one handler must not take the peer down
        log.exception("stream_failed", handler=context.handle_name, peer=str(context.remote_id))
        problem.message = "internal error"
    with suppress(OSError):
        await write_message(writer, problem, toll)
