"""A unix socket to a service of this machine that may be slow, gone or not what it seems."""

from __future__ import annotations

import socket
import time

PATIENCE_S = 0.5
MOST_BYTES = 1 << 20


class LocalSocket:
    """Every exchange ends within :data:`PATIENCE_S` after :meth:`begin`; else it raises OSError."""

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: a path, or an abstract name with a leading NUL.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._until_s = time.monotonic() + PATIENCE_S
        try:
            self._socket.settimeout(PATIENCE_S)
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise

    def begin(self) -> None:
        """The time for the next exchange starts now."""
        self._until_s = time.monotonic() + PATIENCE_S

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._wait()
        self._socket.sendall(data)

    def receive(self, count: int) -> bytes:
        """Exactly so many bytes."""
        if not 0 <= count <= MOST_BYTES:
            raise OSError(f"a message of {count} bytes is none")
        data = bytearray()
        while len(data) < count:
            self._wait()
            more = self._socket.recv(count - len(data))
            if not more:
                raise OSError("the other side hung up")
            data += more
        return bytes(data)

    def receive_line(self) -> bytes:
        """Up to CR LF."""
        line = bytearray()
        while not line.endswith(b"\r\n"):
            line += self.receive(1)
            if len(line) > 1024:
                raise OSError("a line without an end")
        return bytes(line[:-2])

    def has_more(self) -> bool:
        """Whether something came, or the other side hung up."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    def _wait(self) -> None:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(left_s)
