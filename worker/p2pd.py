"""The peer-to-peer daemon of this peer, whichever process that is at the moment.

Invariants:

* Who holds a :class:`P2pd` holds the daemon that runs now. While there is none, a call waits for
  the next one, at most as long as it may dial.
* A daemon starts again with the same identity and, where the kernel chose its port, on the same
  port if that is still free: rosters that are out name it.
* At most one daemon runs; :meth:`P2pd.shutdown` leaves none, nor its sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog
from google.protobuf.message import Message

from protocol.errors import TransientError, UsageError
from worker.messages import Stream
from worker.meter import NetworkBudget
from worker.streams import DIAL_TIMEOUT_S, BoundedP2P

log = structlog.get_logger()

Reply = TypeVar("Reply", bound=Message)

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # nothing is bound here


@dataclass(frozen=True)
class HowToStart:
    """What is the same at every start of the daemon; see :meth:`BoundedP2P.start`."""

    identity_path: Path
    peer_id: str
    client_mode: bool
    listen: tuple[str, ...]
    announce: tuple[str, ...] = ()
    nat_port_map: bool = False
    budget: NetworkBudget = field(default_factory=NetworkBudget)


class P2pd:
    """Starts the daemon, again if need be, and speaks to the one that runs."""

    def __init__(self, how: HowToStart) -> None:
        self._how = how
        self._daemon: BoundedP2P | None = None
        self._runs = asyncio.Event()
        self._addresses: list[str] = []

    @property
    def daemon(self) -> BoundedP2P:
        """The one that was started last, dead or alive."""
        assert self._daemon is not None, "start() comes first"
        return self._daemon

    @property
    def at_once_bytes(self) -> int | None:
        """See :attr:`worker.meter.NetworkBudget.at_once_bytes`."""
        return self._how.budget.at_once_bytes

    async def start(self, initial_peers: Sequence[str]) -> None:
        """Start the first one.

        Raises:
            TransientError, UsageError: as :meth:`BoundedP2P.start`.
        """
        await self._start(self._how.listen, initial_peers)
        await self.addresses()

    async def ended(self) -> str:
        """Wait until the daemon has ended; how it did, for a person."""
        how = await self.daemon.ended()
        self._runs.clear()
        return how

    async def start_again(self) -> None:
        """Start the next one, once :meth:`ended` has returned.

        It enters by nobody: the others may well be away just now, and it must serve without them.

        Raises:
            TransientError, UsageError: as :meth:`BoundedP2P.start`.
        """
        await self.daemon.shutdown()
        known = self._how.listen
        if not self._how.announce:
            known = same_ports(known, self._addresses)
        try:
            await self._start(known, ())
        except UsageError:
            if known == self._how.listen:
                raise
            log.info("the port was taken meanwhile: listening on another", before=known)
            await self._start(self._how.listen, ())

    async def _start(self, listen: Sequence[str], initial_peers: Sequence[str]) -> None:
        how = self._how
        self._daemon = await BoundedP2P.start(
            identity_path=how.identity_path,
            peer_id=how.peer_id,
            initial_peers=initial_peers,
            client_mode=how.client_mode,
            listen=listen,
            announce=how.announce,
            nat_port_map=how.nat_port_map,
        )
        self._daemon.budget = how.budget

    def open(self) -> None:
        """The daemon serves what it should: let the calls come."""
        self._runs.set()

    async def shutdown(self) -> None:
        """End the daemon. Safe to call twice, and before a start."""
        if self._daemon is not None:
            await self._daemon.shutdown()

    async def addresses(self) -> list[str]:
        """Addresses by which others reach us, each with /p2p/PeerID; empty in client mode. While
        the daemon is away, those of the last one."""
        try:
            self._addresses = await self.daemon.addresses()
        except TransientError as error:
            log.debug("addresses_not_known_now", why=str(error))
        return self._addresses

    async def connected(self) -> set[str]:
        """PeerIDs of those with whom a connection is open; empty while the daemon is away."""
        try:
            return await self.daemon.connected()
        except TransientError:
            return set()

    async def drop_connections(self) -> None:
        """See :meth:`BoundedP2P.drop_connections`."""
        await self.daemon.drop_connections()

    async def connect(self, peer_id: str, multiaddrs: Sequence[str]) -> None:
        """See :meth:`BoundedP2P.connect`."""
        daemon = await self._running()
        await daemon.connect(peer_id, multiaddrs)

    @asynccontextmanager
    async def stream(
        self, peer_id: str, handle: str, reply: type[Reply]
    ) -> AsyncIterator[Stream[Reply]]:
        """See :meth:`BoundedP2P.stream`."""
        daemon = await self._running()
        async with daemon.stream(peer_id, handle, reply) as stream:
            yield stream

    async def _running(self) -> BoundedP2P:
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await self._runs.wait()
        except TimeoutError as error:
            raise TransientError("our own peer-to-peer daemon does not run now") from error
        return self.daemon


def same_ports(listen: Sequence[str], addresses: Sequence[str]) -> tuple[str, ...]:
    """``listen`` with the ports that the kernel chose, as far as ``addresses`` tell them."""
    return tuple(_with_port(text, listen, addresses) for text in listen)


def _with_port(text: str, listen: Sequence[str], addresses: Sequence[str]) -> str:
    parts = text.split("/")  # "", "ip4", host, "tcp", port, ...
    if len(parts) < 5 or parts[4] != "0" or list(listen).count(text) > 1:
        return text
    # Behind a router others see us at other ports; on the loopback it is our own.
    seen = [parts[1], _LOOPBACK_OF.get(parts[2], parts[2]), parts[3]]
    ports = {
        found[4]
        for address in addresses
        if "/p2p-circuit" not in address
        and len(found := address.split("/")) > 4
        and found[1:4] == seen
    }
    if len(ports) != 1:
        return text
    return "/".join([*parts[:4], ports.pop(), *parts[5:]])
