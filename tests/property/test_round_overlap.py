"""Two rounds at once, as ``overlap = lag1`` has them: one is reduced while the next is trained."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.round import tick
from coordinator.round_state import (
    Abandoned,
    Committed,
    EarlierEnded,
    Effect,
    Event,
    Leased,
    Paused,
    Phase,
    Policy,
    ReducerDelivered,
    ReducerReported,
    Restarted,
    Resumed,
    RosterSigned,
    Round,
    Settle,
    SettleDone,
    SettleRefused,
    SignRoster,
    Tick,
    dump,
    load,
)
from coordinator.turn import closes

POLICY = Policy(
    duration_s=100.0,
    grace_s=10.0,
    gather_s=20.0,
    broadcast_s=30.0,
    min_members=2,
    max_members=4,
    max_attempts=2,
)
WORKERS = tuple(f"w{i}" for i in range(5))


@dataclass
class Run:
    """The rounds that are alive, and what those before them came to."""

    training: Round = field(default_factory=lambda: Round(0, POLICY))
    reducing: Round | None = None
    ended: list[Round] = field(default_factory=list)
    effects: list[tuple[int, Effect]] = field(default_factory=list)

    def to_training(self, event: Event, now_s: float) -> None:
        before = self.training
        self.training, effects = tick(before, event, now_s)
        self._note(self.training, effects)
        if closes(before, self.training):
            assert self.reducing is None, "a mean is made for the state that the one before led to"
            self.reducing = self.training
            self.training = Round(before.number + 1, POLICY, earlier_reducing=True)
        elif self.training.ended:
            self.ended.append(self.training)
            self.training = Round(before.number + 1, POLICY)

    def to_reducing(self, event: Event, now_s: float) -> None:
        assert self.reducing is not None
        self.reducing, effects = tick(self.reducing, event, now_s)
        self._note(self.reducing, effects)
        if self.reducing.ended:
            self.ended.append(self.reducing)
            self.reducing = None
            self.to_training(EarlierEnded(), now_s)

    def _note(self, state: Round, effects: tuple[Effect, ...]) -> None:
        assert load(dump(state)) == state
        self.effects += [(state.number, effect) for effect in effects]

    def check(self) -> None:
        assert self.training.phase in (Phase.OPEN, Phase.TRAINING, Phase.COMMITTING)
        assert self.training.earlier_reducing is (self.reducing is not None)
        assert not (self.reducing and self.reducing.accepts_commits)
        numbers = [state.number for state in (*self.ended, *filter(None, [self.reducing]))]
        assert numbers == list(range(self.training.number))


def of_training(state: Round, draw: random.Random) -> Event:
    events: list[Event] = [Tick(), Tick(), Paused(), Resumed(), Restarted(draw.uniform(0, 50))]
    if state.accepts_leases:
        free = [w for w in WORKERS if w not in state.training + state.committed]
        events += [Leased(w) for w in free[:2]]
    events += [Committed(w) for w in state.training] * 2 + [Abandoned(w) for w in state.training]
    return draw.choice(events)


def of_reducing(state: Round, draw: random.Random) -> Event:
    absent = (w for w in (*state.committed, *state.reducers) if draw.random() < 0.1)
    events: list[Event] = [Tick(frozenset(absent)), Restarted(draw.uniform(0, 50))]
    if state.settling:
        events += [SettleDone(), SettleDone(), SettleRefused("too large")]
    elif state.phase is Phase.BROADCAST:
        events += [ReducerDelivered(r) for r in state.reducers if r not in state.delivered]
    elif not state.reducers:
        events += [RosterSigned(("r1", "r2"))]
    else:
        events += [ReducerReported(r, state.committed) for r in state.reducers]
    return draw.choice(events)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_rounds_overlap_by_one_and_end_in_their_order(seed: int) -> None:
    draw, run, now_s = random.Random(seed), Run(), 0.0
    for _ in range(150):
        now_s += draw.choice([0.0, 0.1, 1.0, 15.0])
        if run.reducing is not None and draw.random() < 0.5:
            run.to_reducing(of_reducing(run.reducing, draw), now_s)
        else:
            run.to_training(of_training(run.training, draw), now_s)
        run.check()
    # One after the other: rosters in the order of the rounds, each after the settle before it.
    order = [n for n, effect in run.effects if isinstance(effect, SignRoster | Settle)]
    assert order == sorted(order)


@given(seed=st.integers(0, 2**32))
def test_time_alone_ends_whatever_is_trained_and_whatever_is_reduced(seed: int) -> None:
    draw, run, now_s = random.Random(seed), Run(), 0.0
    for _ in range(draw.randrange(80)):
        if run.reducing is not None and draw.random() < 0.3:
            run.to_reducing(of_reducing(run.reducing, draw), now_s)
        else:
            run.to_training(of_training(run.training, draw), now_s)
    alive = run.training.number if run.training.phase is not Phase.OPEN else None
    for _ in range(20):
        now_s += 1000.0
        if run.reducing is not None and run.reducing.settling:
            run.to_reducing(SettleDone(), now_s)
        elif run.reducing is not None:
            run.to_reducing(Tick(), now_s)
        run.to_training(Tick(), now_s)
    assert run.reducing is None
    assert alive is None or alive in [state.number for state in run.ended]


def test_a_round_that_is_ready_waits_for_the_reduce_before_it_and_takes_members_meanwhile() -> None:
    state = Round(1, POLICY, earlier_reducing=True)
    for worker in ("w0", "w1"):
        state, _ = tick(state, Leased(worker), 0.0)
    for worker in ("w0", "w1"):
        state, effects = tick(state, Committed(worker), 10.0)
        assert not effects
    assert state.phase is Phase.TRAINING
    assert state.accepts_leases
    state, effects = tick(state, EarlierEnded(), 20.0)
    assert state.phase is Phase.GATHER
    assert effects == (SignRoster(1, ("w0", "w1"), (), False),)


def test_a_round_past_its_grace_still_takes_commits_while_it_waits() -> None:
    state = Round(1, replace(POLICY, min_members=1), earlier_reducing=True)
    state, _ = tick(state, Leased("w0"), 0.0)
    state, _ = tick(state, Tick(), 100.0)
    for now_s in (110.0, 200.0):
        state, effects = tick(state, Tick(), now_s)
        assert (state.phase, effects) == (Phase.COMMITTING, ())
    state, effects = tick(state, Committed("w0"), 201.0)
    assert (state.phase, effects) == (Phase.COMMITTING, ())
    state, effects = tick(state, EarlierEnded(), 202.0)
    assert state.phase is Phase.GATHER
