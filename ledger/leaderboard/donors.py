"""The boards of donors: all time, 30 days, 24 hours, recent average; sorted, searched, paged."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import islice
from typing import Any

from pydantic import Field

from ledger.leaderboard.held import Held, Paged, held
from ledger.leaderboard.person import Person
from ledger.leaderboard.snapshot import BoardName, Snapshot, Sort, is_on
from protocol.identity import PeerId

_MOST_NAMESAKES = 500


class DonorRow(Held):
    """One person on a board: all of its keys together, and credit that its money bought."""

    rank: int = Field(description="on this board; who is equal has an equal one")
    donor: str = Field(description="key that the person is shown under")
    name: str | None
    keys: int = Field(description="of the person")
    sponsored_microcredits: int = Field(description="of the total: bought with donations")
    training_microcredits: int = Field(description="credited, whatever became of it")
    reducing_microcredits: int
    probation_microcredits: int
    day_microcredits: int = Field(description="by its devices in the newest 24 hours")
    month_microcredits: int = Field(description="by its devices in the newest 720 hours")
    average_microcredits_per_day: int = Field(description="recent average, half-life 7 days")
    tokens: int
    contributions: int
    devices: int
    enrolled_s: int
    last_credit_s: int | None
    is_pool: bool = Field(description="money pays its devices; its credit is who gave it")
    team: str | None
    team_name: str | None


class Anonymous(Held):
    """Everybody whose money bought credit and who is not named, in one row."""

    donations: int


class Donors(Paged):
    """One page of a board."""

    board: BoardName
    sort: Sort
    donors: list[DonorRow]
    anonymous: Anonymous | None = Field(description="below the board; null: nobody is")


def donors(
    snapshot: Snapshot, *, board: BoardName, sort: Sort, search: str, page: int, per_page: int
) -> Donors:
    """One page of a board. Ties are broken by key: the same on every page."""
    first = (page - 1) * per_page
    if search:
        found = matches(snapshot, board, search)
        in_order = snapshot.among(found, board, sort)
        total, keys = len(found), list(islice(in_order, first, first + per_page))
    else:
        order = snapshot.order(board, sort)
        total, keys = len(order), order.page(first, per_page)
    return Donors(
        size=snapshot.size,
        total=total,
        page=page,
        per_page=per_page,
        board=board,
        sort=sort,
        donors=donor_rows(snapshot, keys, board),
        anonymous=anonymous_row(snapshot),
    )


def anonymous_row(snapshot: Snapshot) -> Anonymous | None:
    """Givers without a name, if there are any."""
    found = snapshot.anonymous
    if not found.donations and not any(found.sponsored.by_status()):
        return None
    return Anonymous(donations=found.donations, **held(found.sponsored))


def matches(snapshot: Snapshot, board: BoardName, search: str) -> Set[PeerId]:
    """Who is on a board and has this in its name or in one of its keys."""
    keys: Set[PeerId] = snapshot.lines.find(search)
    if snapshot.given_up:
        keys = {snapshot.given_up.get(key, key) for key in keys}
    if board == "all":
        return keys
    people = snapshot.people
    return {key for key in keys if is_on(board, people[key])}


def place_of(
    snapshot: Snapshot, board: BoardName, sort: Sort, who: str
) -> tuple[PeerId, int] | None:
    """Whom a key, a name, or else a part of either means, and the place on the board, from 0."""
    owner = snapshot.owner(who)
    meant = {owner} if owner else _namesakes(snapshot, who)
    found = next(snapshot.among(meant or matches(snapshot, board, who), board, sort), None)
    if found is None:
        return None
    return found, snapshot.place(board, sort, snapshot.people[found])


def _namesakes(snapshot: Snapshot, name: str) -> set[PeerId]:
    """Who is called exactly so, whatever the case of its letters."""
    order, folded = snapshot.order("all", "name"), name.casefold()
    keys = order.page(order.before((False, folded)), _MOST_NAMESAKES)
    return {key for key in keys if (snapshot.names.donor(key) or "").casefold() == folded}


def donor_rows(
    snapshot: Snapshot, keys: Sequence[PeerId], board: BoardName = "all"
) -> list[DonorRow]:
    """Board rows of these people, in this order."""
    return [donor_row(snapshot, snapshot.people[key], board) for key in keys]


def donor_row(snapshot: Snapshot, person: Person, board: BoardName = "all") -> DonorRow:
    """One person's row."""
    values: dict[str, Any] = {name: getattr(person, name) for name in _COPIED}
    values["rank"] = snapshot.rank(board, person)
    values["name"] = snapshot.names.donor(person.donor)
    values["average_microcredits_per_day"] = snapshot.per_day(person.weighted)
    values["team_name"] = None if person.team is None else snapshot.names.team(person.team)
    return DonorRow.model_construct(**values)  # ours, so without a check: boards are long


_COPIED = (
    *Held.model_fields,
    *("donor", "keys", "sponsored_microcredits", "training_microcredits", "reducing_microcredits"),
    *("probation_microcredits", "day_microcredits", "month_microcredits", "tokens"),
    *("contributions", "devices", "enrolled_s", "last_credit_s", "is_pool", "team"),
)
