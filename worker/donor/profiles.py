"""Profiles and teams, as this machine's journal knows them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from protocol.errors import UsageError
from protocol.limits import MAX_DISPLAY_NAME_CHARS
from protocol.wire import records_pb2 as wire
from worker.donor.journal import ActJournal, ActState, StoredAct

PROFILE = wire.ProfileUpdate.DESCRIPTOR.name
FOUNDING = wire.TeamFounding.DESCRIPTOR.name
MEMBERSHIP = wire.TeamMembership.DESCRIPTOR.name


def check_profile(shown: wire.ProfileUpdate) -> None:
    """Say what is wrong before it is signed; the coordinator has the last word.

    Raises:
        UsageError: no name, one that is too long, or a page that is not on the web.
    """
    if not shown.display_name.strip():
        raise UsageError("a profile has a name: give --name, or erase the profile")
    if len(shown.display_name) > MAX_DISPLAY_NAME_CHARS:
        raise UsageError(f"a name has at most {MAX_DISPLAY_NAME_CHARS} characters")
    if shown.url:
        try:
            parts = urlsplit(shown.url)
        except ValueError as error:
            raise UsageError(f"not a page's address: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("a page's address begins with https:// or http://")


def profile_acts(journal: ActJournal, team: bytes) -> list[StoredAct]:
    """Everything that was told about a donor (``b""``) or about a team."""
    return [
        act
        for act in journal.acts(PROFILE)
        if wire.ProfileUpdate.FromString(act.envelope.payload).team == team
    ]


def newest_profile(journal: ActJournal, team: bytes) -> wire.ProfileUpdate:
    """What the coordinator was told last, or an empty profile."""
    taken = [act for act in profile_acts(journal, team) if act.state == ActState.RECORDED]
    if not taken:
        return wire.ProfileUpdate(team=team)
    newest = wire.ProfileUpdate.FromString(taken[-1].envelope.payload)
    return wire.ProfileUpdate(team=team) if newest.erase else newest


def profile_row(shown: wire.ProfileUpdate) -> dict[str, Any]:
    """For a person or for ``--json``."""
    return {
        "name": shown.display_name,
        "url": shown.url,
        "about": shown.about,
        "show_devices": shown.show_devices,
    }


def team_now(journal: ActJournal) -> str | None:
    """The team that was joined last and not left."""
    taken = [act for act in journal.acts(MEMBERSHIP) if act.state == ActState.RECORDED]
    if not taken:
        return None
    return wire.TeamMembership.FromString(taken[-1].envelope.payload).team.hex() or None


def founded_teams(journal: ActJournal) -> dict[str, str]:
    """Teams that were founded here, with their names."""
    return {
        team.hex(): newest_profile(journal, team).display_name
        for act in journal.acts(FOUNDING)
        if act.state == ActState.RECORDED
        and (team := wire.TeamFounding.FromString(act.envelope.payload).team)
    }


def unnamed_team(journal: ActJournal, name: str) -> bytes | None:
    """A team of that name whose founding was interrupted before its founder was in it."""
    wanted = {"name": name}
    for act in journal.acts(FOUNDING):
        if act.state != ActState.RECORDED or not journal.means(act, wanted):
            continue
        team: bytes = wire.TeamFounding.FromString(act.envelope.payload).team
        joined = [
            wire.TeamMembership.FromString(other.envelope.payload).team
            for other in journal.acts(MEMBERSHIP)
            if other.state == ActState.RECORDED
        ]
        if team not in joined:
            return team
    return None
