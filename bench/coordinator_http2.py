"""A lean gRPC client: many calls on one TLS connection, from a chosen loopback address.

A load generator must cost less than what it loads. Frames are those of RFC 9113; requests repeat
one header block for each method, and the answers' headers are never decoded: a call that brought a
message succeeded, and one that did not is an error whose trailers are kept as they came (this side
allows no header table, so they come as literals).
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from protocol.certificate import TLS_NAME

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_TABLE_SIZE = 1
_FIRST_WINDOW_BYTES = 65_535
_GIVE_BACK_BYTES = 1 << 14
_MOST_STREAMS = 90  # a few less than the coordinator allows on one connection


class CallFailed(Exception):
    """The call ended without a message; the text holds what the trailers said."""


@dataclass
class _Call:
    done: asyncio.Future[bytes]
    on_message: Callable[[bytes], None] | None  # of a stream
    data: bytearray = field(default_factory=bytearray)


class Connection(asyncio.Protocol):
    """One connection; calls beyond what the server allows at once wait for a place."""

    def __init__(self) -> None:
        self._input = bytearray()
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[tuple[bytes, _Call, bytes]] = deque()
        self._next_stream = 1
        self._window_bytes = _FIRST_WINDOW_BYTES  # what may be sent
        self._taken_bytes = 0  # received, not given back yet
        self.problem = ""

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext, source: str) -> Connection:
        """Connect from the address ``source``."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            cls, host, port, ssl=tls, server_hostname=TLS_NAME, local_addr=(source, 0)
        )
        return connection

    def ask(self, method: str, request: bytes) -> asyncio.Future[bytes]:
        """A unary call; the future has its reply, or raises :class:`CallFailed`."""
        return self._begin(method, request, None)

    def watch(
        self, method: str, request: bytes, on_message: Callable[[bytes], None]
    ) -> asyncio.Future[bytes]:
        """A stream of replies; the future ends when it does."""
        return self._begin(method, request, on_message)

    def close(self) -> None:
        self._transport.abort()

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        settings = struct.pack(">HI", _HEADER_TABLE_SIZE, 0)
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings))

    def connection_lost(self, error: Exception | None) -> None:
        self.problem = self.problem or f"connection lost: {error}"
        calls = [*self._calls.values(), *(call for _, call, _ in self._waiting)]
        self._calls.clear()
        self._waiting.clear()
        for call in calls:
            _fail(call, self.problem)

    def data_received(self, data: bytes) -> None:
        self._input += data
        at, end = 0, len(self._input)
        while end - at >= 9:
            length = int.from_bytes(self._input[at : at + 3])
            if end - at < 9 + length:
                break
            kind, flags = self._input[at + 3], self._input[at + 4]
            stream = int.from_bytes(self._input[at + 5 : at + 9])
            self._take(kind, flags, stream, bytes(self._input[at + 9 : at + 9 + length]))
            at += 9 + length
        del self._input[:at]
        self._send_waiting()

    # ---- frames ----

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._take_data(stream, payload)
        elif kind == _HEADERS and flags & _END_STREAM:
            self._end(stream, payload)
        elif kind == _RESET:
            self._end(stream, b"reset %d" % int.from_bytes(payload))
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _WINDOW and stream == 0:
            self._window_bytes += int.from_bytes(payload)
        elif kind == _GOAWAY:
            self.problem = f"sent away: {payload[8:80]!r}"

    def _take_data(self, stream: int, payload: bytes) -> None:
        self._taken_bytes += len(payload)
        if self._taken_bytes >= _GIVE_BACK_BYTES:
            self._transport.write(_frame(_WINDOW, 0, 0, self._taken_bytes.to_bytes(4)))
            self._taken_bytes = 0
        call = self._calls.get(stream)
        if call is None or not payload:
            return
        call.data += payload
        if call.on_message is None:
            return
        self._transport.write(_frame(_WINDOW, 0, stream, len(payload).to_bytes(4)))
        while (message := _first_message(call.data)) is not None:
            del call.data[: 5 + len(message)]
            call.on_message(message)

    def _end(self, stream: int, trailers: bytes) -> None:
        call = self._calls.pop(stream, None)
        if call is None or call.done.done():
            return
        message = _first_message(call.data)
        if message is None:
            _fail(call, trailers.decode("latin-1"))
        else:
            call.done.set_result(message)

    def _begin(
        self, method: str, request: bytes, on_message: Callable[[bytes], None] | None
    ) -> asyncio.Future[bytes]:
        call = _Call(asyncio.get_running_loop().create_future(), on_message)
        self._waiting.append(
            (_opening(method), call, b"\0" + struct.pack(">I", len(request)) + request)
        )
        self._send_waiting()
        return call.done

    def _send_waiting(self) -> None:
        while self._waiting and len(self._calls) < _MOST_STREAMS:
            opening, call, body = self._waiting[0]
            if self.problem or len(body) > self._window_bytes:
                return
            self._waiting.popleft()
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            self._calls[stream] = call
            self._window_bytes -= len(body)
            self._transport.write(
                _frame(_HEADERS, _END_HEADERS, stream, opening)
                + _frame(_DATA, _END_STREAM, stream, body)
            )


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _opening(method: str) -> bytes:
    """The header block of a call, every field a literal that is not indexed (RFC 7541, 6.2.2)."""
    if method not in _openings:
        fields = (
            (":method", "POST"),
            (":scheme", "https"),
            (":path", f"/barnraise.v1.Coordinator/{method}"),
            (":authority", TLS_NAME),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        _openings[method] = b"".join(
            b"\0" + bytes((len(text),)) + text.encode()
            if position == 0
            else bytes((len(text),)) + text.encode()
            for one in fields
            for position, text in enumerate(one)
        )
    return _openings[method]


_openings: dict[str, bytes] = {}


def _first_message(data: bytearray) -> bytes | None:
    if len(data) < 5:
        return None
    length = int.from_bytes(data[1:5])
    return bytes(data[5 : 5 + length]) if len(data) >= 5 + length else None


def _fail(call: _Call, problem: str) -> None:
    if not call.done.done():
        call.done.set_exception(CallFailed(problem))
