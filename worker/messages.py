"""Messages on a stream, in hivemind's framing, bounded before they are read.

See :mod:`worker.frames` for the bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message
from hivemind.p2p import P2P
from hivemind.proto import p2pd_pb2

from protocol.errors import BadRecord, ProtocolError, TransientError
from worker.frames import MAX_FRAME_BYTES

_MESSAGE, _ERROR = P2P.MESSAGE_MARKER, P2P.ERROR_MARKER
_MAX_ERROR_BYTES = 4096

Reply = TypeVar("Reply", bound=Message)


async def read_message(reader: asyncio.StreamReader, kind: type[Reply]) -> Reply | None:
    """Read one message; None when the other side has ended its direction.

    Raises:
        BadRecord: over the limit, or not such a message.
        TransientError: the other side reports a failure.
        asyncio.IncompleteReadError: the stream broke.
    """
    marker = await reader.readexactly(1)
    length = int.from_bytes(await reader.readexactly(P2P.HEADER_LEN), P2P.BYTEORDER)
    if marker not in (_MESSAGE, _ERROR):
        raise BadRecord("a stream out of frame")
    if length > (MAX_FRAME_BYTES if marker == _MESSAGE else _MAX_ERROR_BYTES):
        raise BadRecord(f"a frame of {length} bytes is over the limit")
    data = await reader.readexactly(length)
    try:
        if marker == _MESSAGE:
            return kind.FromString(data)
        problem = p2pd_pb2.RPCError.FromString(data)
    except DecodeError as error:
        raise BadRecord("a frame that does not parse") from error
    if problem.message:
        raise TransientError(f"the peer says: {problem.message[:500]}")
    return None


async def write_message(writer: asyncio.StreamWriter, message: Message) -> None:
    """Write one message and wait until the transport wants more."""
    data = message.SerializeToString()
    marker = _ERROR if isinstance(message, p2pd_pb2.RPCError) else _MESSAGE
    writer.write(marker + len(data).to_bytes(P2P.HEADER_LEN, P2P.BYTEORDER))
    writer.write(data)
    await writer.drain()


class Stream(Generic[Reply]):
    """The caller's end of one stream."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: type[Reply]
    ) -> None:
        self._reader, self._writer, self._reply = reader, writer, reply

    async def send(self, message: Message) -> None:
        await write_message(self._writer, message)

    async def finish(self) -> None:
        """End our direction; replies may still come."""
        await write_message(self._writer, P2P.END_OF_STREAM)

    async def receive(self) -> Reply | None:
        return await read_message(self._reader, self._reply)

    async def converse(self, messages: AsyncIterator[Message]) -> Reply | None:
        """Send messages until the first reply comes, which may be before all are sent."""
        reply, problem = None, None
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(self._send_all(messages))
            try:
                reply = await self.receive()
            except (ProtocolError, OSError, asyncio.IncompleteReadError) as error:
                problem = error  # raised below: inside it would come out as an ExceptionGroup
            sending.cancel()
        if problem is not None:
            raise problem
        return reply

    async def _send_all(self, messages: AsyncIterator[Message]) -> None:
        # A broken pipe says less than the reply that came before it.
        with suppress(OSError):
            async with aclosing(messages) as sending:  # type: ignore[type-var]
                async for message in sending:
                    await self.send(message)
