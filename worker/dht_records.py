"""What the run keeps in hivemind's DHT, and who may write it.

Invariants:

* A value is one of our envelopes, as MessagePack bytes of at most 64 KiB, signed by a round key
  of the run or by a device that shows an Admission by one. Everything else is refused, on
  storing and on reading, and nothing but bytes is ever unpacked from a value.
* Key, subkey and expiry all follow from the signed record, so nobody can store a good record in
  a wrong place, or make an old one outlive a newer one by giving it a later expiry.

========================  ====================  ============================  ===================
key                       subkey                value                         expires
========================  ====================  ============================  ===================
``RUN/head``              signer's PeerID       RunHead                       issued + 24 h
``RUN/roster/R/A``        group id, hex         Roster                        broadcast end + 1 h
``RUN/roster/R/A``        worker's PeerID       RosterHolder, larger rosters  its ``not_after_s``
``RUN/weights/DIGEST``    worker's PeerID       WeightHolder                  its ``not_after_s``
========================  ====================  ============================  ===================

RUN and DIGEST in hex, R and A (round, attempt) in decimal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgpack
import structlog
from hivemind.dht import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase

from protocol.envelope import open_envelope, parse_envelope, payload_type
from protocol.errors import BadRecord, BadSignature, PeerFault
from protocol.limits import MAX_DHT_VALUE_BYTES
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire
from worker.group import group_id

log = structlog.get_logger()

HEAD_LIFETIME_S = 24 * 3600
ROSTER_LIFETIME_S = 3600
MAX_HOLDER_LIFETIME_S = 2 * 3600
"""A holder that left is forgotten after this, at the latest."""

CLOCK_SKEW_S = 120
"""How far in the future a head may have been issued, by this machine's clock."""

_MAX_SUBKEY_BYTES = 128

Holder = TypeVar("Holder", wire.WeightHolder, wire.RosterHolder)


def head_key(run_id: bytes) -> str:
    return f"{run_id.hex()}/head"


def roster_key(run_id: bytes, round_: int, attempt: int) -> str:
    return f"{run_id.hex()}/roster/{round_}/{attempt}"


def weights_key(run_id: bytes, state_digest: bytes) -> str:
    return f"{run_id.hex()}/weights/{state_digest.hex()}"


@dataclass(frozen=True)
class Place:
    """Where a record belongs and until when."""

    key: str
    subkey: str
    expires_s: float


class RunRecords(RecordValidatorBase):  # type: ignore[misc]
    """hivemind's validator for one run."""

    def __init__(self, run_id: bytes, trust: TrustStore, now_s: Callable[[], float]) -> None:
        self._run_id, self._trust, self._now_s = run_id, trust, now_s
        self._rules: dict[str, Callable[[wire.Envelope], Place]] = {
            payload_type(wire.RunHead): self._head,
            payload_type(wire.Roster): self._roster,
            payload_type(wire.RosterHolder): self._roster_holder,
            payload_type(wire.WeightHolder): self._weight_holder,
        }

    def validate(self, record: DHTRecord) -> bool:
        """Called by hivemind when a peer stores a record here, or answers with one."""
        try:
            self.check(record)
        except PeerFault as fault:
            log.debug("dht_record_refused", why=str(fault))
            return False
        return True

    def check(self, record: DHTRecord) -> None:
        """Insist on a record that may stand where it stands.

        Raises:
            PeerFault: it may not.
        """
        # 1. Sizes, before anything is parsed.
        if len(record.value) > MAX_DHT_VALUE_BYTES or len(record.subkey) > _MAX_SUBKEY_BYTES:
            raise BadRecord("a DHT record over the limit")
        # 2. An envelope in bytes, under a subkey in text.
        data, subkey = _unpack(record.value), _unpack(record.subkey)
        if not isinstance(data, bytes) or not isinstance(subkey, str):
            raise BadRecord("a DHT value is an envelope in bytes, under a subkey in text")
        # 3. The signature, and where the record belongs.
        place = self.place(parse_envelope(data))
        if record.key != DHTID.generate(source=place.key).to_bytes() or subkey != place.subkey:
            raise BadRecord("a good record in the wrong place of the DHT")
        # 4. Its expiry is its own, and has not come.
        if record.expiration_time != place.expires_s:
            raise BadRecord("a DHT record with another expiry than its own")

    def place(self, envelope: wire.Envelope) -> Place:
        """Verify an envelope; where it belongs.

        Raises:
            PeerFault: not a record of this run for the DHT, not signed by one who may, expired.
        """
        rule = self._rules.get(envelope.payload_type)
        if rule is None:
            raise BadRecord(f"{envelope.payload_type[:100]!r} does not belong in the DHT")
        place = rule(envelope)
        if place.expires_s <= self._now_s():
            raise BadRecord("a DHT record that has expired")
        return place

    def _head(self, envelope: wire.Envelope) -> Place:
        head = open_envelope(envelope, wire.RunHead)
        self._require_round_key(head.record.run_id, head.signer)
        issued_s = head.record.issued_at_ms / 1000
        if issued_s > self._now_s() + CLOCK_SKEW_S:
            raise BadRecord("a run head from the future: check this machine's clock")
        return Place(head_key(self._run_id), head.signer, issued_s + HEAD_LIFETIME_S)

    def _roster(self, envelope: wire.Envelope) -> Place:
        roster = open_envelope(envelope, wire.Roster)
        self._require_round_key(roster.record.run_id, roster.signer)
        record = roster.record
        key = roster_key(self._run_id, record.round, record.attempt)
        expires_s = record.broadcast_deadline_ms / 1000 + ROSTER_LIFETIME_S
        return Place(key, group_id(roster).hex(), expires_s)

    def _roster_holder(self, envelope: wire.Envelope) -> Place:
        record = self._by_admitted(envelope, wire.RosterHolder)
        key = roster_key(self._run_id, record.round, record.attempt)
        return Place(key, record.worker, float(record.not_after_s))

    def _weight_holder(self, envelope: wire.Envelope) -> Place:
        record = self._by_admitted(envelope, wire.WeightHolder)
        key = weights_key(self._run_id, record.state_digest)
        return Place(key, record.worker, float(record.not_after_s))

    def _by_admitted(self, envelope: wire.Envelope, kind: type[Holder]) -> Holder:
        holder = open_envelope(envelope, kind)
        record = holder.record
        admission = open_envelope(record.admission, wire.Admission)
        self._require_round_key(admission.record.run_id, admission.signer)
        if not record.worker == holder.signer == admission.record.worker:
            raise BadSignature("signed by another device than the admitted one")
        if record.run_id != self._run_id:
            raise BadRecord("a record of another run")
        now_s = self._now_s()
        if admission.record.not_after_s < now_s:
            raise BadSignature("the device's admission has expired: it must enrol again")
        if record.not_after_s > now_s + MAX_HOLDER_LIFETIME_S + CLOCK_SKEW_S:
            raise BadRecord("a holder's record must expire within two hours")
        return record

    def _require_round_key(self, run_id: bytes, signer: str) -> None:
        if run_id != self._run_id:
            raise BadRecord("a record of another run")
        self._trust.require_signer(wire.KEY_PURPOSE_ROUND, signer, self._now_s())


def _unpack(data: bytes) -> object:
    # Without hivemind's extension types: a value of ours is bytes, a subkey text.
    try:
        return msgpack.unpackb(data, raw=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise BadRecord("a DHT record that is not MessagePack") from error


class Records:
    """Reads and writes the run's records through a DHT node that has the validator."""

    def __init__(self, node: DHTNode, rules: RunRecords) -> None:
        self._node, self._rules = node, rules

    async def publish(self, envelope: wire.Envelope) -> bool:
        """Store a record where it belongs; False when no peer took it.

        Raises:
            PeerFault: it may not be stored: the validators would refuse it.
        """
        data = envelope.SerializeToString()
        if not fits(data):
            raise BadRecord(f"{len(data)} bytes are too many for the DHT")
        place = self._rules.place(envelope)
        return bool(await self._node.store(place.key, data, place.expires_s, subkey=place.subkey))

    async def find(self, key: str) -> list[wire.Envelope]:
        """All valid records under a key, freshly searched for; the validator has checked them."""
        found = await self._node.get(key, latest=True)
        if found is None or not isinstance(found.value, dict):
            return []
        envelopes = []
        for item in found.value.values():
            envelope = parse_envelope(item.value)
            try:
                self._rules.place(envelope)
            except PeerFault as fault:  # expired since, or its signer was revoked
                log.debug("dht_record_refused", why=str(fault))
            else:
                envelopes.append(envelope)
        return envelopes


def fits(data: bytes) -> bool:
    """Whether bytes fit into one value, with MessagePack's header of at most five."""
    return len(data) + 5 <= MAX_DHT_VALUE_BYTES
