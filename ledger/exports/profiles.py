"""What people chose to show, as exports need it: names beside the log, and who was forgotten.

Read from the database, or from the file ``profiles`` beside mirrored tiles::

    {"format": "barnraise-profiles/1",
     "profiles": [{"donor", "display_name", "url", "about", "show_devices", "updated_at_s"}, ...],
     "teams": [{"team", "display_name", "url", "about", "updated_at_s"}, ...],
     "erased": [{"subject", "erased_at_s"}, ...]}

Invariant: whoever is among the erased, and did not choose a name again, has none here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger.schema import ErasedProfile, Profile, TeamProfile
from protocol.errors import BadRecord
from protocol.manifest import explain_validation

MAX_PROFILES_BYTES = 1 << 28

_Subject = Annotated[str, Field(min_length=1, max_length=64)]
_Time = Annotated[int, Field(ge=0, lt=1 << 53)]


@dataclass(frozen=True, slots=True)
class Shown:
    """What somebody, or a team, chose to show; hostile until it is escaped."""

    name: str
    url: str = ""
    about: str = ""
    show_devices: bool = False


@dataclass(frozen=True)
class Profiles:
    """Everything that is shown and is not in the log."""

    donors: dict[str, Shown] = field(default_factory=dict)
    teams: dict[str, Shown] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)  # Unix seconds, by key or team

    def is_erased(self, shown_as: str, subjects: Iterable[str]) -> bool:
        """Whether somebody was forgotten, and did not choose a name again."""
        return shown_as not in self.donors and not self.erased.keys().isdisjoint(subjects)


def read_profiles(session: Session) -> Profiles:
    """As the database has them now."""
    return Profiles(
        {
            row.donor: Shown(row.display_name, row.url, row.about, row.show_devices)
            for row in session.execute(
                select(
                    Profile.donor,
                    Profile.display_name,
                    Profile.url,
                    Profile.about,
                    Profile.show_devices,
                )
            )
        },
        {
            row.team: Shown(row.display_name, row.url, row.about)
            for row in session.execute(
                select(
                    TeamProfile.team, TeamProfile.display_name, TeamProfile.url, TeamProfile.about
                )
            )
        },
        {
            row.subject: row.erased_at_s
            for row in session.execute(select(ErasedProfile.subject, ErasedProfile.erased_at_s))
        },
    )


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    display_name: Annotated[str, Field(max_length=256)] = ""
    url: Annotated[str, Field(max_length=1024)] = ""
    about: Annotated[str, Field(max_length=4096)] = ""

    def shown(self, show_devices: bool = False) -> Shown:
        return Shown(self.display_name, self.url, self.about, show_devices)


class _Donor(_Entry):
    donor: _Subject
    show_devices: bool = False


class _Team(_Entry):
    team: _Subject


class _Erased(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    subject: _Subject
    erased_at_s: _Time


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    format: Literal["barnraise-profiles/1"]
    profiles: list[_Donor]
    teams: list[_Team]
    erased: list[_Erased]


def parse_profiles(data: bytes) -> Profiles:
    """Read the file above from untrusted bytes.

    Raises:
        BadRecord: oversized or malformed.
    """
    if len(data) > MAX_PROFILES_BYTES:
        raise BadRecord(f"profiles of {len(data)} bytes are over {MAX_PROFILES_BYTES}")
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord("profiles are not JSON") from error
    try:
        read = _File.model_validate(raw)
    except ValidationError as error:
        raise BadRecord(explain_validation("profiles", error)) from error
    return Profiles(
        {entry.donor: entry.shown(entry.show_devices) for entry in read.profiles},
        {entry.team: entry.shown() for entry in read.teams},
        {entry.subject: entry.erased_at_s for entry in read.erased},
    )
