"""When an X11 server last saw somebody: its MIT-SCREEN-SAVER extension, asked by its own wire.

Without libX11, which ends the process that it is loaded into when the server goes.

Wire: `X Window System Protocol`_, appendix B; `MIT-SCREEN-SAVER`_, section "Encoding".

.. _X Window System Protocol: https://www.x.org/releases/current/doc/xproto/x11protocol.html
.. _MIT-SCREEN-SAVER: https://www.x.org/releases/current/doc/scrnsaverproto/saver.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from worker.sensors.local_socket import LocalSocket

_EXTENSION = b"MIT-SCREEN-SAVER"
_COOKIE = b"MIT-MAGIC-COOKIE-1"
_QUERY_EXTENSION, _QUERY_INFO = 98, 1
_REPLY, _EVENTS_FROM = 1, 2
_MOST_EVENTS = 64
_MOST_AUTHORITY_BYTES = 1 << 20


class X11:
    """A connection to one display of this machine."""

    def __init__(self, display: Path, authorities: tuple[Path, ...] = ()) -> None:
        """Connect.

        Args:
            display: its socket, such as ``/tmp/.X11-unix/X0``.
            authorities: files with the cookies that it may ask for.

        Raises:
            OSError: no server, it does not let us in, or it lacks the extension.
        """
        self._socket = LocalSocket(str(display))
        try:
            number = display.name.removeprefix("X").encode()
            self._root = self._log_in(next(_cookies(authorities, number), b""))
            self._opcode = self._find_extension()
        except (OSError, struct.error, IndexError) as error:
            self._socket.close()
            raise OSError(f"no X11 server that can be asked at {display}") from error

    def close(self) -> None:
        self._socket.close()

    def idle_s(self) -> float:
        """Since the last input.

        Raises:
            OSError: no answer in time.
        """
        self._socket.begin()
        self._socket.send(struct.pack("<BBHI", self._opcode, _QUERY_INFO, 2, self._root))
        (idle_ms,) = struct.unpack_from("<I", self._reply(), 16)
        return float(idle_ms) / 1000

    def _log_in(self, cookie: bytes) -> int:
        name = _COOKIE if cookie else b""
        start = struct.pack("<cxHHHHxx", b"l", 11, 0, len(name), len(cookie))
        self._socket.send(start + _padded(name) + _padded(cookie))
        status, _, _, length = struct.unpack("<BxHHH", self._socket.receive(8))
        rest = self._socket.receive(4 * length)
        if status != 1:
            raise OSError("not let in")
        vendor_bytes, formats = struct.unpack_from("<H", rest, 16)[0], rest[21]
        screen_at = 32 + -(-vendor_bytes // 4) * 4 + 8 * formats
        return int(struct.unpack_from("<I", rest, screen_at)[0])

    def _find_extension(self) -> int:
        length = 2 + len(_EXTENSION) // 4
        head = struct.pack("<BxHHxx", _QUERY_EXTENSION, length, len(_EXTENSION))
        self._socket.send(head + _EXTENSION)
        reply = self._reply()
        if not reply[8]:
            raise OSError("no MIT-SCREEN-SAVER")
        return reply[9]

    def _reply(self) -> bytes:
        for _ in range(_MOST_EVENTS):
            packet = self._socket.receive(32)
            if packet[0] == _REPLY:
                return packet + self._socket.receive(4 * struct.unpack_from("<I", packet, 4)[0])
            if packet[0] < _EVENTS_FROM:
                raise OSError("the X11 server refuses")
        raise OSError("the X11 server talks of other things")


def _cookies(authorities: tuple[Path, ...], display: bytes) -> Iterator[bytes]:
    """Those for a display of this machine, as Xau(3) lays them out."""
    for path in authorities:
        try:
            data = path.read_bytes()[:_MOST_AUTHORITY_BYTES]
        except OSError:
            continue
        at = 0
        while at < len(data):
            parts: list[bytes] = []
            at += 2  # the family of the address
            for _ in range(4):
                length = int.from_bytes(data[at : at + 2], "big")
                parts.append(data[at + 2 : at + 2 + length])
                at += 2 + length
            _, number, name, cookie = parts
            if name == _COOKIE and number in (b"", display):
                yield cookie


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
