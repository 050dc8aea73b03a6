"""The way to the coordinator, past the meter: gRPC's bytes as they go over the line.

A UNIX socket that the channel connects to, and behind it one TCP connection to the coordinator for
each one here. TLS goes through as it is: nothing is read or changed.

Invariants:

* What gRPC does by itself (framing, TLS, pings, retries) is counted and paced as well.
* With a limit on what comes in, what the coordinator may send before we take it is bounded by the
  kernel's buffer (:attr:`worker.meter.Toll.unread_bytes`; Linux takes twice that, its own
  bookkeeping included).
* The socket lies in the home folder, mode 0600; :meth:`MeteredLine.close` removes it and ends every
  connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from protocol.uncancelled import to_the_end
from worker.meter import NetworkBudget, Toll
from worker.pacing import Rank

log = structlog.get_logger()

_FREE_BUFFER_BYTES = 4 << 20
_READ_BYTES = 256 << 10
_DIAL_S = 20.0
_BACKLOG = 16
_ACCEPT_AGAIN_S = 1.0


class MeteredLine:
    """See the module; :meth:`open` it, :meth:`close` it."""

    def __init__(self, address: str, path: Path, budget: NetworkBudget) -> None:
        """``address`` is host:port; the channel connects to ``path``."""
        self._host, _, self._port = address.rpartition(":")
        self._path, self._budget = path, budget
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: socket.socket | None = None

    @property
    def target(self) -> str:
        """What to give to gRPC instead of the address."""
        return f"unix:{self._path}"

    def open(self) -> None:
        """Listen.

        Raises:
            OSError: the socket cannot be made there.
        """
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o177)
        try:
            listening.bind(str(self._path))
        except OSError:
            listening.close()
            raise
        finally:
            os.umask(previous)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        self._listening = listening
        self._begin(self._accept(listening))

    async def close(self) -> None:
        """End all connections and remove the socket. Safe to call twice."""
        await to_the_end(self._close())

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()
            self._path.unlink(missing_ok=True)
            self._listening = None

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                inner, _ = await loop.sock_accept(listening)
            except OSError as error:  # no descriptor is left, for now
                log.warning("line cannot accept", problem=str(error))
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            inner.setblocking(False)
            self._begin(self._carry(inner))

    async def _carry(self, inner: socket.socket) -> None:
        """One connection, until either side ends it."""
        with inner:
            toll = self._budget.toll(Rank.REDUCE)
            try:
                outer = await self._dial(toll)
            except OSError as error:  # a TimeoutError, too: gRPC dials again
                log.debug("line_not_connected", problem=str(error))
                return
            with outer:
                up = asyncio.create_task(_pump_up(inner, outer, toll))
                down = asyncio.create_task(_pump_down(outer, inner, toll))
                try:
                    await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    up.cancel()
                    down.cancel()
                    await asyncio.gather(up, down, return_exceptions=True)

    async def _dial(self, toll: Toll) -> socket.socket:
        """
        Raises:
            OSError: none of the addresses answers.
        """
        loop = asyncio.get_running_loop()
        problem: OSError = OSError(f"{self._host} has no address")
        async with asyncio.timeout(_DIAL_S):
            host = self._host.strip("[]")
            found = await loop.getaddrinfo(host, int(self._port), type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in found:
                outer = socket.socket(family, kind, protocol)
                try:
                    outer.setblocking(False)
                    outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if toll.unread_bytes:  # before it connects: then the first window is small
                        _bound_buffer(outer, toll.unread_bytes)
                    await loop.sock_connect(outer, address)
                except OSError as error:
                    outer.close()
                    problem = error
                except BaseException:
                    outer.close()
                    raise
                else:
                    return outer
        raise problem


async def _pump_up(inner: socket.socket, outer: socket.socket, toll: Toll) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(inner, toll.up_quantum or _READ_BYTES):
            await toll.send(len(data))
            await loop.sock_sendall(outer, data)


async def _pump_down(outer: socket.socket, inner: socket.socket, toll: Toll) -> None:
    loop = asyncio.get_running_loop()
    unread_bytes = toll.unread_bytes
    with suppress(OSError):
        while data := await loop.sock_recv(outer, toll.down_quantum or _READ_BYTES):
            if unread_bytes != toll.unread_bytes:
                unread_bytes = toll.unread_bytes
                _bound_buffer(outer, unread_bytes or _FREE_BUFFER_BYTES)
            await toll.receive(len(data))
            await loop.sock_sendall(inner, data)


def _bound_buffer(outer: socket.socket, size_bytes: int) -> None:
    outer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
