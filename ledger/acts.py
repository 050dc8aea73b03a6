"""From a signed act to its leaf: the one way, for who records acts and for who verifies them.

Invariants:

* Nothing of an envelope is used before its signature is checked, its ids and texts are bounded, and
  its signer is the one whose act it claims to be (:func:`open_act`).
* The signed bytes are those of the fields that are checked, and no others: what is recorded is
  served for ever, so nothing else may ride along.
* A leaf follows from its act, the run and the time at which it was recorded, and from nothing else
  (:func:`leaf_of`). So a public act can be compared with its leaf field by field.

Which delegated key may sign an organiser's act, :func:`purpose_of` says; whether a leaf may come
next, :mod:`ledger.crowd`; whether a public act is really there, :mod:`ledger.act_check`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError

from ledger.act_texts import check_texts
from ledger.crowd_records import (
    ActLeaf,
    CampaignEndLeaf,
    CampaignLeaf,
    CrowdLeaf,
    DelegationLeaf,
    DonationLeaf,
    KeyRotationLeaf,
    MembershipLeaf,
    MergeLeaf,
    NewsLeaf,
    PledgeLeaf,
    PoolLeaf,
    TeamLeaf,
    VoidLeaf,
)
from protocol.envelope import open_envelope, payload_type
from protocol.errors import BadRecord, BadSignature
from protocol.identity import PeerId
from protocol.manifest import explain_validation
from protocol.wire import records_pb2 as wire

_ID_BYTES = 16

Record: TypeAlias = Any
"""A protobuf message of one of the kinds below."""

Fields = dict[str, object]


@dataclass(frozen=True)
class Act:
    """An act whose signature, ids, texts and signer are in order."""

    record: Record
    signer: PeerId
    envelope: wire.Envelope

    @property
    def digest(self) -> bytes:
        """SHA-256 of the signed payload: its leaf names the act by it."""
        return hashlib.sha256(self.envelope.payload).digest()


@dataclass(frozen=True)
class _Kind:
    """How acts of one kind are read."""

    record: type[Record]
    leaf: type[ActLeaf] | None  # None: it leaves nothing in the record
    fields: Callable[[Record, PeerId], Fields]  # of that leaf, from the act and its signer
    ids: tuple[str, ...] = ()  # fields of 16 bytes
    signer: str = ""  # field that names who signs; none: a delegated key
    taker: str = ""  # field that names who consents
    purpose: wire.KeyPurpose | None = None  # for which the signer's key must be delegated


def open_act(envelope: wire.Envelope) -> Act:
    """Verify an envelope and read the act in it, of whatever kind.

    Raises:
        BadSignature: the signature does not verify, or is not by whose act it is.
        BadRecord: it is no act, or one of its fields is out of bounds.
    """
    kind = _KINDS.get(envelope.payload_type)
    if kind is None:
        raise BadRecord(f"{envelope.payload_type[:100]!r} is no act that this version knows")
    signed = open_envelope(envelope, kind.record)
    record = signed.record
    _check_bytes(record, signed.envelope.payload)
    for name in kind.ids:
        if len(getattr(record, name)) != _ID_BYTES:
            raise BadRecord(f"{name} is {_ID_BYTES} bytes long, not {len(getattr(record, name))}")
    check_texts(record)
    if kind.signer and getattr(record, kind.signer) != signed.signer:
        raise BadSignature(f"an act of {getattr(record, kind.signer)[:64]!r} is signed by its key")
    if kind.taker:
        _check_consent(record, getattr(record, kind.signer), getattr(record, kind.taker))
    return Act(record, signed.signer, signed.envelope)


def leaf_of(act: Act, *, run_id: bytes, at_s: int) -> CrowdLeaf:
    """The leaf that an act leaves.

    Args:
        act: as :func:`open_act` gave it.
        run_id: of the run whose record it goes into.
        at_s: when it is recorded.

    Raises:
        BadRecord: it is for another run, leaves no leaf, or holds what no leaf may.
    """
    kind = _KINDS[act.envelope.payload_type]
    if act.record.run_id != run_id:
        raise BadRecord("an act for another run")
    if kind.leaf is None:
        raise BadRecord(f"a {kind.record.DESCRIPTOR.name} leaves nothing in the record")
    fields = kind.fields(act.record, act.signer)
    try:
        leaf: Any = kind.leaf.model_validate(
            {"run_id": run_id, "at_s": at_s, "record_digest": act.digest, **fields}
        )
    except ValidationError as error:
        raise BadRecord(explain_validation("act", error)) from error
    made: CrowdLeaf = leaf
    return made


def purpose_of(act: Act) -> wire.KeyPurpose | None:
    """What the root key must have delegated to the signer's key.

    None: it is a donor's act, which that donor signed; or the root key's own; or a void, which is
    signed as what it undoes is.
    """
    return _KINDS[act.envelope.payload_type].purpose


def _check_bytes(record: Record, payload: bytes) -> None:
    known = type(record)()
    known.CopyFrom(record)
    known.DiscardUnknownFields()
    if known.SerializeToString(deterministic=True) != payload:
        raise BadRecord(f"a {record.DESCRIPTOR.name} with more in it than this version knows")


def _check_consent(record: Record, old: PeerId, new: PeerId) -> None:
    try:
        consent = open_envelope(record.consent, wire.KeyConsent, signer=new).record
        _check_bytes(consent, record.consent.payload)
    except (BadRecord, BadSignature) as error:
        raise type(error)(f"the consent of the key that takes the account: {error}") from error
    if (consent.run_id, consent.of, consent.into) != (record.run_id, old, new):
        raise BadRecord("the key that takes the account consented to something else")


# ---- the fields of each leaf ----


def _purpose_word(purpose: int) -> str | None:
    names = dict(wire.KeyPurpose.items())
    known = {value: name.removeprefix("KEY_PURPOSE_").lower() for name, value in names.items()}
    return known.get(purpose)  # an unknown one is no word of the leaf's, which refuses it


def _visibility_word(visibility: int) -> str | None:
    names = dict(wire.Visibility.items())
    known = {value: name.removeprefix("VISIBILITY_").lower() for name, value in names.items()}
    return known.get(visibility)


def _delegation(record: Record, _signer: PeerId) -> Fields:
    return {
        "purpose": _purpose_word(record.purpose),
        "key_digest": hashlib.sha256(record.public_key).digest(),
        "serial": record.serial,
        "not_before_s": record.not_before_s,
        "not_after_s": record.not_after_s,
    }


def _revocation(record: Record, _signer: PeerId) -> Fields:
    return {"serial": record.serial, "revoked": True}


def _campaign(record: Record, _signer: PeerId) -> Fields:
    return {
        "campaign": record.campaign,
        "revision": record.revision,
        "goal_microcredits": record.goal_microcredits,
        "goal_minor": record.goal_minor or None,
        "currency": record.currency or None,
        "starts_s": record.starts_s,
        "ends_s": record.ends_s or None,
        "when_reached": record.when_reached,
        "when_missed": record.when_missed,
    }


def _campaign_end(record: Record, _signer: PeerId) -> Fields:
    return {"campaign": record.campaign, "outcome": record.outcome}


def _news(record: Record, _signer: PeerId) -> Fields:
    return {"campaign": record.campaign}


def _pledge(record: Record, _signer: PeerId) -> Fields:
    visibility = _visibility_word(record.visibility)
    return {
        "campaign": record.campaign,
        "pledge": record.pledge,
        "revision": record.revision,
        "donor": record.donor if visibility == "public" else None,
        "microcredits": record.microcredits,
        "until_s": record.until_s,
        "visibility": visibility,
    }


def _pool(record: Record, signer: PeerId) -> Fields:
    return {
        "campaign": record.campaign,
        "pool": record.pool,
        "currency": record.currency,
        "treasurer": signer,
    }


def _donation(record: Record, signer: PeerId) -> Fields:
    visibility = _visibility_word(record.visibility)
    return {
        "campaign": record.campaign,
        "donation": record.donation,
        "donor": (record.donor or None) if visibility == "public" else None,
        "pool": record.pool or None,
        "amount_minor": record.amount_minor,
        "currency": record.currency,
        "received_s": record.received_s,
        "visibility": visibility,
        "treasurer": signer,
    }


def _void(record: Record, _signer: PeerId) -> Fields:
    return {"leaf": record.leaf, "reason": record.reason}


def _team(record: Record, _signer: PeerId) -> Fields:
    return {"team": record.team, "donor": record.founder}


def _membership(record: Record, _signer: PeerId) -> Fields:
    return {"donor": record.donor, "team": record.team or None}


def _key_rotation(record: Record, _signer: PeerId) -> Fields:
    return {"donor": record.old, "new": record.new}


def _merge(record: Record, _signer: PeerId) -> Fields:
    return {"donor": record.donor, "into": record.into}


def _nothing(_record: Record, _signer: PeerId) -> Fields:
    return {}


_CAMPAIGN, _TREASURER = wire.KEY_PURPOSE_CAMPAIGN, wire.KEY_PURPOSE_TREASURER
_KINDS = {
    payload_type(kind.record): kind
    for kind in (
        _Kind(wire.Delegation, DelegationLeaf, _delegation),
        _Kind(wire.Revocation, DelegationLeaf, _revocation),
        _Kind(wire.CampaignTerms, CampaignLeaf, _campaign, ("campaign",), purpose=_CAMPAIGN),
        _Kind(wire.CampaignEnd, CampaignEndLeaf, _campaign_end, ("campaign",), purpose=_CAMPAIGN),
        _Kind(wire.CampaignNews, NewsLeaf, _news, ("campaign", "news"), purpose=_CAMPAIGN),
        _Kind(wire.Pledge, PledgeLeaf, _pledge, ("campaign", "pledge", "salt"), signer="donor"),
        _Kind(wire.Pool, PoolLeaf, _pool, ("campaign",), purpose=_TREASURER),
        _Kind(
            wire.Donation,
            DonationLeaf,
            _donation,
            ("campaign", "donation", "salt"),
            purpose=_TREASURER,
        ),
        _Kind(wire.Voiding, VoidLeaf, _void, ("salt",)),
        _Kind(wire.TeamFounding, TeamLeaf, _team, ("team",), signer="founder"),
        _Kind(wire.TeamMembership, MembershipLeaf, _membership, signer="donor"),
        _Kind(wire.KeyChange, KeyRotationLeaf, _key_rotation, signer="old", taker="new"),
        _Kind(wire.AccountMerge, MergeLeaf, _merge, signer="donor", taker="into"),
        _Kind(wire.ProfileUpdate, None, _nothing, signer="donor"),
    )
}
