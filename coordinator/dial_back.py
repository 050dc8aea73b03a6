"""Can a worker be reached from outside? The coordinator dials back and says.

A stranger asks, so what is done for it is bounded:

* It dials **the address that the request came from**, as the transport names it, and no other; that
  takes a finished TCP handshake, so nobody can have somebody else dialled.
* At most :data:`MAX_PORTS` ports, none below :data:`LEAST_PORT`; :data:`DIAL_S` seconds for all of
  it; :data:`REQUESTS_PER_ADDRESS`; at most :data:`MOST_AT_ONCE` requests at a time.
* It sends one line of :data:`HEADER` and reads as much: less than the request took. The answer says
  no more than whether a libp2p peer spoke: a closed, a silent and a foreign port look the same.

That a libp2p peer answers does not say which one: whoever is told the address checks its PeerID.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote

from coordinator.requests import Buckets, Rate, address_of
from protocol.errors import BadRecord, RateLimited
from protocol.wire import service_pb2

MAX_PORTS = 4
LEAST_PORT = 1024
DIAL_S = 4.0
MOST_AT_ONCE = 32

REQUESTS_PER_ADDRESS = Rate(per_s=0.2, burst=30)
"""A class-room behind one router may start at once; to try all ports of an address takes a day."""

HEADER = b"\x13/multistream/1.0.0\n"
"""What each side of a new libp2p connection says first, with its length before it."""


class DialBack:
    """Answers ``DialBack``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._addresses = Buckets(REQUESTS_PER_ADDRESS, clock)
        self._at_once = 0

    async def answer(self, ports: Sequence[int], peer: str) -> service_pb2.DialBackReply:
        """Dial the ports of whoever asks.

        Args:
            ports: as asked for.
            peer: the transport's name of the other side (``ServicerContext.peer()``).

        Raises:
            BadRecord: no ports, too many, or one that is not allowed.
            RateLimited: this address, or everybody, asks too often.
        """
        asked = check_ports(ports)
        host = host_of(peer)
        if host is None:
            return service_pb2.DialBackReply()
        self._addresses.take(address_of(peer))
        if self._at_once >= MOST_AT_ONCE:
            raise RateLimited("too many machines ask to be dialled just now: try again in a minute")
        self._at_once += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                found = [tasks.create_task(speaks_libp2p(str(host), port)) for port in asked]
        finally:
            self._at_once -= 1
        reachable = [port for port, task in zip(asked, found, strict=True) if task.result()]
        return service_pb2.DialBackReply(address=str(host), reachable=reachable)


def check_ports(ports: Sequence[int]) -> list[int]:
    """The ports to dial, each once.

    Raises:
        BadRecord: none, too many, or one that is not allowed.
    """
    if not 1 <= len(ports) <= MAX_PORTS:
        raise BadRecord(f"{len(ports)} ports to dial, allowed are 1 to {MAX_PORTS}")
    for port in ports:
        if not LEAST_PORT <= port <= 65_535:
            raise BadRecord(f"port {port} is not dialled, only {LEAST_PORT} to 65535 are")
    return list(dict.fromkeys(ports))


def host_of(peer: str) -> IPv4Address | IPv6Address | None:
    """``ipv4:10.0.0.1:5000`` -> 10.0.0.1; None when the other side has no address."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    try:
        address = ip_address(rest.rpartition(":")[0].strip("[]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


async def speaks_libp2p(host: str, port: int) -> bool:
    """Whether a libp2p peer answers there within :data:`DIAL_S`."""
    writer = None
    try:
        async with asyncio.timeout(DIAL_S):
            reader, writer = await asyncio.open_connection(host, port, limit=len(HEADER))
            writer.write(HEADER)
            return await reader.readexactly(len(HEADER)) == HEADER
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        return False
    finally:
        if writer is not None:
            with suppress(OSError):
                writer.transport.abort()
