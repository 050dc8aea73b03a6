"""Donors' profiles: what a person chose to show, apart from the log, and erasable.

A profile is stored as given but for characters that no honest name needs (controls, text
direction overrides): escaping is the business of whoever shows it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ledger.schema import Profile
from protocol.identity import PeerId
from protocol.limits import MAX_DISPLAY_NAME_CHARS

_KEYS_PER_QUERY = 500
_DROPPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that could break or reverse a line: controls, formats, private use."""

_BLANK = "\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Letters and symbols that show nothing: a name of them alone would be a gap in every table."""

_MOST_MARKS = 3
"""Combining marks in a row: more pile up over the lines around."""


def clean_name(name: str) -> str:
    """A display name in NFC, without invisible characters, on one line, bounded in length."""
    normal = unicodedata.normalize("NFC", name[: 4 * MAX_DISPLAY_NAME_CHARS])
    kept, marks = [], 0
    for c in normal:
        category = unicodedata.category(c)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks <= _MOST_MARKS:
            kept.append(" " if category in _DROPPED or c in _BLANK else c)
    return " ".join("".join(kept).split())[:MAX_DISPLAY_NAME_CHARS].strip()


def short_key(donor: PeerId) -> str:
    """How a donor without a name is shown: the end of its key, which differs most."""
    return f"…{donor[-8:]}"


def set_profile(session: Session, donor: PeerId, display_name: str, *, now_s: int) -> None:
    """Keep what the donor wants to be called; an empty name erases the profile."""
    name = clean_name(display_name)
    if not name:
        erase_profile(session, donor)
        return
    session.merge(Profile(donor=donor, display_name=name, updated_at_s=now_s))
    session.flush()


def erase_profile(session: Session, donor: PeerId) -> None:
    """Forget the person; the key's credit stays, under its short key."""
    session.execute(delete(Profile).where(Profile.donor == donor))


def names_of(session: Session, donors: Iterable[PeerId]) -> dict[PeerId, str]:
    """Display names of those donors that have one."""
    wanted = list(dict.fromkeys(donors))
    names: dict[PeerId, str] = {}
    for first in range(0, len(wanted), _KEYS_PER_QUERY):
        part = wanted[first : first + _KEYS_PER_QUERY]
        rows = session.execute(
            select(Profile.donor, Profile.display_name).where(Profile.donor.in_(part))
        )
        names.update({row.donor: row.display_name for row in rows})
    return names
