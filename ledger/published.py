"""What is published beside the log: signed acts, profiles, the run's page.

* ``acts/<N>``: the serialised Envelope behind leaf N, of public acts only. Its leaf names its
  digest.
* ``profiles``: what people chose to show, and whom to forget. Nobody signs it: it is as good as
  whoever serves it.
* ``site``: the join link and the organiser's words; the link must lead to this very run.

Invariant: a copy never shows again what it was told to forget, whoever offers it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from ledger.crowd_records import ActId
from ledger.donors import clean_name
from ledger.leaf import Count, KeyId, Positive
from ledger.schema import (
    ActRow,
    Base,
    DeviceEnergy,
    ErasedProfile,
    Profile,
    RunPage,
    TeamProfile,
)
from ledger.tiles import number_path
from protocol.errors import BadRecord, UsageError
from protocol.identity import PeerId
from protocol.limits import MAX_RECORD_BYTES
from protocol.link import JoinLink
from protocol.manifest import explain_validation

PROFILES = "profiles"
SITE = "site"
MAX_ACT_BYTES = MAX_RECORD_BYTES + 4096
MAX_PROFILES_BYTES = 64 << 20
MAX_SITE_BYTES = 1 << 20
_MAX_ROWS = 1_000_000
_ROWS_PER_INSERT = 1000
_URL = re.compile(r"https?://[^\s/?#@]+([/?#]\S*)?", re.IGNORECASE)

T = TypeVar("T", bound=BaseModel)


def _link(url: str) -> str:
    return url if url.isprintable() and _URL.fullmatch(url) else ""


def _one_line(text: str) -> str:
    words = (clean_name(word) for word in unicodedata.normalize("NFC", text).split())
    return " ".join(word for word in words if word)


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Shown(_Said):
    display_name: Annotated[str, Field(max_length=64), AfterValidator(clean_name)]
    url: Annotated[str, Field(max_length=256), AfterValidator(_link)] = ""
    about: Annotated[str, Field(max_length=512), AfterValidator(_one_line)] = ""
    updated_at_s: Count


class PersonShown(_Shown):
    """What a donor chose to show."""

    donor: KeyId
    show_devices: bool = False


class TeamShown(_Shown):
    """What a team's founder chose to show."""

    team: ActId


class Erased(_Said):
    """Whoever has a profile of this subject that is not newer forgets it."""

    subject: Annotated[str, Field(pattern=r"^[0-9A-Za-z]{1,64}$")]
    erased_at_s: Count


class EnergyTold(_Said):
    """What a device's own meter says; nobody verifies it."""

    worker: KeyId
    donor: KeyId
    milliwatt_hours: Positive
    tokens: Positive
    told_at_s: Count


class Profiles(_Said):
    """All profiles, what devices tell of themselves, and all that were erased."""

    format: Literal["barnraise-profiles/1"] = "barnraise-profiles/1"
    profiles: Annotated[tuple[PersonShown, ...], Field(max_length=_MAX_ROWS)] = ()
    teams: Annotated[tuple[TeamShown, ...], Field(max_length=_MAX_ROWS)] = ()
    erased: Annotated[tuple[Erased, ...], Field(max_length=_MAX_ROWS)] = ()
    energy: Annotated[tuple[EnergyTold, ...], Field(max_length=_MAX_ROWS)] = ()

    @model_validator(mode="after")
    def _check_once(self) -> Self:
        distinct = (
            len({row.donor for row in self.profiles})
            + len({row.team for row in self.teams})
            + len({row.subject for row in self.erased})
            + len({row.worker for row in self.energy})
        )
        if distinct < sum(map(len, (self.profiles, self.teams, self.erased, self.energy))):
            raise ValueError("somebody is listed twice")
        return self

    @classmethod
    def parse(cls, data: bytes) -> Profiles:
        """Read from untrusted bytes.

        Raises:
            BadRecord: oversized or malformed.
        """
        return _parse(cls, PROFILES, data, MAX_PROFILES_BYTES)

    def dump(self) -> bytes:
        """Canonical JSON; each list by its key. Without energy there is no list of it."""
        people = sorted(self.profiles, key=lambda row: row.donor)
        teams = sorted(self.teams, key=lambda row: row.team)
        erased = sorted(self.erased, key=lambda row: row.subject)
        energy = sorted(self.energy, key=lambda row: row.worker)
        return _canonical(
            {
                "format": self.format,
                "profiles": [row.model_dump() for row in people],
                "teams": [row.model_dump() for row in teams],
                "erased": [row.model_dump() for row in erased],
                **({"energy": [row.model_dump() for row in energy]} if energy else {}),
            }
        )

    def after(self, held: Profiles) -> Profiles:
        """These, less what the held ones say to forget; what was forgotten stays so.

        Raises:
            BadRecord: together they forget more than a file may list.
        """
        erased: dict[str, int] = {}
        for row in (*held.erased, *self.erased):
            erased[row.subject] = max(row.erased_at_s, erased.get(row.subject, 0))
        if len(erased) > _MAX_ROWS:
            raise BadRecord(f"{PROFILES}: more than {_MAX_ROWS} subjects to forget")

        def stands(subject: str, shown: _Shown) -> bool:
            return bool(shown.display_name) and shown.updated_at_s > erased.get(subject, -1)

        return Profiles(
            profiles=tuple(row for row in self.profiles if stands(row.donor, row)),
            teams=tuple(row for row in self.teams if stands(row.team, row)),
            erased=tuple(Erased(subject=who, erased_at_s=at_s) for who, at_s in erased.items()),
            energy=tuple(row for row in self.energy if row.told_at_s > erased.get(row.donor, -1)),
        )


class Site(_Said):
    """What the campaign page shows besides the log."""

    format: Literal["barnraise-site/1"] = "barnraise-site/1"
    join_link: Annotated[str, Field(max_length=2048)]
    notes: Annotated[str, Field(max_length=64 << 10)] = ""
    updated_at_s: Count

    @classmethod
    def parse(cls, data: bytes) -> Site:
        """Read from untrusted bytes.

        Raises:
            BadRecord: oversized or malformed.
        """
        return _parse(cls, SITE, data, MAX_SITE_BYTES)

    def dump(self) -> bytes:
        """Canonical JSON."""
        return _canonical(self.model_dump())

    def leading_to(self, run_id: str, root: PeerId) -> Site:
        """The same, its link in the one spelling that says no more than where this run is.

        People paste it into a shell.

        Raises:
            BadRecord: the link leads to another run, or is none.
        """
        if not self.join_link:
            return self
        try:
            link = JoinLink.parse(self.join_link)
        except UsageError as error:
            raise BadRecord(f"{SITE}: {error}") from error
        if (link.run_id.hex(), link.root) != (run_id, root):
            raise BadRecord(f"{SITE}: its join link leads to another run, or to another root key")
        return self.model_copy(update={"join_link": str(link)})


def act_path(index: int) -> str:
    """Path of the envelope behind a leaf."""
    return f"acts/{number_path(index)}"


def public_acts(session: Session, size: int) -> Iterable[tuple[int, bytes]]:
    """``(leaf index, envelope)`` of the public acts under a head of ``size`` leaves."""
    rows = session.execute(
        select(ActRow.leaf_index, ActRow.envelope)
        .where(ActRow.public.is_(True), ActRow.leaf_index < size)
        .order_by(ActRow.leaf_index)
    )
    return ((index, envelope) for index, envelope in rows)


def load_profiles(session: Session) -> Profiles:
    """What the database shows of people and teams; what does not fit the format is left out."""
    return Profiles(
        profiles=tuple(
            PersonShown(
                donor=row.donor,
                display_name=row.display_name,
                url=row.url,
                about=row.about,
                show_devices=row.show_devices,
                updated_at_s=row.updated_at_s,
            )
            for row in session.execute(select(Profile.__table__))
        ),
        teams=tuple(
            TeamShown(
                team=row.team,
                display_name=row.display_name,
                url=row.url,
                about=row.about,
                updated_at_s=row.updated_at_s,
            )
            for row in session.execute(select(TeamProfile.__table__))
        ),
        erased=tuple(
            Erased(subject=row.subject, erased_at_s=row.erased_at_s)
            for row in session.execute(select(ErasedProfile.__table__))
        ),
        energy=tuple(
            EnergyTold.model_validate(dict(row))
            for row in session.execute(select(DeviceEnergy.__table__)).mappings()
        ),
    )


def load_site(session: Session) -> Site | None:
    """The run's page, or None where there is none."""
    row = session.scalar(select(RunPage).limit(1))  # a database is of one run
    if row is None:
        return None
    return Site(join_link=row.join_link, notes=row.notes, updated_at_s=row.updated_at_s)


def store_profiles(session: Session, shown: Profiles) -> None:
    """Let the database show these, and no others."""
    for table, rows in (
        (Profile, shown.profiles),
        (TeamProfile, shown.teams),
        (ErasedProfile, shown.erased),
        (DeviceEnergy, shown.energy),
    ):
        session.execute(delete(table))
        _insert(session, table, rows)


def store_site(session: Session, run_id: str, site: Site | None) -> None:
    """Let the database show this page of the run."""
    session.execute(delete(RunPage))
    if site is not None:
        session.add(RunPage(run_id=run_id, **site.model_dump(exclude={"format"})))
    session.flush()


def _insert(session: Session, table: type[Base], rows: Iterable[BaseModel]) -> None:
    values = [row.model_dump() for row in rows]
    for first in range(0, len(values), _ROWS_PER_INSERT):
        session.execute(insert(table), values[first : first + _ROWS_PER_INSERT])


def _parse(kind: type[T], what: str, data: bytes, most_bytes: int) -> T:
    if len(data) > most_bytes:
        raise BadRecord(f"{what} of {len(data)} bytes is over {most_bytes}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise BadRecord(explain_validation(what, error)) from error


def _canonical(said: dict[str, object]) -> bytes:
    """RFC 8785: names are ASCII, numbers whole."""
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()
