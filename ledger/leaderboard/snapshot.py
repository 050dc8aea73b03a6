"""Everybody's numbers and every board's order at one head: what requests read.

Invariants:

* A snapshot never changes, and is of one head and one set of names.
* :class:`Standings` follows the fold leaf by leaf; what it freezes is what it would freeze after
  starting over from the first leaf, to the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ledger.fold import Board
from ledger.leaderboard.names import Block, Index, Names
from ledger.leaderboard.order import Entry, Order, Ranking
from ledger.leaderboard.person import Person, person_of
from ledger.leaderboard.recent import PerDay, Recent
from ledger.records import CreditLeaf, EnrolLeaf, ReversalLeaf
from ledger.standing import anonymous, standing, standings, take_touched
from ledger.tally import Amounts
from protocol.identity import PeerId
from protocol.notes import Checkpoint

BoardName = Literal["all", "month", "day", "average"]
Sort = Literal["credit", "tokens", "contributions", "sponsored", "since", "last", "name"]

_REBUILD_SHARE = 4
"""When more than one in so many changed, orders are sorted anew."""


def _ranked(amount: Callable[[Person], int]) -> Callable[[Person, str | None], Entry]:
    return lambda person, _name: (-amount(person), person.donor)


ENTRIES: Mapping[str, Callable[[Person, str | None], Entry]] = {
    "all": _ranked(lambda person: person.total_microcredits),
    "month": _ranked(lambda person: person.month_microcredits),
    "day": _ranked(lambda person: person.day_microcredits),
    "average": _ranked(lambda person: person.weighted),
    "tokens": _ranked(lambda person: person.tokens),
    "contributions": _ranked(lambda person: person.contributions),
    "sponsored": _ranked(lambda person: person.sponsored_microcredits),
    "last": _ranked(lambda person: person.last_credit_s or 0),
    "since": lambda person, _name: (person.enrolled_s, person.donor),
    "name": lambda person, name: (name is None, (name or "").casefold(), person.donor),
}
"""What each order is by; ties are broken by key. Those without a name come last."""

_MEMBERS: Mapping[str, Callable[[Person], bool]] = {
    "all": lambda _person: True,
    "month": lambda person: person.month_microcredits > 0,
    "day": lambda person: person.day_microcredits > 0,
    "average": lambda person: person.weighted > 0,
}
"""Who is on a board."""


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
    orders: Mapping[str, Order]
    per_day: PerDay
    blocks: tuple[Block, ...]
    anonymous: AnonymousGivers
    derived: dict[str, tuple[PeerId, ...]] = field(default_factory=dict)  # made when asked for

    @property
    def size(self) -> int:
        """Leaves under the head."""
        return self.head.size

    def owner(self, key: PeerId) -> PeerId | None:
        """Under which key the person of this one is shown; None: the record knows no such key."""
        owner = self.given_up.get(key, key)
        return owner if owner in self.people else None

    def is_on(self, board: BoardName, person: Person) -> bool:
        """Whether a board shows somebody."""
        return _MEMBERS[board](person)

    def rank(self, board: BoardName, person: Person) -> int:
        """Place on a board, from 1; who is equal has an equal one."""
        amount, _key = ENTRIES[board](person, None)
        return self.orders[board].before((amount,)) + 1

    def keys(self, board: BoardName, sort: Sort) -> Order | tuple[PeerId, ...]:
        """Everybody on a board, in an order."""
        if sort == "credit":
            return self.orders[board]
        if board == "all":
            return self.orders[sort]
        name = f"{board} {sort}"
        if name not in self.derived:
            everyone = self.orders[sort].page(0, len(self.people))
            self.derived[name] = tuple(
                key for key in everyone if self.is_on(board, self.people[key])
            )
        return self.derived[name]

    def entry(self, board: BoardName, sort: Sort, person: Person) -> Entry:
        """What an order places somebody by."""
        entry = ENTRIES[board if sort == "credit" else sort]
        return entry(person, self.names.donor(person.donor))

    def sorted(self, keys: Iterable[PeerId], board: BoardName, sort: Sort) -> list[PeerId]:
        """Some people, in an order."""
        return [
            placed[-1]
            for placed in sorted(self.entry(board, sort, self.people[key]) for key in keys)
        ]


class Standings:
    """Follows a fold; one thread does."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._recent = Recent(0)
        self._people: dict[PeerId, Person] = {}
        self._given_up: dict[PeerId, PeerId] = {}
        self._names = Names()
        self._rankings = {name: Ranking() for name in ENTRIES}
        self._orders = {name: ranking.freeze() for name, ranking in self._rankings.items()}
        self._index = Index()
        self._touched: set[PeerId] = set()

    def apply(self, data: bytes) -> None:
        """Take the next leaf.

        Raises:
            BadRecord: it is malformed or contradicts the leaves before it.
        """
        leaf = self.board.apply(data)
        if self.board.size == 1:
            self._recent = Recent(self.board.opened_s)
        self._touched |= self._recent.move_to(self.board.newest_s)
        if isinstance(leaf, CreditLeaf):
            self._recent.add(leaf.donor, leaf.at_s, leaf.microcredits)
        elif isinstance(leaf, ReversalLeaf):
            sign = 1 if leaf.restored else -1
            for index in leaf.credits:
                paid = self.board.accounts.credits[index].leaf
                self._recent.add(paid.donor, paid.at_s, sign * paid.microcredits)
        elif isinstance(leaf, EnrolLeaf):
            self._touched.add(leaf.donor)

    def freeze(self, serial: int, note: str, head: Checkpoint, names: Names) -> Snapshot:
        """Everybody as of now, called by these names."""
        people, self._touched = self._changed_people(), set()
        changed = self._changed_names(names) | people.keys()
        if len(changed) * _REBUILD_SHARE > len(self._people):
            self._sort_anew(people, names)
        else:
            self._move(people, changed, names)
        self._names = names
        for key in changed & self._people.keys():
            self._index.put(key, names.donor(key))
        return Snapshot(
            serial,
            note,
            head,
            self.board.newest_s,
            dict(self._people),
            dict(self._given_up),
            names,
            dict(self._orders),
            self._recent.per_day(),
            self._index.freeze(),
            self._anonymous(),
        )

    def _anonymous(self) -> AnonymousGivers:
        donations = self.board.crowd.pools.donations.values()
        unnamed = sum(not given.voided and given.leaf.donor is None for given in donations)
        return AnonymousGivers(unnamed, anonymous(self.board))

    def _changed_people(self) -> dict[PeerId, Person | None]:
        """Who is to be shown anew; None: no longer shown, for another key is."""
        board, recent = self.board, self._recent
        touched = take_touched(board) | {board.people.owner_of(key) for key in self._touched}
        given_up = {key for key in touched if board.people.is_given_up(key)}
        if given_up:
            joins = board.people.joins
            self._given_up = {join.old: board.people.owner_of(join.old) for join in joins}
        people: dict[PeerId, Person | None] = dict.fromkeys(given_up)
        if len(touched) * _REBUILD_SHARE > len(self._people):
            return people | {one.owner: person_of(one, recent) for one in standings(board)}
        for key in touched - given_up:
            people[key] = person_of(standing(board, key), recent)
        return people

    def _changed_names(self, names: Names) -> set[PeerId]:
        if names.donors is self._names.donors:
            return set()
        old, new = self._names.donors, names.donors
        return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}

    def _sort_anew(self, people: Mapping[PeerId, Person | None], names: Names) -> None:
        for key, person in people.items():
            self._put(key, person)
        for name, entry in ENTRIES.items():
            self._rankings[name] = Ranking(
                entry(person, names.donor(key))
                for key, person in self._people.items()
                if _MEMBERS.get(name, _MEMBERS["all"])(person)
            )
            self._orders[name] = self._rankings[name].freeze()

    def _move(
        self, people: Mapping[PeerId, Person | None], changed: set[PeerId], names: Names
    ) -> None:
        for key in changed:
            old = self._people.get(key)
            new = people.get(key, old)
            for name, entry in ENTRIES.items():
                shows = _MEMBERS.get(name, _MEMBERS["all"])
                self._rankings[name].replace(
                    entry(old, self._names.donor(key)) if old and shows(old) else None,
                    entry(new, names.donor(key)) if new and shows(new) else None,
                )
            self._put(key, new)
        if changed:
            self._orders = {name: ranking.freeze() for name, ranking in self._rankings.items()}

    def _put(self, key: PeerId, person: Person | None) -> None:
        if person is None:
            self._people.pop(key, None)
        else:
            self._people[key] = person
