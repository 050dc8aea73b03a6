"""One person's numbers: of all its keys together, with what money bought."""

from __future__ import annotations

from dataclasses import dataclass

from ledger.leaderboard.recent import Recent
from ledger.standing import Standing
from protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class Person:
    """A donor as the boards show it. Amounts in microcredits."""

    donor: PeerId  # the key that it is shown under
    keys: int
    pending_microcredits: int  # of its devices and sponsored, without what a pool gave away
    final_microcredits: int
    forfeited_microcredits: int
    unpaid_microcredits: int
    sponsored_microcredits: int  # of these, pending and final
    training_microcredits: int  # credited to its devices, whatever became of it
    reducing_microcredits: int
    probation_microcredits: int
    tokens: int
    contributions: int
    devices: int
    enrolled_s: int
    last_credit_s: int | None
    is_pool: bool
    team: str | None
    day_microcredits: int  # of its devices: what a pool's devices did lately is the pool's
    month_microcredits: int
    weighted: int  # behind the recent average

    @property
    def total_microcredits(self) -> int:
        return self.pending_microcredits + self.final_microcredits


def person_of(standing: Standing, recent: Recent) -> Person:
    """What a person has, and what its devices did lately."""
    keys, own = standing.keys, standing.own
    return Person(
        donor=standing.owner,
        keys=len(keys),
        pending_microcredits=standing.pending_microcredits,
        final_microcredits=standing.final_microcredits,
        forfeited_microcredits=standing.forfeited_microcredits,
        unpaid_microcredits=standing.unpaid_microcredits,
        sponsored_microcredits=standing.sponsored.total_microcredits,
        training_microcredits=own.training_microcredits,
        reducing_microcredits=own.reducing_microcredits,
        probation_microcredits=own.probation_microcredits,
        tokens=own.tokens,
        contributions=own.contributions,
        devices=len(standing.workers),
        enrolled_s=standing.enrolled_s or 0,
        last_credit_s=standing.last_credit_s,
        is_pool=standing.is_pool,
        team=standing.team,
        day_microcredits=sum(recent.day(key) for key in keys),
        month_microcredits=sum(recent.month(key) for key in keys),
        weighted=sum(recent.weighted(key) for key in keys),
    )
