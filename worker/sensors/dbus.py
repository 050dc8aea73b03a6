"""Asking one value of a D-Bus service, and no more: no signals, no objects, no dependency.

The wire is little-endian (`D-Bus specification`_, version 0.43). A service that does not run is not
started by a question.

.. _D-Bus specification: https://dbus.freedesktop.org/doc/dbus-specification.html
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from urllib.parse import unquote

from worker.sensors.local_socket import MOST_BYTES, LocalSocket

CALL, RETURN, ERROR = 1, 2, 3
_NO_AUTO_START = 2
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 5, 6, 8
_MOST_OTHERS = 64  # messages that are not our answer


class BusError(OSError):
    """The service is not there, refuses, or answers something else."""


@dataclass(frozen=True)
class Question:
    """A method of a service, with strings for arguments."""

    service: str
    path: str
    interface: str
    member: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """What arrived: its type, its fields by code, and its body of that signature."""

    kind: int
    serial: int
    fields: dict[int, str | int] = field(default_factory=dict)
    body: bytes = b""


class Bus:
    """A connection to a message bus."""

    def __init__(self, addresses: str) -> None:
        """Connect and say hello.

        Args:
            addresses: such as ``unix:path=/run/user/1000/bus``; several, with ``;`` between.

        Raises:
            OSError: no bus is there, or it does not take us.
        """
        self._socket = LocalSocket(_socket_address(addresses))
        self._serial = 0
        try:
            self._socket.send(b"\0AUTH EXTERNAL %s\r\n" % str(os.getuid()).encode().hex().encode())
            if not self._socket.receive_line().startswith(b"OK "):
                raise BusError("the bus does not know us")
            self._socket.send(b"BEGIN\r\n")
            service = "org.freedesktop.DBus"
            self._answer(Question(service, "/org/freedesktop/DBus", service, "Hello"))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def number(self, question: Question) -> int:
        """An answer of one number or boolean, bare or in a variant.

        Raises:
            OSError: no such service, no answer in time, or another answer.
        """
        self._socket.begin()
        reply = self._answer(question)
        return first_number(str(reply.fields.get(_SIGNATURE, "")), reply.body)

    def _answer(self, question: Question) -> Message:
        self._serial += 1
        self._socket.send(call(question, self._serial))
        for _ in range(_MOST_OTHERS):
            message = read_message(self._socket)
            if message.fields.get(_REPLY_SERIAL) == self._serial:
                if message.kind == RETURN:
                    return message
                raise BusError(f"{question.service} does not answer {question.member}")
        raise BusError("the bus talks of other things")


def call(question: Question, serial: int) -> bytes:
    """The message that asks."""
    body = b""
    for argument in question.arguments:
        body = _padded(body, 4) + _string(argument)
    fields = [
        (_PATH, "o", question.path),
        (_INTERFACE, "s", question.interface),
        (_MEMBER, "s", question.member),
        (_DESTINATION, "s", question.service),
    ]
    header = b""
    for code, kind, text in fields:
        header = _padded(header, 8) + bytes([code, 1]) + kind.encode() + b"\0" + _string(text)
    if body:
        signature = b"s" * len(question.arguments)
        code_and_kind = bytes([_SIGNATURE, 1]) + b"g\0"
        header = _padded(header, 8) + code_and_kind + bytes([len(signature)]) + signature + b"\0"
    start = struct.pack(
        "<BBBBIII", ord("l"), CALL, _NO_AUTO_START, 1, len(body), serial, len(header)
    )
    return _padded(start + header, 8) + body


def read_message(source: LocalSocket) -> Message:
    """The next message, whatever it is.

    Raises:
        OSError: it is none, or too large.
    """
    start = source.receive(16)
    order = {ord("l"): "<", ord("B"): ">"}.get(start[0])
    if order is None:
        raise BusError("not a D-Bus message")
    body_bytes, serial, fields_bytes = struct.unpack(f"{order}III", start[4:])
    if max(body_bytes, fields_bytes) > MOST_BYTES:
        raise BusError("a message too large for one number")
    fields = source.receive(-(-fields_bytes // 8) * 8)[:fields_bytes]
    body = source.receive(body_bytes)
    if order != "<":
        raise BusError("a message of another byte order")
    try:
        return Message(start[1], serial, _fields(fields), body)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise BusError("a damaged D-Bus message") from error


def _fields(data: bytes) -> dict[int, str | int]:
    found: dict[int, str | int] = {}
    at = 0
    while at < len(data):
        code, kind = data[at], data[at + 2 : at + 3]
        at += 4  # code, and a signature of one letter with its length and its NUL
        if kind == b"u":
            (found[code],) = struct.unpack_from("<I", data, at)
            at += 4
        elif kind == b"g":
            length = data[at]
            found[code] = data[at + 1 : at + 1 + length].decode()
            at += length + 2
        elif kind in (b"s", b"o"):
            (length,) = struct.unpack_from("<I", data, at)
            found[code] = data[at + 4 : at + 4 + length].decode()
            at += length + 5
        else:
            raise BusError("a D-Bus message with a field of an unknown type")
        at = -(-at // 8) * 8
    return found


def first_number(signature: str, body: bytes) -> int:
    """The number that a body of this signature begins with.

    Raises:
        BusError: it begins with something else.
    """
    at = 0
    if signature == "v" and len(body) > 2 and body[0] == 1:
        signature, at = chr(body[1]), 3
    form = {"y": "B", "b": "I", "q": "H", "u": "I", "i": "i", "t": "Q", "x": "q"}.get(signature)
    if form is None:
        raise BusError(f"an answer of the type {signature!r}")
    at = -(-at // struct.calcsize(form)) * struct.calcsize(form)
    if len(body) < at + struct.calcsize(form):
        raise BusError("an answer that is cut off")
    return int(struct.unpack_from(f"<{form}", body, at)[0])


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


def _socket_address(addresses: str) -> str:
    for address in addresses.split(";"):
        transport, _, rest = address.partition(":")
        values = dict(part.partition("=")[::2] for part in rest.split(","))
        if transport == "unix" and "path" in values:
            return unquote(values["path"])
        if transport == "unix" and "abstract" in values:
            return "\0" + unquote(values["abstract"])
    raise BusError(f"no bus that can be reached at {addresses!r}")
