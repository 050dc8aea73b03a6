"""Profiles: what people chose to show. None of it is in the public record, all can be erased.

Invariants:

* Texts were bounded when their act was opened (:mod:`ledger.act_texts`), and names are cleaned.
  Escaping them is the business of whoever shows them.
* The newest word counts: an older update that comes late changes nothing.
* What was erased comes back by the person's own signed word only, never by a device's enrolment.
* Erasing a person takes what links one to private and secret acts, too: their salts. The record
  keeps its numbers and digests, and verifies as before.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from coordinator.crowd.joined import keys_of_person
from coordinator.schema import WorkerRow
from ledger.donors import clean_name, set_profile
from ledger.schema import ActRow, DeviceEnergy, ErasedProfile, Profile, TeamProfile
from protocol.envelope import payload_type
from protocol.errors import BadRecord
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire

_DONATION = payload_type(wire.Donation)


def check_profile(record: wire.ProfileUpdate) -> None:
    """Insist that something is shown, or all of it erased.

    Raises:
        BadRecord: the name is blank, or becomes so when it is cleaned.
    """
    if not record.erase and not clean_name(record.display_name):
        raise BadRecord("a profile has a name; erase it instead")


def update_profile(
    session: Session, record: wire.ProfileUpdate, keys: Collection[PeerId], now_s: float
) -> bool:
    """Keep what a person, or a team's founder, wants to show; :func:`check_profile` came first.

    Args:
        session: of one transaction.
        record: what was signed.
        keys: all keys of the person who signed it: who erases is forgotten under every one.
        now_s: POSIX time.

    Returns:
        Whether it counts: False when a newer word is kept.
    """
    subject = record.team.hex() if record.team else record.donor
    said_at_s = min(record.freshness.sent_at_ms // 1000, int(now_s))
    erased = session.get(ErasedProfile, subject)
    kept = session.get(TeamProfile, subject) if record.team else session.get(Profile, subject)
    newest_s = max((row.updated_at_s for row in [kept] if row), default=0)
    if said_at_s < max(newest_s, erased.erased_at_s if erased else 0):
        return False
    if record.erase:
        _erase(session, [subject] if record.team else {subject, *keys}, said_at_s)
        return True
    if erased is not None:
        session.delete(erased)
    shown = {
        "display_name": clean_name(record.display_name),
        "url": record.url,
        "about": record.about,
        "updated_at_s": said_at_s,
    }
    if record.team:
        session.merge(TeamProfile(team=subject, **shown))
    else:
        session.merge(Profile(donor=subject, show_devices=record.show_devices, **shown))
    session.flush()
    return True


def join_profiles(session: Session, old: PeerId, new: PeerId) -> None:
    """A person is shown under another key from here on: its profile stands, else the old one's.

    Likewise that a profile was erased.
    """
    if session.get(Profile, new) is None and session.get(ErasedProfile, new) is None:
        session.execute(update(Profile).where(Profile.donor == old).values(donor=new))
        erased = session.get(ErasedProfile, old)
        if erased is not None:
            session.add(ErasedProfile(subject=new, erased_at_s=erased.erased_at_s))
    else:
        session.execute(delete(Profile).where(Profile.donor == old))
    session.flush()


def take_name(session: Session, donor: PeerId, name: str, before: str, now_s: float) -> None:
    """Keep the name that a device's enrolment brings, where the person has not said otherwise.

    Args:
        session: of one transaction.
        donor: whom the device works for.
        name: that it brings.
        before: that its last enrolment brought.
        now_s: POSIX time.
    """
    name = clean_name(name)
    if not name or session.get(ErasedProfile, donor) is not None:
        return
    if name != before or session.get(Profile, donor) is None:
        set_profile(session, donor, name, now_s=int(now_s))


def erase_person(session: Session, donor: PeerId, now_s: float) -> list[PeerId]:
    """Forget a person: profiles, names of devices, and what links them to unnamed acts.

    Returns:
        The keys that were the person's.
    """
    keys = sorted(keys_of_person(session, donor))
    _erase(session, keys, int(now_s))
    session.execute(
        update(WorkerRow).where(WorkerRow.donor.in_(keys)).values(display_name="", device_name="")
    )
    session.execute(
        update(ActRow)
        .where(ActRow.signer.in_(keys), ActRow.public.is_(False))
        .values(envelope=b"", signer="")
    )
    for row in session.scalars(select(ActRow).where(ActRow.public.is_(False))):
        if _names(row.envelope, keys):
            row.envelope = b""
    session.flush()
    return keys


def _erase(session: Session, subjects: Collection[str], at_s: int) -> None:
    session.execute(delete(Profile).where(Profile.donor.in_(subjects)))
    session.execute(delete(TeamProfile).where(TeamProfile.team.in_(subjects)))
    session.execute(delete(DeviceEnergy).where(DeviceEnergy.donor.in_(subjects)))
    for subject in subjects:
        session.merge(ErasedProfile(subject=subject, erased_at_s=at_s))
    session.flush()


def _names(envelope: bytes, keys: Collection[PeerId]) -> bool:
    """Whether a donation, which its treasurer signed, is of one of these."""
    sealed = wire.Envelope.FromString(envelope)
    if sealed.payload_type != _DONATION:
        return False
    return wire.Donation.FromString(sealed.payload).donor in keys
