"""What every person has: own credit, sponsored credit, less what a pool gave away.

Invariant: the standings of all persons and the anonymous donors' sponsored credit sum up to the
run's total, to the unit, for each status (:meth:`ledger.fold.Board.check_sums`). Forfeited and
unpaid credit of a pool is divided as its other credit is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from ledger.fold import Board
from ledger.tally import Amounts, Tally
from protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class Standing:
    """What a person has, by the key that it is shown under.

    ``total``, ``pending``, ``final``, ``forfeited`` and ``unpaid`` are what boards show: own and
    sponsored, less given away. Tokens and the like are of own devices only.
    """

    owner: PeerId
    keys: tuple[PeerId, ...]  # that one first
    own: Tally  # of all keys; a copy
    sponsored: Amounts  # that its donations of money bought
    given_away: Amounts  # a pool's, to who gave it money
    net: Amounts
    workers: tuple[PeerId, ...]  # devices, of all keys
    enrolled_s: int | None  # None: a new key without a device of its own
    last_credit_s: int | None
    team: str | None
    is_pool: bool

    @property
    def pending_microcredits(self) -> int:
        return self.net.pending_microcredits

    @property
    def final_microcredits(self) -> int:
        return self.net.final_microcredits

    @property
    def forfeited_microcredits(self) -> int:
        return self.net.forfeited_microcredits

    @property
    def unpaid_microcredits(self) -> int:
        return self.net.unpaid_microcredits

    @property
    def total_microcredits(self) -> int:
        return self.net.total_microcredits


def standing(board: Board, owner: PeerId) -> Standing:
    """What the person shown as ``owner`` has. The key must be nobody's that was given up."""
    board.crowd.pools.refresh()
    return _standing(board, owner)


def standings(board: Board) -> Iterator[Standing]:
    """Everybody's, in the order in which their keys came."""
    board.crowd.pools.refresh()
    for owner in board.people.owners():
        yield _standing(board, owner)


def anonymous(board: Board) -> Amounts:
    """Credit that money of donors bought whom the record does not name."""
    board.crowd.pools.refresh()
    return board.crowd.pools.anonymous


def take_touched(board: Board) -> set[PeerId]:
    """Keys whose standing may have changed since the last call, for one caller to keep up with.

    Returns:
        Keys that persons are shown under; and keys that were given up, which show no longer
        (``board.people.is_given_up``).
    """
    board.crowd.pools.refresh()
    touched, board.accounts.touched = board.accounts.touched, set()
    owner_of = board.people.owner_of
    return touched | {owner_of(key) for key in touched}


def _standing(board: Board, owner: PeerId) -> Standing:
    keys = board.people.keys_of(owner)
    donors = [board.donors[key] for key in keys if key in board.donors]
    own = _sum([donor.tally for donor in donors])
    sponsored = board.crowd.pools.sponsored(owner)
    given_away = board.crowd.pools.given_away(owner)
    last = [donor.last_credit_s for donor in donors if donor.last_credit_s is not None]
    team = board.crowd.teams.team_of(owner)
    return Standing(
        owner=owner,
        keys=keys,
        own=own,
        sponsored=sponsored,
        given_away=given_away,
        net=Amounts.of(own) + sponsored - given_away,
        workers=tuple(dict.fromkeys(worker for donor in donors for worker in donor.workers)),
        enrolled_s=min((donor.enrolled_s for donor in donors), default=None),
        last_credit_s=max(last, default=None),
        team=team.team if team else None,
        is_pool=owner in board.crowd.pools.pools,
    )


_TALLY = tuple(field.name for field in fields(Tally))


def _sum(tallies: list[Tally]) -> Tally:
    return Tally(*(sum(getattr(tally, name) for tally in tallies) for name in _TALLY))
