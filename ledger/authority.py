"""From the run's root fingerprint to the keys that may sign the log.

``/delegations`` of a log, and the ``extra`` line of a receipt, are this JSON::

    {"format": "barnraise-delegations/1", "run_id": HEX,
     "delegations": [BASE64, ...], "revocations": [BASE64, ...]}

Each BASE64 is an ``Envelope`` of a ``Delegation`` or ``Revocation`` signed by the root key. A head
carries no time, so a key's window is judged at the time of the newest leaf under the head: an
archived log verifies for ever, and a key that expired cannot vouch for newer leaves.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import rfc8785
from google.protobuf.message import DecodeError
from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger.schema import DelegationRow
from protocol.envelope import open_envelope, parse_envelope
from protocol.errors import BadRecord, BadSignature
from protocol.identity import PeerId, PublicKey
from protocol.notes import NoteKey, decode_base64
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire

FORMAT = "barnraise-delegations/1"
MAX_DELEGATIONS_BYTES = 1 << 20
_MAX_RECORDS = 1000


@dataclass(frozen=True)
class Delegations:
    """Records of a run's root key, unverified."""

    run_id: bytes
    delegations: tuple[wire.Envelope, ...] = ()
    revocations: tuple[wire.Envelope, ...] = ()

    def dump(self) -> bytes:
        """The JSON above, canonical."""
        return rfc8785.dumps(
            {
                "format": FORMAT,
                "run_id": self.run_id.hex(),
                "delegations": [_encode(envelope) for envelope in self.delegations],
                "revocations": [_encode(envelope) for envelope in self.revocations],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Delegations:
        """Read the JSON above from untrusted bytes.

        Raises:
            BadRecord: oversized or malformed.
        """
        if len(data) > MAX_DELEGATIONS_BYTES:
            raise BadRecord(f"delegations of {len(data)} bytes are over {MAX_DELEGATIONS_BYTES}")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadRecord("delegations are not JSON") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise BadRecord(f"delegations are not {FORMAT}")
        try:
            run_id = bytes.fromhex(raw["run_id"])
            parts = [_decode_all(raw[name]) for name in ("delegations", "revocations")]
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecord("delegations are malformed") from error
        return cls(run_id, parts[0], parts[1])

    def joined(self, others: Delegations | None) -> Delegations:
        """All of these and of the others: what was said once is not unsaid by leaving it out."""
        if others is None:
            return self
        return Delegations(
            self.run_id,
            _union(self.delegations, others.delegations),
            _union(self.revocations, others.revocations),
        )

    def before_revoking(self, older: Delegations) -> Delegations:
        """These, but for what was revoked since the older ones: a head of either verifies."""
        known = {_encode(envelope) for envelope in older.revocations}
        kept = tuple(e for e in self.revocations if _encode(e) in known)
        return Delegations(self.run_id, self.delegations, kept)

    def log_only(self) -> Delegations:
        """Without the delegations of other purposes: what a receipt needs."""
        kept = tuple(
            envelope
            for envelope in self.delegations
            if _unverified(envelope).purpose == wire.KEY_PURPOSE_LOG
        )
        return Delegations(self.run_id, kept, self.revocations)


def log_keys(
    records: Delegations, root: PeerId, origin: str, *, run_id: bytes, at_s: float | None
) -> list[NoteKey]:
    """Keys that the root vouched for as signers of the log ``origin`` at ``at_s``.

    ``None`` stands for any time: a first look, before the newest leaf is known.

    Raises:
        BadSignature: none, or a record is not the root's.
    """
    trust = TrustStore(run_id, root)
    trust.add(records.delegations, records.revocations)
    keys, problem = [], "the root key delegated no log key"
    for envelope in records.delegations:
        record = open_envelope(envelope, wire.Delegation, signer=root).record
        if record.purpose != wire.KEY_PURPOSE_LOG:
            continue
        try:
            judged_s = record.not_before_s if at_s is None else at_s
            trust.require(wire.KEY_PURPOSE_LOG, record.public_key, judged_s)
        except BadSignature as error:
            problem = str(error)
            continue
        keys.append(NoteKey(origin, PublicKey(record.public_key)))
    if not keys:
        raise BadSignature(f"no key may sign this log: {problem}")
    return keys


def store_delegations(
    session: Session,
    delegations: Iterable[wire.Envelope],
    revocations: Iterable[wire.Envelope] = (),
) -> None:
    """Keep records for ``/delegations`` and receipts; one that is there already stays."""
    for revocation, envelopes in ((False, delegations), (True, revocations)):
        for envelope in envelopes:
            data = envelope.SerializeToString(deterministic=True)
            digest = hashlib.sha256(data).hexdigest()
            session.merge(DelegationRow(digest=digest, revocation=revocation, envelope=data))
    session.flush()


def load_delegations(session: Session) -> Delegations | None:
    """What :func:`store_delegations` kept, or None when it kept nothing.

    Raises:
        BadRecord: a row is damaged.
    """
    rows = session.scalars(select(DelegationRow).order_by(DelegationRow.digest)).all()
    if not rows:
        return None
    kept: dict[bool, list[wire.Envelope]] = {False: [], True: []}
    for row in rows:
        if not isinstance(row.envelope, bytes):  # SQLite keeps any type in any column
            raise BadRecord("a delegation is not bytes: somebody edited the database")
        kept[row.revocation].append(parse_envelope(row.envelope))
    if not kept[False]:
        return None  # revocations alone vouch for nothing
    run_id = _unverified(kept[False][0]).run_id
    return Delegations(run_id, tuple(kept[False]), tuple(kept[True]))


def _unverified(envelope: wire.Envelope) -> wire.Delegation:
    try:
        return wire.Delegation.FromString(envelope.payload)
    except DecodeError as error:
        raise BadRecord("a delegation is damaged: restore the database from a backup") from error


def _union(
    first: Iterable[wire.Envelope], second: Iterable[wire.Envelope]
) -> tuple[wire.Envelope, ...]:
    by_bytes = {_encode(envelope): envelope for envelope in (*first, *second)}
    return tuple(by_bytes[name] for name in sorted(by_bytes))


def _encode(envelope: wire.Envelope) -> str:
    return base64.b64encode(envelope.SerializeToString(deterministic=True)).decode()


def _decode_all(values: Sequence[str]) -> tuple[wire.Envelope, ...]:
    if not isinstance(values, list) or len(values) > _MAX_RECORDS:
        raise BadRecord(f"delegations list more than {_MAX_RECORDS} records, or none at all")
    return tuple(parse_envelope(decode_base64(value)) for value in values)
