"""Our place in the swarm: one libp2p daemon, one DHT node, one asyncio loop, no forked Python.

The daemon may die and be replaced (:mod:`worker.membership`); nothing that is said here notices but
by a failure that passes.

Invariants:

* The PeerID is the device's signing key (:mod:`protocol.identity`): what a peer signs and what
  the transport authenticates is one name.
* Records come out of the DHT only through :class:`worker.dht_records.RunRecords`.
* :meth:`Swarm.shutdown` leaves no process, socket or task, and never raises for a peer's sake.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import structlog
from hivemind.utils.multiaddr import Multiaddr

from protocol.envelope import Signed, open_envelope, parse_envelope, seal
from protocol.errors import BadRecord, Conflict, PeerFault, TransientError, UsageError
from protocol.identity import Identity
from protocol.limits import MAX_RECORD_BYTES
from protocol.trust import TrustStore
from protocol.update import EncodedUpdate
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as service
from worker.allreduce import GroupReduce, Peer
from worker.dht_records import RunRecords, fits, head_key, roster_key, weights_key
from worker.group import Group
from worker.membership import Membership
from worker.meter import NetworkBudget
from worker.p2pd import HowToStart
from worker.peer_blobs import BlobClient, BlobService, Resolve
from worker.round_service import GroupBook, RoundService
from worker.streams import BoundedP2P

log = structlog.get_logger()

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)

HOLDER_LIFETIME_S = 1800
"""How long an announcement that we hold weights or a roster stands; renew it by then."""

MAX_ROSTERS_KEPT = 64
"""Rosters remembered to notice a second one for the same round and attempt."""


def local_clock_ms() -> int:
    """This machine's clock, for when no better one is known."""
    return int(time.time() * 1000)


class Swarm:
    """One peer of one run; start with :meth:`create`, end with :meth:`shutdown`."""

    def __init__(
        self,
        how: HowToStart,
        identity: Identity,
        run_id: bytes,
        trust: TrustStore,
        clock_ms: Callable[[], int],
    ) -> None:
        self._identity, self._run_id, self._trust = identity, run_id, trust
        self._clock_ms = clock_ms
        self._namespace = run_id.hex()
        self._book = GroupBook()
        self._rounds = RoundService(self._book)
        self._blobs = BlobService(run_id, how.budget)
        rules = RunRecords(run_id, trust, self._now_s)
        self.membership = Membership(how, rules, self._book, self._serve)
        self._rosters: dict[tuple[int, int], Signed[wire.Roster]] = {}
        self.peer_id = identity.peer_id
        self._peer = Peer(
            p2p=self.membership.p2p,
            identity=identity,
            gather_handle=self._handle(RoundService, "rpc_gather"),
            broadcast_handle=self._handle(RoundService, "rpc_broadcast"),
            clock_ms=clock_ms,
            require_round_key=self._require_round_key,
        )
        handle = self._handle(BlobService, "rpc_blob")
        self._fetcher = BlobClient(self.membership.p2p, handle, run_id)

    @classmethod
    async def create(
        cls,
        *,
        identity_path: Path,
        identity: Identity,
        run_id: bytes,
        trust: TrustStore,
        initial_peers: Sequence[str],
        client_mode: bool,
        listen: Sequence[str] = LOOPBACK,
        announce: Sequence[str] = (),
        clock_ms: Callable[[], int] = local_clock_ms,
        nat_port_map: bool = False,
        in_dht: bool = True,
        budget: NetworkBudget | None = None,
    ) -> Swarm:
        """Start the daemon and the DHT node, and serve.

        Args:
            identity_path: libp2p identity file (0600) of ``identity``.
            initial_peers: multiaddrs with /p2p/PeerID of the run's anchors; empty for the first.
            client_mode: no inbound port: only open outbound streams.
            listen: multiaddrs to listen on; ignored in client mode.
            announce: multiaddrs by which others reach us, when they differ from ``listen``.
            clock_ms: the coordinator's clock, in milliseconds since the epoch.
            nat_port_map: ask the router for a port (UPnP).
            in_dht: serve a part of the DHT from the start; else see :meth:`serve_dht`.
            budget: what passes is counted and paced by; nothing is limited without one.

        Raises:
            TransientError: the daemon did not start, or no anchor answered; says what to check.
            UsageError: an address is not a multiaddr, or the identity file is of another key.
        """
        _check_addresses([*initial_peers, *listen, *announce])
        if Identity.load(identity_path).peer_id != identity.peer_id:
            raise UsageError(f"{identity_path} is not the key of {identity.peer_id}")
        how = HowToStart(
            identity_path=identity_path,
            peer_id=identity.peer_id,
            client_mode=client_mode,
            listen=tuple(listen),
            announce=tuple(announce),
            nat_port_map=nat_port_map,
            budget=budget or NetworkBudget(),
        )
        self = cls(how, identity, run_id, trust, clock_ms)
        try:
            await self.membership.enter(initial_peers, in_dht=in_dht and not client_mode)
        except BaseException:
            await self.shutdown()
            raise
        log.info("swarm_joined", peer_id=self.peer_id, client_mode=client_mode)
        return self

    async def run(self) -> None:
        """See that the daemon runs, for ever. Run it as a task."""
        await self.membership.run()

    async def _serve(self, daemon: BoundedP2P) -> None:
        await self._rounds.add_p2p_handlers(daemon, namespace=self._namespace)
        await self._blobs.add_p2p_handlers(daemon, namespace=self._namespace)

    def _handle(self, servicer: type[RoundService] | type[BlobService], method: str) -> str:
        return str(servicer._get_handle_name(self._namespace, method))

    async def multiaddrs(self) -> list[str]:
        """Addresses by which others reach us, each with /p2p/PeerID; empty in client mode."""
        return await self.membership.p2p.addresses()

    async def serve_dht(self, reachable: bool) -> None:
        """See :meth:`Membership.serve_dht`."""
        await self.membership.serve_dht(reachable)

    async def drop_connections(self) -> None:
        """Hang up on every peer: our address changed, connections are dead without a sign."""
        await self.membership.p2p.drop_connections()

    async def connect(self, multiaddr: str) -> None:
        """Dial a peer by a multiaddr that ends in /p2p/PeerID.

        Raises:
            TransientError: it does not answer.
        """
        _check_addresses([multiaddr])
        await self.membership.p2p.connect(multiaddr.rsplit("/p2p/", 1)[1], [multiaddr])

    async def shutdown(self) -> None:
        """Close the groups, leave the DHT, reap the daemon. Safe to call twice."""
        self._book.close_all()
        await self.membership.leave()

    # ---- the DHT

    async def publish_head(self, envelope: wire.Envelope) -> bool:
        """Store the run head; False when no peer took it."""
        open_envelope(envelope, wire.RunHead)
        return await self.membership.publish(envelope)

    async def get_head(self) -> Signed[wire.RunHead] | None:
        """The newest run head in the DHT, verified."""
        found = await self.membership.find(head_key(self._run_id))
        heads = [open_envelope(envelope, wire.RunHead) for envelope in found]
        return max(heads, key=lambda h: (h.record.round, h.record.issued_at_ms), default=None)

    async def publish_roster(
        self, envelope: wire.Envelope, admission: wire.Envelope | None = None
    ) -> bool:
        """Store a roster; one that is too large for the DHT is announced as ours to fetch.

        Args:
            admission: ours; needed only for a roster over 64 KiB.
        """
        data = envelope.SerializeToString()
        if fits(data):
            return await self.membership.publish(envelope)
        if admission is None:
            return False
        roster = open_envelope(envelope, wire.Roster).record
        digest = hashlib.sha256(data).digest()
        self._keep_small(digest, data)
        holder = wire.RosterHolder(
            run_id=self._run_id,
            worker=self.peer_id,
            round=roster.round,
            attempt=roster.attempt,
            sha256=digest,
            total_bytes=len(data),
            admission=admission,
            not_after_s=int(self._now_s()) + HOLDER_LIFETIME_S,
        )
        return await self.membership.publish(seal(holder, self._identity))

    def _keep_small(self, digest: bytes, data: bytes) -> None:
        self._blobs.small[digest] = data
        while len(self._blobs.small) > MAX_ROSTERS_KEPT:
            del self._blobs.small[next(iter(self._blobs.small))]

    async def get_roster(self, round_: int, attempt: int) -> Signed[wire.Roster] | None:
        """A roster from the DHT, verified.

        Raises:
            Conflict: there are two for this round and attempt, both signed.
        """
        found: dict[bytes, Signed[wire.Roster]] = {}
        for envelope in await self.membership.find(roster_key(self._run_id, round_, attempt)):
            roster = await self._roster_from(envelope, round_, attempt)
            if roster is not None:
                found[roster.digest] = roster
        if len(found) > 1:
            raise Conflict(f"two rosters were signed for round {round_}, attempt {attempt}")
        return next(iter(found.values()), None)

    async def _roster_from(
        self, envelope: wire.Envelope, round_: int, attempt: int
    ) -> Signed[wire.Roster] | None:
        try:
            if envelope.payload_type.endswith(".roster-holder+protobuf"):
                holder = open_envelope(envelope, wire.RosterHolder).record
                if holder.total_bytes > MAX_RECORD_BYTES + 4096:
                    raise BadRecord("a roster over the limit")
                data = await self._fetcher.fetch_small(
                    holder.worker, holder.sha256, holder.total_bytes
                )
                envelope = parse_envelope(data)
            roster = open_envelope(envelope, wire.Roster)
            self._require_round_key(roster.signer)
            if (roster.record.run_id, roster.record.round, roster.record.attempt) != (
                self._run_id,
                round_,
                attempt,
            ):
                raise BadRecord("a roster of another round")
        except (PeerFault, TransientError) as error:
            log.warning("roster_refused", why=str(error))
            return None
        return roster

    async def announce_weights(self, state_digest: bytes, admission: wire.Envelope) -> bool:
        """Tell the run that we serve the weights of a state; renew within half an hour."""
        holder = wire.WeightHolder(
            run_id=self._run_id,
            worker=self.peer_id,
            state_digest=state_digest,
            admission=admission,
            not_after_s=int(self._now_s()) + HOLDER_LIFETIME_S,
        )
        return await self.membership.publish(seal(holder, self._identity))

    async def weight_holders(self, state_digest: bytes) -> list[str]:
        """PeerIDs that announced the weights of a state, without our own."""
        found = await self.membership.find(weights_key(self._run_id, state_digest))
        workers = {open_envelope(e, wire.WeightHolder).record.worker for e in found}
        return sorted(workers - {self.peer_id})

    # ---- blobs

    def serve_blobs(self, resolve: Resolve) -> None:
        """Serve files by SHA-256 to whoever asks; ``resolve`` names only verified ones."""
        self._blobs.resolve = resolve

    def blob_pieces(self, peer_id: str, sha256: bytes, offset: int) -> AsyncIterator[service.Piece]:
        """See :meth:`worker.peer_blobs.BlobClient.pieces`."""
        return self._fetcher.pieces(peer_id, sha256, offset)

    # ---- the reduce

    def open_group(self, roster: Signed[wire.Roster], update: EncodedUpdate | None) -> GroupReduce:
        """Take part in a roster's reduce, as member, reducer or both; close the result.

        Args:
            roster: envelope verified; here its signer is too.
            update: ours, when we are a member.

        Raises:
            BadSignature, BadRecord: not a roster of this run by a round key, or malformed.
            Conflict: another roster was opened for the same round and attempt; both are signed.
        """
        self._require_round_key(roster.signer)
        record = roster.record
        if record.run_id != self._run_id:
            raise BadRecord("a roster of another run")
        group = Group.of(roster)
        known = self._rosters.setdefault((record.round, record.attempt), roster)
        if known.digest != roster.digest:
            log.error("two_rosters", round=record.round, attempt=record.attempt)
            raise Conflict(
                f"two rosters were signed for round {record.round}, attempt {record.attempt}"
            )
        while len(self._rosters) > MAX_ROSTERS_KEPT:
            del self._rosters[next(iter(self._rosters))]
        if self._book.get(group.group_id) is not None:
            raise ValueError("this group is open already")
        reduce = GroupReduce(
            group, update, self._peer, on_close=lambda: self._book.remove(group.group_id)
        )
        self._book.add(reduce)
        return reduce

    def _require_round_key(self, signer: str) -> None:
        self._trust.require_signer(wire.KEY_PURPOSE_ROUND, signer, self._now_s())

    def _now_s(self) -> float:
        return self._clock_ms() / 1000


def _check_addresses(addresses: Sequence[str]) -> None:
    for text in addresses:
        try:
            Multiaddr(text)
        except (ValueError, LookupError) as error:
            raise UsageError(
                f"{text!r} is not a multiaddr; it looks like /ip4/203.0.113.7/tcp/4001"
            ) from error
