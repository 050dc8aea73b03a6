"""The records that donors sign, made from what a person wants. Nothing here sends anything.

A draft carries its *intent*: what it means without ids, salts and dates. Whoever repeats a command
that was interrupted wants the act that was signed then, and not a second one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal, get_args

from google.protobuf.message import Message

from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import PeerFault, UsageError
from protocol.identity import Identity, PeerId
from protocol.wire import records_pb2 as wire

ID_BYTES = 16
Visibility = Literal["public", "private", "secret"]
VISIBILITIES: tuple[str, ...] = get_args(Visibility)

DATED = ("TeamMembership", "ProfileUpdate")
"""Kinds without a natural key."""


@dataclass(frozen=True)
class Draft:
    """An act that is about to be signed."""

    record: Message
    intent: dict[str, object]
    signer: Identity

    @property
    def kind(self) -> str:
        return str(self.record.DESCRIPTOR.name)


def pledge(
    run_id: bytes,
    campaign: bytes,
    donor: Identity,
    *,
    microcredits: int,
    until_s: int,
    visibility: Visibility,
) -> Draft:
    """Promise compute."""
    record = wire.Pledge(
        run_id=run_id,
        campaign=campaign,
        pledge=secrets.token_bytes(ID_BYTES),
        donor=donor.peer_id,
        microcredits=microcredits,
        until_s=until_s,
        visibility=_wire(visibility),
        salt=secrets.token_bytes(ID_BYTES),
    )
    intent = {
        "campaign": campaign.hex(),
        "microcredits": microcredits,
        "until_s": until_s,
        "visibility": visibility,
    }
    return Draft(record, intent, donor)


def revised(
    newest: wire.Pledge,
    donor: Identity,
    *,
    microcredits: int | None = None,
    until_s: int | None = None,
) -> Draft:
    """The next revision of a pledge; what is not given stays. No microcredits withdraw it."""
    record = wire.Pledge()
    record.CopyFrom(newest)
    record.revision += 1
    record.donor = donor.peer_id  # who gave a key up since acts by the one that took it
    record.salt = secrets.token_bytes(ID_BYTES)
    if microcredits is not None:
        record.microcredits = microcredits
    if until_s is not None:
        record.until_s = until_s
    intent = {
        "pledge": record.pledge.hex(),
        "microcredits": record.microcredits,
        "until_s": record.until_s,
    }
    return Draft(record, intent, donor)


def founding(run_id: bytes, founder: Identity, name: str) -> Draft:
    """Found a team. Its name is a profile, for :func:`profile`."""
    record = wire.TeamFounding(
        run_id=run_id, team=secrets.token_bytes(ID_BYTES), founder=founder.peer_id
    )
    return Draft(record, {"name": name}, founder)


def membership(run_id: bytes, donor: Identity, team: bytes) -> Draft:
    """Be of a team from here on, or of none (``b""``)."""
    record = wire.TeamMembership(run_id=run_id, donor=donor.peer_id, team=team)
    return Draft(record, {"team": team.hex()}, donor)


def profile(run_id: bytes, donor: Identity, shown: wire.ProfileUpdate) -> Draft:
    """Show these texts, or with ``erase`` none."""
    record = wire.ProfileUpdate()
    record.CopyFrom(shown)
    record.run_id, record.donor = run_id, donor.peer_id
    record.ClearField("freshness")
    return Draft(record, {"update": record.SerializeToString(deterministic=True).hex()}, donor)


def consent(run_id: bytes, of: PeerId, into: Identity) -> wire.Envelope:
    """Agree to take another key's account."""
    return seal(wire.KeyConsent(run_id=run_id, of=of, into=into.peer_id), into)


def key_change(run_id: bytes, old: Identity, new: Identity) -> Draft:
    """The account goes on under a new key; both sign."""
    return takeover(run_id, old, consent(run_id, old.peer_id, new))


def merge(run_id: bytes, given_up: Identity, agreed: wire.Envelope) -> Draft:
    """Count the account of ``given_up`` with another key's, who agreed.

    Raises:
        UsageError: the consent is of another run, or about another key, or damaged.
    """
    agreement = checked_consent(run_id, given_up, agreed)
    record = wire.AccountMerge(
        run_id=run_id,
        donor=given_up.peer_id,
        into=agreement.record.into,
        consent=agreement.envelope,
    )
    return Draft(record, {"donor": record.donor, "into": record.into}, given_up)


def takeover(run_id: bytes, given_up: Identity, agreed: wire.Envelope) -> Draft:
    """:func:`merge`, where the key that takes the account has none of its own.

    Raises:
        UsageError: as for a merge.
    """
    agreement = checked_consent(run_id, given_up, agreed)
    record = wire.KeyChange(
        run_id=run_id,
        old=given_up.peer_id,
        new=agreement.record.into,
        consent=agreement.envelope,
    )
    return Draft(record, {"old": record.old, "new": record.new}, given_up)


def checked_consent(
    run_id: bytes, given_up: Identity, agreed: wire.Envelope
) -> Signed[wire.KeyConsent]:
    """Insist that a consent is to take this key's account, in this run.

    Raises:
        UsageError: it is not.
    """
    try:
        signed = open_envelope(agreed, wire.KeyConsent)
    except PeerFault as error:
        raise UsageError(f"the consent is damaged ({error}): copy the whole line") from error
    record = signed.record
    if record.run_id != run_id or record.into != signed.signer:
        raise UsageError("the consent is for another run: ask for one made with this run's link")
    if record.of != given_up.peer_id:
        raise UsageError(
            f"the consent is to take the account of {record.of}, and the key here is "
            f"{given_up.peer_id}"
        )
    if record.into == given_up.peer_id:
        raise UsageError("these are the same key already: there is nothing to merge")
    return signed


def parse_id(text: str, what: str) -> bytes:
    """16 bytes in hex.

    Raises:
        UsageError: it is something else.
    """
    try:
        value = bytes.fromhex(text.strip())
    except ValueError:
        value = b""
    if len(value) != ID_BYTES:
        raise UsageError(f"a {what}'s id is 32 hex digits, not {text[:80]!r}")
    return value


def visibility_of(record: wire.Pledge) -> str:
    """``public``, ``private`` or ``secret``."""
    return wire.Visibility.Name(record.visibility).removeprefix("VISIBILITY_").lower()


def _wire(visibility: Visibility) -> wire.Visibility:
    names: dict[Visibility, wire.Visibility] = {
        "public": wire.VISIBILITY_PUBLIC,
        "private": wire.VISIBILITY_PRIVATE,
        "secret": wire.VISIBILITY_SECRET,
    }
    return names[visibility]
