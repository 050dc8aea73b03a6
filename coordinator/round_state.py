"""What a round is made of: its phases, its state, what happens to it, what it asks for.

Invariants: everything here is frozen plain data that survives a restart as JSON. The rules
are in :mod:`coordinator.round`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class Phase(StrEnum):
    OPEN = "OPEN"
    TRAINING = "TRAINING"
    COMMITTING = "COMMITTING"
    GATHER = "GATHER"
    BROADCAST = "BROADCAST"
    SETTLED = "SETTLED"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True)
class Policy:
    """What the manifest says of rounds, with deadlines grown by the vector's bytes."""

    duration_s: float
    grace_s: float
    gather_s: float
    broadcast_s: float
    min_members: int
    max_members: int
    max_attempts: int
    rescue_s: float = 3.0  # for whoever holds the results of a reducer that is gone


@dataclass(frozen=True)
class Round:
    """All that decides how a round goes on; workers and reducers are PeerIDs."""

    number: int
    policy: Policy
    phase: Phase = Phase.OPEN
    deadline_s: float | None = None  # of the phase
    broadcast_deadline_s: float | None = None  # of the attempt
    training: tuple[str, ...] = ()  # leased, not committed
    committed: tuple[str, ...] = ()  # in order of commitment: the roster's order
    attempt: int = 0  # 1, 2, ... once the round has closed
    reducers: tuple[str, ...] = ()  # of the attempt; empty until its roster is signed
    avoid: tuple[str, ...] = ()  # reducers that failed an attempt
    failed: tuple[str, ...] = ()  # reducers by which the last attempt failed
    free_attempts: int = 0  # begun because we were away, on top of the policy's
    complete: tuple[tuple[str, tuple[str, ...]], ...] = ()  # reducer -> members it holds wholly
    inclusion: tuple[str, ...] = ()
    delivered: tuple[str, ...] = ()  # reducers whose results are all held
    rescue_until_s: float | None = None  # holders are asked for a lost reducer's results
    settling: bool = False
    earlier_reducing: bool = False  # the round before has not ended: this one does not close
    paused: bool = False
    reason: str = ""  # why it was skipped

    @property
    def accepts_leases(self) -> bool:
        """Whether a newcomer may still get a lease in this round."""
        room = len(self.training) + len(self.committed) < self.policy.max_members
        return self.phase in (Phase.OPEN, Phase.TRAINING) and room and not self.paused

    @property
    def accepts_commits(self) -> bool:
        return self.phase in (Phase.TRAINING, Phase.COMMITTING)

    @property
    def ended(self) -> bool:
        return self.phase in (Phase.SETTLED, Phase.SKIPPED)

    @property
    def anchors_only(self) -> bool:
        """The last attempt trusts nobody but the organiser's anchors with ranges."""
        return self.policy.max_attempts > 1 and self.is_last_attempt

    @property
    def is_last_attempt(self) -> bool:
        return self.attempt >= self.policy.max_attempts + self.free_attempts

    def complete_everywhere(self) -> tuple[str, ...]:
        """Members that every reducer of the attempt holds wholly, in roster order."""
        held = dict(self.complete)
        if not self.reducers:
            return ()
        everywhere = frozenset(self.committed).intersection(
            *(held.get(reducer, ()) for reducer in self.reducers)
        )
        return tuple(worker for worker in self.committed if worker in everywhere)


# ---- events ----


@dataclass(frozen=True)
class Leased:
    worker: str


@dataclass(frozen=True)
class Committed:
    worker: str


@dataclass(frozen=True)
class Abandoned:
    """The lease was given up, or its worker fell silent."""

    worker: str


@dataclass(frozen=True)
class Tick:
    """Time went by, and these members and reducers are not there any more."""

    absent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RosterSigned:
    """The roster of the attempt is stored; these hold its ranges."""

    reducers: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # committed, but not on it: blocked since


@dataclass(frozen=True)
class ReducerReported:
    reducer: str
    complete: tuple[str, ...]


@dataclass(frozen=True)
class ResultsCame:
    """Some results are held that were not before."""


@dataclass(frozen=True)
class ReducerDelivered:
    """Every result chunk of this reducer's range is held and checked."""

    reducer: str


@dataclass(frozen=True)
class SettleDone:
    """The new state is stored."""


@dataclass(frozen=True)
class SettleRefused:
    """The new state would not be one that anybody can train from."""

    reason: str


@dataclass(frozen=True)
class Restarted:
    """The coordinator was away: nobody is to lose time by it."""

    downtime_s: float


@dataclass(frozen=True)
class EarlierEnded:
    """The round before, which was reduced while this one was trained, is settled or skipped."""


@dataclass(frozen=True)
class Paused:
    pass


@dataclass(frozen=True)
class Resumed:
    pass


Event = (
    Leased
    | Committed
    | Abandoned
    | Tick
    | RosterSigned
    | ReducerReported
    | ResultsCame
    | ReducerDelivered
    | SettleDone
    | SettleRefused
    | Restarted
    | EarlierEnded
    | Paused
    | Resumed
)


# ---- effects ----


@dataclass(frozen=True)
class SignRoster:
    """Choose reducers, sign and store the roster, and answer with :class:`RosterSigned`.

    Asked again at every tick until there is somebody who can reduce.
    """

    attempt: int
    members: tuple[str, ...]
    avoid: tuple[str, ...]
    anchors_only: bool


@dataclass(frozen=True)
class SignInclusion:
    attempt: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class AskHolders:
    """A reducer is gone: have whoever holds results that we lack bring them."""


@dataclass(frozen=True)
class Settle:
    """All results are held: make the new state, then answer with :class:`SettleDone`."""

    members: tuple[str, ...]


@dataclass(frozen=True)
class FreeLeases:
    """Every lease of the round that was not merged is free again."""


@dataclass(frozen=True)
class Skip:
    """The state stays as it is; the round's record says why."""

    reason: str


Effect = SignRoster | SignInclusion | AskHolders | Settle | FreeLeases | Skip


def dump(state: Round) -> str:
    """JSON of a round: how it survives a restart (one column, because it is read only whole)."""
    # Not asdict(): it copies each of what may be thousands of names.
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return json.dumps(fields | {"policy": dataclasses.asdict(state.policy)})


@lru_cache(maxsize=4)
def load(text: str) -> Round:
    """Inverse of :func:`dump`; each turn loads what the one before stored."""
    raw = json.loads(text)
    raw["policy"] = Policy(**raw["policy"])
    raw["phase"] = Phase(raw["phase"])
    raw["complete"] = tuple((reducer, tuple(members)) for reducer, members in raw["complete"])
    for name, value in raw.items():
        if isinstance(value, list):
            raw[name] = tuple(value)
    return Round(**raw)
