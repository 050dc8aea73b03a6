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
from worker.meter import FREE, Toll

_MESSAGE, _ERROR = P2P.MESSAGE_MARKER, P2P.ERROR_MARKER
_HEAD_BYTES = 1 + P2P.HEADER_LEN
_MAX_ERROR_BYTES = 4096

Reply = TypeVar("Reply", bound=Message)


async def read_message(
    reader: asyncio.StreamReader, kind: type[Reply], toll: Toll = FREE
) -> Reply | None:
    """Read one message; None when the other side has ended its direction.

    Args:
        toll: is paid for every piece before it is read.

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
    data = await _read_paced(reader, length, toll)
    try:
        if marker == _MESSAGE:
            return kind.FromString(data)
        problem = p2pd_pb2.RPCError.FromString(data)
    except DecodeError as error:
        raise BadRecord("a frame that does not parse") from error
    if problem.message:
        raise TransientError(f"the peer says: {problem.message[:500]}")
    return None


async def _read_paced(reader: asyncio.StreamReader, length: int, toll: Toll) -> bytes:
    quantum = toll.down_quantum
    if not 0 < quantum < length:
        await toll.receive(_HEAD_BYTES + length)
        return await reader.readexactly(length)
    pieces = []
    for start in range(0, length, quantum):
        size = min(quantum, length - start)
        await toll.receive(size)
        pieces.append(await reader.readexactly(size))
    return b"".join(pieces)


async def write_message(writer: asyncio.StreamWriter, message: Message, toll: Toll = FREE) -> None:
    """Write one message and wait until the transport wants more.

    Args:
        toll: is paid for every piece before it is written.
    """
    data = message.SerializeToString()
    marker = _ERROR if isinstance(message, p2pd_pb2.RPCError) else _MESSAGE
    head = marker + len(data).to_bytes(P2P.HEADER_LEN, P2P.BYTEORDER)
    quantum = toll.up_quantum or len(data)
    await toll.send(len(head) + min(quantum, len(data)))
    writer.write(head + data[:quantum])  # nine bytes alone would be a packet of their own
    await writer.drain()
    for start in range(quantum, len(data), max(quantum, 1)):
        piece = data[start : start + quantum]
        await toll.send(len(piece))
        writer.write(piece)
        await writer.drain()


class Stream(Generic[Reply]):
    """The caller's end of one stream."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        reply: type[Reply],
        toll: Toll = FREE,
    ) -> None:
        self._reader, self._writer, self._reply, self._toll = reader, writer, reply, toll

    async def send(self, message: Message) -> None:
        await write_message(self._writer, message, self._toll)

    async def expect(self, size_bytes: int) -> None:
        """Before so much is asked for; see :meth:`worker.meter.Toll.expect`."""
        await self._toll.expect(size_bytes)

    def left(self, size_bytes: int) -> None:
        """So much of it is still to come; see :meth:`worker.meter.Toll.left`."""
        self._toll.left(size_bytes)

    async def finish(self) -> None:
        """End our direction; replies may still come."""
        await write_message(self._writer, P2P.END_OF_STREAM, self._toll)

    async def receive(self) -> Reply | None:
        return await read_message(self._reader, self._reply, self._toll)

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
