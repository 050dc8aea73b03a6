"""Who may take part: the checks behind ``Enrol``.

Steps, all of which must hold, beyond the signature and freshness that every request needs:

1. the program is new enough for the run;
2. every text is bounded and every address is the device's own;
3. the donor is the device itself, or signed that the device works for it;
4. an anchor is one that the organiser listed;
5. neither the device nor its donor is blocked, and it works for no other donor already;
6. a new device's donor was not given up for another key of the same person;
7. a new key passes :mod:`coordinator.newcomers`: room, quotas, invitation or approval.

When a device is let in, a leaf goes into the public record; later enrolments only renew what the
device says of itself, so enrolling again is harmless. A device that waits for the organiser's
approval has a row and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.blocks import require_welcome, welcome
from coordinator.crowd.joined import require_own_key
from coordinator.crowd.profiles import take_name
from coordinator.database import Database
from coordinator.energy import take_energy
from coordinator.invites import MAX_TOKEN_CHARS
from coordinator.newcomers import NewcomerPolicy, address_key, is_let_in, require_room
from coordinator.requests import Buckets, Clock, Rate, address_of
from coordinator.schema import WorkerRow
from coordinator.versions import supported
from ledger.donors import clean_name
from ledger.log import Log
from ledger.records import EnrolLeaf
from protocol.energy import check_energy
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import BadRecord, BadSignature, UpgradeNeeded, UsageError
from protocol.hello import upgrade_sentence
from protocol.identity import Identity, PeerId
from protocol.limits import MAX_DISPLAY_NAME_CHARS, MAX_MULTIADDR_CHARS, MAX_MULTIADDRS
from protocol.uncancelled import to_the_end
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

ADMISSION_VALID_S = 30 * 24 * 3600
"""A device enrols at every start, so this only has to outlast its longest session."""

ENROLMENTS_PER_ADDRESS = Rate(per_s=0.2, burst=200)
"""New devices: enough for a class-room behind one router, too few to flood the public record."""

_DEVICE_CLASSES = ("cpu", "cuda", "mps")
_MAX_TEXT_CHARS = 128
_MULTIADDR = re.compile(r"/[\x21-\x7e]+")

_log = structlog.get_logger()


@dataclass(frozen=True)
class AdmissionPolicy:
    """What the organiser decided."""

    run_id: bytes
    min_client_version: str
    anchors: Collection[PeerId]
    newcomers: NewcomerPolicy = field(default_factory=NewcomerPolicy)


@dataclass(frozen=True)
class _Kept:
    let_in: bool
    first: bool  # this enrolment let it in


class Admission:
    """Admits devices to one run."""

    def __init__(
        self, database: Database, log: Log, signer: Identity, policy: AdmissionPolicy, clock: Clock
    ) -> None:
        """Admit with the round key ``signer`` and record in ``log``."""
        self._database = database
        self._record = log
        self._signer = signer
        self._policy = policy
        self._clock = clock
        self._newcomers = Buckets(ENROLMENTS_PER_ADDRESS, clock)

    async def admit(self, signed: Signed[wire.Enrolment], peer: str) -> service_pb2.EnrolReply:
        """Check an enrolment that was verified, and keep it.

        Raises:
            UpgradeNeeded, BadRecord, BadSignature, UsageError: see the module's steps.
            RateLimited: too many new devices, from one address or for the auditors.
        """
        enrolment = signed.record
        check_version(enrolment.client_version, self._policy.min_client_version)
        check_texts(enrolment)
        check_donor(enrolment, self._clock())
        if enrolment.anchor and enrolment.worker not in self._policy.anchors:
            raise UsageError(
                f"{enrolment.worker} is not an anchor of this run: the organiser lists anchors "
                "in [server] anchors of run.toml"
            )
        admission = seal(
            wire.Admission(
                run_id=self._policy.run_id,
                worker=enrolment.worker,
                not_after_s=int(self._clock()) + ADMISSION_VALID_S,
            ),
            self._signer,
        )
        kept = await to_the_end(self._keep_and_sign(self._keep(enrolment, admission, peer)))
        if not kept.let_in:
            return service_pb2.EnrolReply(
                admitted=False,
                code="approval",
                message="the organiser has to approve this device first: tell them its key, "
                f"{enrolment.worker}; this worker tries again by itself",
            )
        if kept.first:
            _log.info("worker_enrolled", worker=enrolment.worker, anchor=enrolment.anchor)
        return service_pb2.EnrolReply(
            admitted=True,
            message="welcome" if kept.first else "welcome back",
            admission=admission,
        )

    async def _keep_and_sign(self, keep: Callable[[Session], _Kept]) -> _Kept:
        kept = await self._database.run(keep)
        if kept.first:
            await self._database.run(self._record.sign_head)
        return kept

    def _keep(
        self, enrolment: wire.Enrolment, admission: wire.Envelope, peer: str
    ) -> Callable[[Session], _Kept]:
        now_s = self._clock()

        def keep(session: Session) -> _Kept:
            require_welcome(session, enrolment.worker, enrolment.donor)
            row = session.get(WorkerRow, enrolment.worker)
            if row is None:
                self._newcomers.take(address_of(peer))
                row = self._new_row(session, enrolment, peer, now_s)
            _check_row(row, enrolment)
            before = row.display_name or ""
            _update(row, enrolment, now_s)
            take_energy(session, enrolment, now_s)
            session.add(row)
            if not row.approved:
                require_own_key(session, enrolment.donor)
            first = not row.approved and self._lets_in(session, enrolment, now_s)
            if first:
                row.approved = True
            if row.approved:
                row.admission = admission.SerializeToString()
                take_name(session, row.donor, row.display_name, before, now_s)
            if first:
                session.flush()
                self._record.append(session, [self._leaf(enrolment, now_s)])
            return _Kept(row.approved, first)

        return keep

    def _new_row(
        self, session: Session, enrolment: wire.Enrolment, peer: str, now_s: float
    ) -> WorkerRow:
        address = address_key(self._policy.run_id, peer)
        if not enrolment.anchor:
            require_room(session, self._policy.newcomers, enrolment, address, now_s)
        return WorkerRow(
            worker=enrolment.worker,
            donor=enrolment.donor,
            enrolled_at_s=now_s,
            enrolled_from=address,
            approved=False,
        )

    def _lets_in(self, session: Session, enrolment: wire.Enrolment, now_s: float) -> bool:
        if enrolment.anchor:
            return True
        return is_let_in(session, self._policy.newcomers, enrolment, now_s)

    def _leaf(self, enrolment: wire.Enrolment, now_s: float) -> EnrolLeaf:
        device_class = enrolment.device.device_class
        return EnrolLeaf.model_validate(
            {
                "run_id": self._policy.run_id,
                "at_s": int(now_s),
                "worker": enrolment.worker,
                "donor": enrolment.donor,
                "device_class": device_class,
            }
        )


def check_version(version: str, minimum: str) -> None:
    """Insist on a client that is new enough.

    Raises:
        UpgradeNeeded: it is older than ``minimum``, or names no version.
    """
    if not supported(version, minimum):
        raise UpgradeNeeded(upgrade_sentence(version, minimum))


def check_texts(enrolment: wire.Enrolment) -> None:
    """Bound every text and insist that every address is the device's own.

    Raises:
        BadRecord: naming the field.
    """
    device = enrolment.device
    if device.device_class not in _DEVICE_CLASSES:
        raise BadRecord(f"device_class is one of {', '.join(_DEVICE_CLASSES)}")
    for name, value, most in (
        ("device name", device.name, _MAX_TEXT_CHARS),
        ("client_version", enrolment.client_version, _MAX_TEXT_CHARS // 2),
        ("display_name", enrolment.display_name, MAX_DISPLAY_NAME_CHARS),
        ("invite", enrolment.invite, MAX_TOKEN_CHARS),
    ):
        if len(value) > most:
            raise BadRecord(f"{name} has {len(value)} characters, allowed are {most}")
    check_energy(device.energy_mwh, device.energy_tokens)
    if not enrolment.client_version.isprintable():
        raise BadRecord("client_version holds characters that cannot be printed")
    check_multiaddrs(enrolment.multiaddrs, enrolment.worker)


def check_multiaddrs(addresses: Collection[str], worker: PeerId) -> None:
    """Bound a device's addresses: others will dial them.

    Raises:
        BadRecord: too many, too long, malformed, or of another peer.
    """
    if len(addresses) > MAX_MULTIADDRS:
        raise BadRecord(f"{len(addresses)} addresses, allowed are {MAX_MULTIADDRS}")
    for address in addresses:
        if len(address) > MAX_MULTIADDR_CHARS or not _MULTIADDR.fullmatch(address):
            raise BadRecord(f"not a multiaddress: {address[:80]!r}")
        _, marker, peer_id = address.rpartition("/p2p/")
        if marker and peer_id != worker:
            raise BadRecord(f"the address {address[:80]!r} is not of {worker}")


def check_donor(enrolment: wire.Enrolment, now_s: float) -> None:
    """Insist that the donor vouches for the device (protocol section 1).

    Raises:
        BadSignature: it does not, or no longer.
        BadRecord: the delegation is of another device.
    """
    if enrolment.donor == enrolment.worker:
        return
    if not enrolment.HasField("device_delegation"):
        raise BadSignature("a device that works for another key needs that key's delegation")
    delegation = open_envelope(
        enrolment.device_delegation, wire.DeviceDelegation, signer=enrolment.donor
    ).record
    if (delegation.donor, delegation.worker) != (enrolment.donor, enrolment.worker):
        raise BadRecord("the donor's delegation is for another device")
    if delegation.not_after_s < now_s:
        raise BadSignature("the donor's delegation has expired: make a new one")


def anchor_addresses(session: Session, *, seen_since_s: float) -> list[str]:
    """Full addresses (with ``/p2p/PeerID``) of the anchors that were heard of lately."""
    rows = session.scalars(
        select(WorkerRow)
        .where(WorkerRow.anchor, WorkerRow.last_seen_s >= seen_since_s)
        .where(welcome())
        .order_by(WorkerRow.worker)
    )
    return [
        address if "/p2p/" in address else f"{address}/p2p/{row.worker}"
        for row in rows
        for address in json.loads(row.multiaddrs)
    ]


def let_in(database: Database) -> set[PeerId]:
    """Every device that was let in so far, and whom they work for; blocks."""
    with database.session() as session:
        rows = session.execute(
            select(WorkerRow.worker, WorkerRow.donor).where(WorkerRow.approved)
        ).all()
    return {key for row in rows for key in row}


def dismiss_anchors(session: Session, listed: Collection[PeerId]) -> None:
    """Whoever is an anchor no longer by the organiser's list is a plain device from now on."""
    for row in session.scalars(select(WorkerRow).where(WorkerRow.anchor)):
        row.anchor = row.worker in listed


def forget_addresses(session: Session, worker: PeerId) -> None:
    """Send nobody to a peer that is down: it tells its new addresses when it enrols."""
    row = session.get(WorkerRow, worker)
    if row is not None:
        row.multiaddrs = "[]"


def _check_row(row: WorkerRow, enrolment: wire.Enrolment) -> None:
    if row.donor != enrolment.donor:
        raise UsageError(
            f"this device works for {row.donor} already: count the two accounts as one with "
            "'barnraise donor merge', or make a new device key to work for another"
        )


def _update(row: WorkerRow, enrolment: wire.Enrolment, now_s: float) -> None:
    row.device_class = enrolment.device.device_class
    row.device_name = clean_name(enrolment.device.name)
    row.display_name = clean_name(enrolment.display_name)
    row.client_version = enrolment.client_version
    row.anchor = enrolment.anchor
    row.client_mode = enrolment.client_mode
    row.multiaddrs = json.dumps(list(enrolment.multiaddrs))
    row.last_seen_s = now_s
