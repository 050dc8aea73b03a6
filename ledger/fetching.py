"""Files over HTTP from somebody who is not trusted: bounded in size, and in time.

A server that sends a byte now and then would keep a reader for ever, so a slow one is a failure.
It may lead to other places of its own host, to no others.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from protocol.errors import TransientError, UsageError

Fetch = Callable[[str, int], bytes | None]
"""``(path, most_bytes)`` -> at most one byte more than that; None for a missing file."""

TIMEOUT_S = 30.0
_LEAST_BYTES_PER_S = 4096
_BLOCK_BYTES = 1 << 16
_MOST_TOLD_CHARS = 300


class WebFolder:
    """A leaderboard, or any web host with the record's files."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Read below ``url``.

        Args:
            url: http or https.
            timeout_s: of a silent server; and of a slow one's headers, after which it is to send
                some kilobytes each second.

        Raises:
            UsageError: not a web address.
        """
        if urlsplit(url).scheme not in ("http", "https"):
            raise UsageError(f"not a web address: {url!r}; it begins with https:// or http://")
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            _WatchedHttp(),
            _WatchedHttps(),
            _OwnHost(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            self._opener.add_handler(handler)

    def get(self, path: str, most_bytes: int) -> bytes | None:
        """A file, read to at most one byte more than ``most_bytes``; None: there is none.

        Raises:
            TransientError: the server is away, answers with an error, or is too slow.
        """
        address = f"{self.url}/{path}"
        try:
            with self._opener.open(address, timeout=self._timeout_s) as answer:
                return self._read(answer, most_bytes + 1)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                return None
            raise TransientError(f"{address} answers {error.code}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # of a bad redirect, too
            raise TransientError(f"cannot read {address}: {_told(error)}") from error

    def _read(self, answer: Any, most_bytes: int) -> bytes:
        began_s, data = time.monotonic(), bytearray()
        while len(data) < most_bytes:
            block = answer.read1(min(_BLOCK_BYTES, most_bytes - len(data)))
            if not block:
                left = answer.length
                if left:
                    raise http.client.IncompleteRead(bytes(data[:0]), left)
                break
            data += block
            spent_s = time.monotonic() - began_s
            if spent_s > self._timeout_s + len(data) / _LEAST_BYTES_PER_S:
                raise TimeoutError(f"too slow: {len(data)} bytes in {spent_s:.0f} s")
        return bytes(data)


def _told(error: Exception) -> str:
    """What went wrong; it may quote the server."""
    told = str(error)[:_MOST_TOLD_CHARS]
    return told if told.isprintable() else ascii(told)


class _Watched(http.client.HTTPResponse):
    """Hangs up if the headers, or the next block, are not there in time.

    The lines between which a body may come are without end: each byte of one would buy more time.
    """

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._socket = sock

    def begin(self) -> None:
        with _in_time(self._socket):
            super().begin()

    def read1(self, n: int = -1) -> bytes:
        with _in_time(self._socket):
            return super().read1(n)


@contextmanager
def _in_time(connection: socket.socket) -> Iterator[None]:
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        with suppress(OSError, AttributeError):  # it may end at this very moment
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(connection.gettimeout() or TIMEOUT_S, hang_up)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    if late.is_set():  # what was cut off looks like the end of it
        raise TimeoutError("too slow: what was asked for did not come in time")


class _Connection(http.client.HTTPConnection):
    response_class = _Watched


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Watched


class _WatchedHttp(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _WatchedHttps(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


class _OwnHost(urllib.request.HTTPRedirectHandler):
    """Follows within a host: what lies on our own network is nothing that a stranger may name."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # else its body is read, and need not end
        if urlsplit(newurl).hostname != urlsplit(req.full_url).hostname:
            raise OSError(f"it leads to {newurl[:200]!r}: give that address, if it is right")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
