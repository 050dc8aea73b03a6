"""Makes snapshots: follows the fold leaf by leaf, and keeps every board's order up to date.

Invariant: what is frozen is what would be frozen after starting over from the first leaf, to the
unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ledger.fold import Board
from ledger.leaderboard.names import Index, Names
from ledger.leaderboard.order import Entry, Order, Ranking
from ledger.leaderboard.person import Person, person_of
from ledger.leaderboard.recent import Recent
from ledger.leaderboard.snapshot import (
    BOARDS,
    SORTS,
    AnonymousGivers,
    BoardName,
    Snapshot,
    Sort,
    entry_of,
    is_on,
)
from ledger.records import CreditLeaf, EnrolLeaf, ReversalLeaf
from ledger.standing import anonymous, standing, standings, take_touched
from protocol.identity import PeerId
from protocol.notes import Checkpoint

_REBUILD_SHARE = 4
"""When more than one in so many changed, orders are sorted anew."""


_Place = tuple[BoardName, Sort]


class Standings:
    """Follows a fold; one thread does."""

    def __init__(self, board: Board, pace: Callable[[], None] = lambda: None) -> None:
        """Follow ``board``; ``pace`` is called between pieces of work, and may take a rest."""
        self.board = board
        self._pace = pace
        self._recent = Recent(0)
        self._people: dict[PeerId, Person] = {}
        self._given_up: dict[PeerId, PeerId] = {}
        self._names = Names()
        self._rankings = {(board, sort): Ranking() for board in BOARDS for sort in SORTS}
        self._orders: dict[_Place, Order] = {}
        self._index = Index()
        self._touched: set[PeerId] = set()

    def apply(self, data: bytes) -> None:
        """Take the next leaf.

        Raises:
            BadRecord: it is malformed or contradicts the leaves before it.
        """
        leaf = self.board.apply(data)
        self._pace()
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
        if changed or not self._orders:
            self._orders = {name: ranking.freeze() for name, ranking in self._rankings.items()}
        self._names = names
        for key in changed:  # does nothing where it is found so already
            if key in self._people:
                self._index.put(key, names.donor(key))
            elif key in self._given_up:
                self._index.put(key, None)  # it leads to its person, who may be called otherwise
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
            self._pace()
        return people

    def _changed_names(self, names: Names) -> set[PeerId]:
        if names.donors is self._names.donors:
            return set()
        old, new = self._names.donors, names.donors
        return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}

    def _sort_anew(self, people: Mapping[PeerId, Person | None], names: Names) -> None:
        for key, person in people.items():
            self._put(key, person)
        entries: dict[_Place, list[Entry]] = {place: [] for place in self._rankings}
        for key, person in self._people.items():
            for place, entry in _entries(person, names.donor(key)).items():
                entries[place].append(entry)
        self._rankings = {place: Ranking(found) for place, found in entries.items()}

    def _move(
        self, people: Mapping[PeerId, Person | None], changed: set[PeerId], names: Names
    ) -> None:
        for key in changed:
            old = self._people.get(key)
            new = people.get(key, old)
            before, after = _entries(old, self._names.donor(key)), _entries(new, names.donor(key))
            for place, ranking in self._rankings.items():
                ranking.replace(before.get(place), after.get(place))
            self._put(key, new)
            self._pace()

    def _put(self, key: PeerId, person: Person | None) -> None:
        if person is None:
            self._people.pop(key, None)
        else:
            self._people[key] = person


def _entries(person: Person | None, name: str | None) -> dict[_Place, Entry]:
    """Where every order has somebody; boards share what does not differ between them."""
    if person is None:
        return {}
    shared: dict[Sort, Entry] = {
        sort: entry_of("all", sort, person, name) for sort in SORTS if sort != "credit"
    }
    return {
        (board, sort): shared.get(sort) or entry_of(board, sort, person, name)
        for board in BOARDS
        if is_on(board, person)
        for sort in SORTS
    }
