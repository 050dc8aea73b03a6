"""Which faults a soak lets happen, to whom, at which place: a pure function of the seed.

Invariants:

* Nothing here knows a clock. A fault is due from a round on, and fires when its process reaches
  its place for the first time from then on: a named place in the program, or a part of a unit.
* What happens to one process depends on the seed and its name only: more rounds or more workers
  change nothing of the others' plans.
* A worker's deaths are memoryless: in every round it dies with the same chance, so its mean life
  is :data:`MEAN_LIFE_ROUNDS`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

MEAN_LIFE_ROUNDS = 5.0
FIRST_ROUND = 2
"""Nothing happens earlier: the runs that are compared begin alike."""

COORDINATOR = "coordinator"


class Do(StrEnum):
    """What happens to the process that reaches the place."""

    KILL = "kill"  # kill -9
    STAND = "stand"  # the daemon stands still; its trainer and its p2pd go on
    SLEEP = "sleep"  # all its processes stand still, as when a lid is closed
    KILL_TRAINER = "kill trainer"
    KILL_P2PD = "kill p2pd"
    CUT_OFF = "cut off"  # its p2pd stands still: nobody reaches it, and it still hears the run
    SLOW = "slow"  # its trainer gets a fifth of the time, to the end of the round
    KILL_ANCHOR = "kill anchor"


class Place(StrEnum):
    """Where a process is."""

    # of a worker
    TRAIN = "train"  # when so large a part of its unit is done
    COMMIT = "commit"  # its contribution is written down and about to be sent
    WAIT = "wait"  # its contribution was taken; the roster is to come
    GATHER = "gather"  # about to open its streams
    BROADCAST = "broadcast"  # the inclusion set is known
    REPORT = "report"  # the outer step is made
    # of the coordinator
    LEASE = "lease"  # in the transaction that hands out work
    TAKE = "take"  # in the transaction that takes a contribution
    ROSTER = "roster"  # in the transaction that signs the roster
    INCLUDE = "include"  # in the transaction that signs the inclusion set
    SETTLE = "settle"  # all results are held; the new state is to be computed
    SETTLED = "settled"  # in the transaction that stores the new state


@dataclass(frozen=True)
class Planned:
    """One fault."""

    name: str
    who: str
    round: int  # due from this round on
    place: Place
    do: Do
    part: float = 0.0  # of the unit, where the place is TRAIN
    rounds: int = 0  # that end before it goes on or comes back; 0: at once

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Fired:
    """A fault that has happened."""

    fault: Planned
    round: int  # in which it did
    over: bool = False


_DEATHS: Sequence[tuple[Place, float]] = (
    # Nearly as long as a worker is there: training takes most of a round.
    (Place.TRAIN, 0.74),
    (Place.COMMIT, 0.05),
    (Place.WAIT, 0.09),
    (Place.GATHER, 0.04),
    (Place.BROADCAST, 0.04),
    (Place.REPORT, 0.04),
)
_RETURNS_AT_ONCE = 0.8
_TROUBLES: Sequence[tuple[Do, Place, float]] = (
    (Do.STAND, Place.COMMIT, 0.15),
    (Do.SLEEP, Place.TRAIN, 0.15),
    (Do.KILL_TRAINER, Place.TRAIN, 0.15),
    (Do.KILL_P2PD, Place.TRAIN, 0.10),
    (Do.KILL_P2PD, Place.GATHER, 0.10),
    (Do.CUT_OFF, Place.GATHER, 0.15),
    (Do.SLOW, Place.TRAIN, 0.20),
)
_TROUBLE_EVERY_ROUNDS = 40.0  # of one worker: with 12 there is one in three to four rounds
_COORDINATOR_EVERY_ROUNDS = 8.0
_ANCHOR_EVERY_ROUNDS = 12.0
_COORDINATOR_PLACES = (
    Place.LEASE,
    Place.TAKE,
    Place.ROSTER,
    Place.INCLUDE,
    Place.SETTLE,
    Place.SETTLED,
)


def make_plan(seed: int, workers: Sequence[str], rounds: int) -> tuple[Planned, ...]:
    """All faults of a soak.

    Args:
        seed: decides everything.
        workers: their names.
        rounds: how far the plan reaches.

    Returns:
        The faults by round, then by name.
    """
    faults = [fault for name in workers for fault in _of_worker(seed, name, rounds)]
    faults += _of_coordinator(seed, rounds)
    return tuple(sorted(faults, key=lambda fault: (fault.round, fault.name)))


def of(plan: Sequence[Planned], who: str) -> tuple[Planned, ...]:
    """Those of one process."""
    return tuple(fault for fault in plan if fault.who == who)


def _of_worker(seed: int, name: str, rounds: int) -> Iterator[Planned]:
    draw = random.Random(f"deaths/{seed}/{name}")
    for round_ in _rounds(draw, MEAN_LIFE_ROUNDS, rounds):
        place = draw.choices([p for p, _ in _DEATHS], [weight for _, weight in _DEATHS])[0]
        part, back = draw.random(), int(draw.random() >= _RETURNS_AT_ONCE)
        yield Planned(f"{name}/death/{round_}", name, round_, place, Do.KILL, part, back)
    draw = random.Random(f"troubles/{seed}/{name}")
    for round_ in _rounds(draw, _TROUBLE_EVERY_ROUNDS, rounds):
        do, place, _ = draw.choices(_TROUBLES, [weight for *_, weight in _TROUBLES])[0]
        part, length = draw.random(), draw.randint(1, 2)
        yield Planned(f"{name}/{do}/{round_}", name, round_, place, do, part, length)


def _of_coordinator(seed: int, rounds: int) -> Iterator[Planned]:
    draw = random.Random(f"coordinator/{seed}")
    for round_ in _rounds(draw, _COORDINATOR_EVERY_ROUNDS, rounds):
        place = draw.choice(_COORDINATOR_PLACES)
        yield Planned(f"coordinator/{round_}", COORDINATOR, round_, place, Do.KILL)
    draw = random.Random(f"anchor/{seed}")
    for round_ in _rounds(draw, _ANCHOR_EVERY_ROUNDS, rounds):
        place = draw.choice((Place.ROSTER, Place.INCLUDE, Place.LEASE))
        yield Planned(f"anchor/{round_}", COORDINATOR, round_, place, Do.KILL_ANCHOR)


def _rounds(draw: random.Random, mean: float, rounds: int) -> Iterator[int]:
    """Rounds in which something with this mean distance happens, each with the same chance."""
    for round_ in range(FIRST_ROUND, rounds):
        if draw.random() < 1 / mean:
            yield round_
