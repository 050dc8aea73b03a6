"""HTTP/2 over TLS in hand-made frames, for what no well-behaved library would send.

Small enough that thousands of connections fit into one process: no buffers but the kernel's and
OpenSSL's. Frames are those of RFC 9113; headers are sent as literals without Huffman coding, and of
the answers only what gRPC says first on a connection is understood.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    *(0x0, 0x1, 0x3, 0x4, 0x6, 0x7),
    *(0x8, 0x9),
)
ACK, END_STREAM, END_HEADERS = 0x1, 0x1, 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_MOST_READ_BYTES = 1 << 14

Header = tuple[str, str]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + stream.to_bytes(4) + payload


def length_prefixed(text: bytes) -> bytes:
    """A string literal of HPACK, RFC 7541 section 5.2."""
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, out = len(text) - 127, bytearray((127,))
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes((*out, rest)) + text


def headers(fields: Iterable[Header]) -> bytes:
    """A header block, every field a literal that is not indexed."""
    return b"".join(
        b"\0" + length_prefixed(name.encode()) + length_prefixed(value.encode())
        for name, value in fields
    )


def call_headers(method: str, *extra: Header) -> bytes:
    """What opens a call of the coordinator."""
    return headers(
        (
            (":method", "POST"),
            (":scheme", "https"),
            (":path", f"/barnraise.v1.Coordinator/{method}"),
            (":authority", "barnraise"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *extra,
        )
    )


def message(data: bytes) -> bytes:
    """gRPC's frame around one message."""
    return b"\0" + struct.pack(">I", len(data)) + data


def tls_context() -> ssl.SSLContext:
    """Trusts everybody: a flood does not care whom it hits."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


@dataclass
class Answer:
    """What came back for one call."""

    replied: bool = False  # with a message
    status: int | None = None  # gRPC's, where the connection had not said it before
    text: bytes = b""  # of the trailers, as they came


@dataclass
class Connection:
    """One TLS connection that speaks HTTP/2 as far as it is told to."""

    sock: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    _data: bytearray = field(default_factory=bytearray)
    _next_stream: int = 1

    @classmethod
    async def open(
        cls, host: str, port: int, context: ssl.SSLContext, *, source: str | None = None
    ) -> Self:
        """Connect, shake hands, say that we speak HTTP/2.

        Raises:
            OSError: refused, reset, or the handshake failed (:class:`ssl.SSLError` is one).
        """
        sock = await connect(host, port, source=source)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="barnraise")
        made = cls(sock, tls, incoming, outgoing)
        try:
            await made._handshake()
            await made.send(PREFACE + frame(SETTINGS, 0, 0))
        except BaseException:
            made.close()
            raise
        return made

    async def _handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        if self.outgoing.pending:
            await asyncio.get_running_loop().sock_sendall(self.sock, self.outgoing.read())

    async def _fill(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.sock, _MOST_READ_BYTES)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.incoming.write(data)

    async def send(self, data: bytes) -> None:
        self.tls.write(data)
        await self._flush()

    async def receive(self, length: int) -> bytes:
        while len(self._data) < length:
            try:
                read = self.tls.read(_MOST_READ_BYTES)
            except ssl.SSLWantReadError:
                await self._fill()
                continue
            if not read:
                raise ConnectionResetError("the server ended the TLS session")
            self._data += read
        taken = bytes(self._data[:length])
        del self._data[:length]
        return taken

    async def next_frame(self) -> tuple[int, int, int, bytes]:
        """Kind, flags, stream and payload; settings and pings are acknowledged on the way."""
        while True:
            head = await self.receive(9)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:]) & 0x7FFFFFFF
            payload = await self.receive(int.from_bytes(head[:3]))
            if kind in (SETTINGS, PING):
                if not flags & ACK:
                    await self.speak(frame(kind, ACK, 0, payload if kind == PING else b""))
                continue
            return kind, flags, stream, payload

    async def start(self, method: str, *extra: Header) -> int:
        """Open a call and leave it open; returns its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        await self.send(frame(HEADERS, END_HEADERS, stream, call_headers(method, *extra)))
        return stream

    async def ask(self, method: str, request: bytes) -> Answer:
        """A whole unary call.

        Raises:
            OSError: the connection broke, or the server sent it away.
        """
        stream = await self.start(method)
        await self.send(frame(DATA, END_STREAM, stream, message(request)))
        return await self.answer(stream)

    async def answer(self, stream: int) -> Answer:
        answer = Answer()
        while True:
            kind, flags, of, payload = await self.next_frame()
            if kind == GOAWAY:
                raise ConnectionResetError(f"sent away: {payload[8:80]!r}")
            if of != stream:
                continue
            if kind == DATA and payload:
                answer.replied = True
            if kind == HEADERS and flags & END_STREAM:
                answer.text = payload
                answer.status = status_in(payload)
            if flags & END_STREAM or kind == RST_STREAM:
                return answer

    def close(self) -> None:
        self.sock.close()

    async def speak(self, data: bytes) -> None:
        """Send; what becomes of it is seen when the answer is read."""
        with suppress(OSError):
            await self.send(data)


async def connect(host: str, port: int, *, source: str | None = None) -> socket.socket:
    """A plain TCP connection, from one of loopback's own addresses if one is given."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if source is not None:
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def status_in(trailers: bytes) -> int | None:
    """``grpc-status``, if it is spelt out."""
    _, name, rest = trailers.partition(b"grpc-status")
    return int(rest[1 : 1 + rest[0]]) if name and rest[1:2].isdigit() else None
