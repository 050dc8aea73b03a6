"""Being in the swarm: the daemon and the DHT node of one peer, and coming back into it.

A daemon that dies is missed at once by the task that runs :meth:`Membership.run`, which starts
another one, serves the same handlers on it and enters the DHT anew. Groups that are open stay open:
their members go on where the streams broke.

Invariants:

* :attr:`Membership.problem` is empty exactly while the daemon runs and serves.
* What others stored with us in the DHT survives the daemon.
* A daemon that keeps dying is started with back-off; the first time at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from hivemind.dht import DHTNode
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.auth import AuthRole, AuthRPCWrapper

from protocol.channel import backoff_s
from protocol.errors import BadRecord, TransientError, UsageError
from protocol.identity import PublicKey
from protocol.wire import records_pb2 as wire
from worker.dht_records import Records, RunRecords
from worker.p2pd import HowToStart, P2pd
from worker.p2pd_requests import passing_failures
from worker.race import unless
from worker.round_service import GroupBook
from worker.streams import BoundedP2P

log = structlog.get_logger()

STABLE_S = 60.0
"""A daemon that lived so long is started again at once when it dies; else with back-off."""

LONGEST_PAUSE_S = 30.0
_CALLS_AT_ONCE = 16
_CALLING_S = 20.0

Serve = Callable[[BoundedP2P], Awaitable[None]]
"""Puts our handlers on a daemon."""


class Membership:
    """Enter with :meth:`enter`, stay with :meth:`run`, leave with :meth:`leave`."""

    def __init__(self, how: HowToStart, rules: RunRecords, book: GroupBook, serve: Serve) -> None:
        self.p2p = P2pd(how)
        self.node: DHTNode | None = None
        self.anchors: tuple[str, ...] = ()
        self.problem = ""
        self.on_change: Callable[[], None] = lambda: None
        self._how, self._rules, self._book, self._serve = how, rules, book, serve
        self._records: Records | None = None  # None while there is no daemon
        self._in_dht = False  # others may keep us in their DHT tables

    async def enter(self, anchors: Sequence[str], *, in_dht: bool) -> None:
        """Start the daemon and enter by the anchors; for the first of them there are none.

        Args:
            in_dht: others reach us, as far as is known now; see :meth:`serve_dht`.

        Raises:
            TransientError: the daemon did not start, or no anchor answered; says what to check.
            UsageError: it cannot listen where it should.
        """
        self.anchors, self._in_dht = tuple(anchors), in_dht
        await self.p2p.start(anchors)
        await self._unless_it_dies(self._begin(anchors))

    async def leave(self) -> None:
        """End the daemon. Safe to call twice, and at any moment."""
        self._leave_dht()
        await self.p2p.shutdown()

    # ---- the DHT

    async def publish(self, envelope: wire.Envelope) -> bool:
        """See :meth:`Records.publish`; False while there is no daemon."""
        return self._records is not None and await self._records.publish(envelope)

    async def find(self, key: str) -> list[wire.Envelope]:
        """See :meth:`Records.find`; nothing while there is no daemon."""
        return [] if self._records is None else await self._records.find(key)

    async def serve_dht(self, reachable: bool) -> None:
        """Let others keep us in their DHT tables, or no more: they would wait for us in vain."""
        if reachable == self._in_dht:
            return
        self._in_dht = reachable
        if self.node is None or self._records is None:
            return
        protocol = self.node.protocol
        if reachable and protocol.client_mode:
            servicer = AuthRPCWrapper(protocol, AuthRole.SERVICER, None)
            with suppress(TransientError):  # the next daemon's node will be so from its start
                await self._unless_it_dies(protocol.add_p2p_handlers(self.p2p.daemon, servicer))
            protocol.client_mode = False
        own_id = protocol.node_id.to_bytes() if reachable else b""
        protocol.node_info = dht_pb2.NodeInfo(node_id=own_id)

    async def _begin(self, anchors: Sequence[str]) -> None:
        await self._serve_here()
        await self._enter_dht(anchors, must_answer=True)

    async def _serve_here(self) -> None:
        if not self._how.client_mode:
            await self._serve(self.p2p.daemon)
        self.p2p.open()

    async def _enter_dht(self, peers: Sequence[str], *, must_answer: bool) -> None:
        before = self.node
        try:
            self.node = await DHTNode.create(
                self.p2p.daemon,
                node_id=None if before is None else before.node_id,
                initial_peers=list(peers),
                client_mode=not self._in_dht,
                record_validator=self._rules,
                strict=False,
                ensure_bootstrap_success=must_answer,
            )
        except RuntimeError as error:  # hivemind's word for "nobody answered"
            raise TransientError(
                f"no anchor of the run answered ({error}): check this machine's network and"
                " clock, and that the anchors are up"
            ) from error
        if before is not None:
            self.node.protocol.storage = before.protocol.storage
        self._records = Records(self.node, self._rules)

    def _leave_dht(self) -> None:
        self._records = None
        if self.node is not None:
            # Not DHTNode.shutdown(): it asks the daemon, which may be dead, to drop handlers.
            self.node.is_alive = False
            if self.node.cache_refresh_task is not None:
                self.node.cache_refresh_task.cancel()

    # ---- when the daemon dies

    async def run(self) -> None:
        """See that the daemon runs, for ever. Run it as a task."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            since_s = loop.time()
            how = await self._until_it_dies()
            self._leave_dht()
            self._show(f"the peer-to-peer daemon was {how}: starting it again")
            if loop.time() - since_s > STABLE_S:
                failures = 0
            failures = await self._bring_back(failures)
            self._show("")

    async def _until_it_dies(self) -> str:
        async with asyncio.TaskGroup() as tasks:
            # Whoever has just failed to dial us would not try again for seconds.
            calling = tasks.create_task(self._call(self._book.partners()))
            how = await self.p2p.ended()
            calling.cancel()
        return how

    async def _bring_back(self, failures: int) -> int:
        """Start the daemon until it stays; the number of failures up to now, and one."""
        while True:
            if failures:
                await asyncio.sleep(backoff_s(failures, base_s=0.5, limit_s=LONGEST_PAUSE_S))
            failures += 1
            try:
                await self.p2p.start_again()
                await self._unless_it_dies(self._begin_again())
            except (TransientError, UsageError) as error:
                self._show(f"the peer-to-peer daemon does not come back: {error}")
            else:
                return failures

    async def _unless_it_dies(self, work: Coroutine[Any, Any, None]) -> None:
        # hivemind's calls of a daemon that died would never return.
        async def telling() -> bool:
            await work
            return True

        with passing_failures():
            if not await unless(telling(), self.p2p.ended()):
                raise TransientError("the peer-to-peer daemon ended while it entered the swarm")

    async def _begin_again(self) -> None:
        await self._serve_here()
        reached = await self._call(_by_peer(self.anchors) | self._book.reducers())
        anchors = [a for a in self.anchors if peer_of(a) in reached]
        await self._enter_dht(anchors, must_answer=False)
        addresses = await self.p2p.addresses()
        log.info("swarm_joined_again", anchors=len(anchors), addresses=addresses)

    def _show(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("swarm_left", problem=problem)
        self.problem = problem
        self.on_change()

    async def _call(self, peers: Mapping[str, Sequence[str]]) -> set[str]:
        """Dial peers, by what the swarm's routing knows of them where we have no address.

        Returns:
            Those that answered.
        """
        answered: set[str] = set()
        places = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def call(peer_id: str, addresses: Sequence[str]) -> None:
            async with places:
                with suppress(TransientError):
                    await self.p2p.connect(peer_id, addresses)
                    answered.add(peer_id)

        with suppress(TimeoutError):
            async with asyncio.timeout(_CALLING_S), asyncio.TaskGroup() as tasks:
                for peer_id, addresses in peers.items():
                    if peer_id != self._how.peer_id:
                        tasks.create_task(call(peer_id, addresses))
        return answered

    # ---- when an anchor comes and goes

    async def in_touch(self) -> list[str]:
        """PeerIDs of the anchors that are connected, and in our part of the DHT."""
        if self.node is None or self._records is None:
            return []
        table = self.node.protocol.routing_table
        known = set(_by_peer(self.anchors)) & await self.p2p.connected()
        return [n for n in sorted(known) if table.get(peer_id=PeerID.from_base58(n)) is not None]

    async def enter_again(self) -> None:
        """Dial the anchors, by :attr:`anchors`, and take those that answer into the DHT."""
        answered, node = await self._call(_by_peer(self.anchors)), self.node
        if node is None or self._records is None:
            return
        for name in answered:
            peer = PeerID.from_base58(name)
            node_id = await node.protocol.call_ping(peer)
            if node_id is not None:
                await node.protocol.update_routing_table(node_id, peer)
                node.blacklist.register_success(peer)  # it would not be asked for minutes


def peer_of(multiaddr: str) -> str:
    """The PeerID at the end of an address; empty if there is none."""
    return multiaddr.rpartition("/p2p/")[2] if "/p2p/" in multiaddr else ""


def _by_peer(multiaddrs: Iterable[str]) -> dict[str, list[str]]:
    """Addresses by the PeerID that they end in; what is none is left out."""
    found: dict[str, list[str]] = {}
    for text in multiaddrs:
        with suppress(BadRecord):
            PublicKey.from_peer_id(peer_of(text))
            found.setdefault(peer_of(text), []).append(text)
    return found
