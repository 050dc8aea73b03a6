"""Everybody's numbers and every board's order at one head: what requests read.

Invariant: a snapshot never changes, and is of one head and one set of names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Literal, get_args

from ledger.leaderboard.names import Lines, Names
from ledger.leaderboard.order import Entry, Order
from ledger.leaderboard.person import Person
from ledger.leaderboard.recent import PerDay
from ledger.tally import Amounts
from protocol.identity import PeerId
from protocol.notes import Checkpoint

BoardName = Literal["all", "month", "day", "average"]
Sort = Literal["credit", "tokens", "contributions", "sponsored", "since", "last", "name"]
BOARDS: tuple[BoardName, ...] = get_args(BoardName)
SORTS: tuple[Sort, ...] = get_args(Sort)

_SORTED_DIRECTLY = 500
"""People up to whom sorting them beats a walk over everybody."""

AMOUNTS: Mapping[BoardName, Callable[[Person], int]] = {
    "all": lambda person: person.total_microcredits,
    "month": lambda person: person.month_microcredits,
    "day": lambda person: person.day_microcredits,
    "average": lambda person: person.weighted,
}
"""What a board ranks by. Who has none of it is on the board of all time alone."""

_BY: Mapping[Sort, Callable[[Person], int]] = {
    "tokens": lambda person: -person.tokens,
    "contributions": lambda person: -person.contributions,
    "sponsored": lambda person: -person.sponsored_microcredits,
    "since": lambda person: person.enrolled_s,
    "last": lambda person: -(person.last_credit_s or 0),
}


def is_on(board: BoardName, person: Person) -> bool:
    """Whether a board shows somebody."""
    return board == "all" or AMOUNTS[board](person) > 0


def entry_of(board: BoardName, sort: Sort, person: Person, name: str | None) -> Entry:
    """What an order places somebody by, ties by key; those without a name come last."""
    if sort == "name":
        return name is None, (name or "").casefold(), person.donor
    if sort == "credit":
        return -AMOUNTS[board](person), person.donor
    return _BY[sort](person), person.donor


@dataclass(frozen=True)
class AnonymousGivers:
    """Everybody whose money bought credit, and whom the record does not name."""

    donations: int
    sponsored: Amounts


@dataclass(frozen=True)
class Snapshot:
    """Everybody at one head."""

    serial: int  # another one for every snapshot of this process
    note: str  # the signed head
    head: Checkpoint
    newest_s: int
    people: Mapping[PeerId, Person]  # by the key that they are shown under
    given_up: Mapping[PeerId, PeerId]  # keys that were joined to another person's
    names: Names
    orders: Mapping[tuple[BoardName, Sort], Order]
    per_day: PerDay
    lines: Lines  # where names and keys are found
    anonymous: AnonymousGivers

    @property
    def size(self) -> int:
        """Leaves under the head."""
        return self.head.size

    def order(self, board: BoardName, sort: Sort = "credit") -> Order:
        """Everybody on a board."""
        return self.orders[board, sort]

    def owner(self, key: PeerId) -> PeerId | None:
        """Under which key the person of this one is shown; None: the record knows no such key."""
        owner = self.given_up.get(key, key)
        return owner if owner in self.people else None

    def rank(self, board: BoardName, person: Person) -> int:
        """Place on a board, from 1; who is equal has an equal one."""
        return self.order(board).before((-AMOUNTS[board](person),)) + 1

    def place(self, board: BoardName, sort: Sort, person: Person) -> int:
        """At which place of an order somebody is, from 0, who is on the board."""
        name = self.names.donor(person.donor)
        return self.order(board, sort).before(entry_of(board, sort, person, name))

    def among(self, keys: Set[PeerId], board: BoardName, sort: Sort) -> Iterator[PeerId]:
        """Those of these people who are on a board, in an order."""
        if len(keys) > _SORTED_DIRECTLY:
            return filter(keys.__contains__, self.order(board, sort).walk())
        people = (self.people[key] for key in keys)
        entries = (
            entry_of(board, sort, person, self.names.donor(person.donor))
            for person in people
            if is_on(board, person)
        )
        return (entry[-1] for entry in sorted(entries))
