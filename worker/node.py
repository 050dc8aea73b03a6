"""A member of the swarm: everything that a worker and an anchor have in common.

Guarantees of :func:`open_node`: what it opened is closed in the opposite order, each step even if
one before it failed: swarm (p2pd reaped), gRPC channel, journal.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import structlog

from protocol.channel import backoff_s
from protocol.errors import TransientError, UpgradeNeeded
from protocol.hello import client_version
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker import delegation
from worker.blob_fetch import BlobFetcher
from worker.config import Home, WorkerConfig
from worker.contact import Contact, open_retained
from worker.data_source import DataSource
from worker.delegation import Vouched
from worker.devices import Device, device_class, wait_for_device
from worker.disk import DiskQuota
from worker.energy_told import told_energy
from worker.evidence import Evidence
from worker.journal import Journal
from worker.last_uses import LastUses
from worker.meter import NetworkBudget
from worker.metered_line import MeteredLine
from worker.outbox import Outbox
from worker.reachability import Reachability
from worker.session import Session
from worker.shards import BlobStore
from worker.sources import Sources
from worker.state_cache import StateCache
from worker.status import Board
from worker.swarm import Swarm
from worker.watch import Watch

log = structlog.get_logger()

Result = TypeVar("Result")
_ANCHOR_PATIENCE_S = 30.0


@dataclass
class Node(Contact):
    """The open parts; see :func:`open_node`."""

    swarm: Swarm
    sources: Sources
    states: StateCache
    data: DataSource
    blobs: BlobStore
    disk: DiskQuota
    outbox: Outbox
    device: Device
    anchor: bool
    admission: wire.Envelope
    reachability: Reachability
    budget: NetworkBudget

    @property
    def direct(self) -> bool:
        return self.reachability.reach.direct

    @property
    def bad_sources(self) -> list[str]:
        return self.sources.bad

    async def addresses(self) -> list[str]:
        return await self.reachability.addresses()

    async def enrol(self) -> None:
        """Enrol (again): renews admission and addresses.

        Raises:
            UsageError: refused.
        """
        vouched = await asyncio.to_thread(_vouched, self.home, self.identity)
        self.admission = await self.session.enrol(
            await _enrolment(
                self.home,
                self.config,
                self.identity,
                vouched,
                self.reachability,
                self.device,
                self.anchor,
            )
        )


@asynccontextmanager
async def open_node(
    home: Home,
    config: WorkerConfig,
    identity: Identity,
    identity_path: Path,
    board: Board,
    *,
    anchor: bool,
    budget: NetworkBudget | None = None,
) -> AsyncIterator[Node]:
    """Connect, join the swarm, enrol. Waits as long as it takes for the coordinator.

    Args:
        budget: meters what goes over the network; who gives one runs it.

    Raises:
        UsageError: a person has to do something first.
    """
    async with AsyncExitStack() as stack:
        journal = Journal(home.journal)
        stack.callback(journal.close)
        journal.bind(config.join_link.run_id, identity.peer_id)
        budget = budget or NetworkBudget()
        line = MeteredLine(config.join_link.address, home.line, budget)
        stack.push_async_callback(line.close)
        line.open()
        session = await _connect(config, identity, board, line.target)
        stack.push_async_callback(session.close)
        manifest = session.greeting.manifest
        await asyncio.to_thread(home.manifest.write_bytes, manifest.canonical())
        disk = DiskQuota(home.path, config.limits)
        blobs = BlobStore(home.blobs, home.scratch, disk, LastUses(home.last_uses))
        peers = await _anchors(session, identity.peer_id, board, patient=not anchor)
        swarm = await _join_swarm(
            config, identity, identity_path, session, board, peers, budget, anchor=anchor
        )
        stack.push_async_callback(swarm.shutdown)
        swarm.serve_blobs(blobs.known)
        watch, sources = Watch(session, manifest.lag_rounds), Sources(session)
        sources.head = lambda: watch.head
        fetcher = BlobFetcher(blobs, sources)
        states = StateCache(manifest, fetcher, blobs, journal)
        watch.swarm = sources.swarm = swarm

        def swarm_changed() -> None:
            board.swarm_problem = swarm.membership.problem
            watch.notify()

        swarm.membership.on_change = swarm_changed
        outbox = Outbox(session, journal)
        reachability = Reachability(
            config.client_mode,
            session,
            swarm,
            board,
            announce=config.announce,
            nat_port_map=config.nat_port_map,
            anchor=anchor,
        )
        await reachability.start()

        def on_connected() -> None:
            outbox.retry_now()
            reachability.connected()

        watch.on_connected = on_connected
        device = await _device(config, board)
        retained = await asyncio.to_thread(open_retained, home, config, disk)
        evidence = Evidence(identity, manifest, retained, home.answers, states.elements)
        vouched = await asyncio.to_thread(_vouched, home, identity)
        enrolment = await _enrolment(home, config, identity, vouched, reachability, device, anchor)
        admission = await _patiently(lambda: session.enrol(enrolment), board)
        with suppress(TransientError):  # a full disk costs but a clearer sentence, some day
            journal.put(delegation.ENROLLED_FOR, enrolment.donor)
        board.connected = True
        board.donor = enrolment.donor
        if vouched is not None:
            board.delegated_until_s = vouched.not_after_s
        log.info(
            "enrolled",
            worker=identity.peer_id,
            donor=enrolment.donor,
            anchor=anchor,
            device=device,
        )
        yield Node(
            home=home,
            config=config,
            identity=identity,
            session=session,
            swarm=swarm,
            watch=watch,
            sources=sources,
            states=states,
            data=DataSource(manifest, fetcher, blobs),
            blobs=blobs,
            disk=disk,
            journal=journal,
            outbox=outbox,
            device=device,
            anchor=anchor,
            admission=admission,
            retained=retained,
            evidence=evidence,
            reachability=reachability,
            budget=budget,
        )


async def _device(config: WorkerConfig, board: Board) -> Device:
    def tell(reason: str) -> None:
        if board.reason != reason:
            log.warning("waiting for the GPU", device=config.device)
        board.waiting(reason)

    return await wait_for_device(config.device, tell)


async def _connect(config: WorkerConfig, identity: Identity, board: Board, through: str) -> Session:
    return await _patiently(lambda: Session.connect(config.join_link, identity, through), board)


async def _patiently(attempt: Callable[[], Awaitable[Result]], board: Board) -> Result:
    """Until it succeeds. A program that is too old waits as well: one that ended would be started
    again and again by whatever keeps a service alive."""
    failures = 0
    while True:
        try:
            return await attempt()
        except (TransientError, UpgradeNeeded) as error:
            if board.reason != str(error):
                log.warning("waiting for the coordinator", problem=str(error))
            board.waiting(str(error))
        await asyncio.sleep(backoff_s(failures, base_s=0.5))
        failures += 1


async def _anchors(session: Session, own_id: str, board: Board, *, patient: bool) -> list[str]:
    """Addresses to enter the swarm by. A run may start its anchor a moment after itself."""
    waited_until_s = asyncio.get_running_loop().time() + _ANCHOR_PATIENCE_S
    failures = 0
    while True:
        anchors = [peer for peer in session.greeting.anchors if not peer.endswith(own_id)]
        if anchors or not patient or asyncio.get_running_loop().time() > waited_until_s:
            return anchors
        board.waiting("waiting for the run's anchor to come up")
        await asyncio.sleep(backoff_s(failures, base_s=0.5, limit_s=3.0))
        failures += 1
        await _patiently(session.hello, board)


async def _join_swarm(
    config: WorkerConfig,
    identity: Identity,
    identity_path: Path,
    session: Session,
    board: Board,
    peers: list[str],
    budget: NetworkBudget,
    *,
    anchor: bool,
) -> Swarm:
    """Enter by the anchors, however long it takes until one answers.

    An anchor is an entrance itself: if no other answers it begins without them, and looks for them
    later (:mod:`worker.reentry`).

    Raises:
        UsageError: this machine cannot listen as it should.
    """
    failures = 0
    board.waiting("joining the swarm")
    while True:
        try:
            return await Swarm.create(
                identity_path=identity_path,
                identity=identity,
                run_id=config.join_link.run_id,
                trust=session.trust,
                initial_peers=peers,
                client_mode=config.client_mode is True,
                listen=config.listen,
                announce=config.announce,
                clock_ms=session.now_ms,
                nat_port_map=config.nat_port_map,
                in_dht=config.client_mode is False,  # else as is measured
                budget=budget,
            )
        except TransientError as error:
            if board.reason != str(error):
                log.warning("waiting for the swarm", problem=str(error))
            board.waiting(str(error))
        await asyncio.sleep(backoff_s(failures, base_s=0.5))
        failures += 1
        # A restarted anchor has other addresses.
        greeting = await _patiently(session.hello, board)
        others = [peer for peer in greeting.anchors if not peer.endswith(identity.peer_id)]
        peers = [] if anchor else others


def _vouched(home: Home, identity: Identity) -> Vouched | None:
    return delegation.require(home, identity.peer_id, time.time())


async def _enrolment(
    home: Home,
    config: WorkerConfig,
    identity: Identity,
    vouched: Vouched | None,
    reachability: Reachability,
    device: Device,
    anchor: bool,
) -> wire.Enrolment:
    return wire.Enrolment(
        run_id=config.join_link.run_id,
        worker=identity.peer_id,
        donor=vouched.donor if vouched else identity.peer_id,
        device_delegation=vouched.envelope if vouched else None,
        client_version=client_version(),
        device=wire.Device(
            device_class=device_class(device),
            name=f"{platform.system()} {platform.machine()}",
            threads=config.limits.cpu_threads,
            memory_bytes=psutil.virtual_memory().total,
            **await asyncio.to_thread(told_energy, home, config),
        ),
        # A donor with several devices has one name, and says it itself.
        display_name=config.name if vouched is None else "",
        anchor=anchor,
        client_mode=not reachability.reach.direct,
        multiaddrs=await reachability.addresses(),
        invite=config.invite,
    )
