"""The round's state machine: every (phase, event) pair, and random histories."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.round import LISTED, TRANSITIONS, ImpossibleEvent, tick
from coordinator.round_state import (
    Abandoned,
    AskHolders,
    Committed,
    EarlierEnded,
    Event,
    FreeLeases,
    Leased,
    Paused,
    Phase,
    Policy,
    ReducerDelivered,
    ReducerReported,
    Restarted,
    ResultsCame,
    Resumed,
    RosterSigned,
    Round,
    Settle,
    SettleDone,
    SettleRefused,
    SignInclusion,
    SignRoster,
    Skip,
    Tick,
    dump,
    load,
)

POLICY = Policy(
    duration_s=100.0,
    grace_s=10.0,
    gather_s=20.0,
    broadcast_s=30.0,
    min_members=2,
    max_members=4,
    max_attempts=3,
)
SAMPLES: dict[type, Event] = {
    type(event): event
    for event in (
        Leased("new"),
        Committed("c"),
        Abandoned("c"),
        Tick(),
        RosterSigned(("r",)),
        ReducerReported("r", ("a", "b")),
        ResultsCame(),
        ReducerDelivered("r"),
        SettleDone(),
        SettleRefused("too large"),
        Restarted(5.0),
        EarlierEnded(),
        Paused(),
        Resumed(),
    )
}


def in_phase(phase: Phase) -> Round:
    """A round that could well be in this phase."""
    base = Round(0, POLICY, phase=phase)
    match phase:
        case Phase.OPEN:
            return base
        case Phase.TRAINING | Phase.COMMITTING:
            return replace(base, deadline_s=100.0, training=("c",), committed=("a", "b"))
        case Phase.GATHER | Phase.BROADCAST:
            return replace(
                base,
                deadline_s=120.0,
                broadcast_deadline_s=150.0,
                committed=("a", "b"),
                attempt=1,
                reducers=("r",) if phase is Phase.BROADCAST else (),
                inclusion=("a", "b") if phase is Phase.BROADCAST else (),
            )
        case _:
            return base


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("kind", list(SAMPLES))
def test_every_pair_is_handled_or_refused(phase: Phase, kind: type) -> None:
    state = in_phase(phase)
    if kind is ReducerReported and phase is Phase.GATHER:
        state = replace(state, reducers=("r",))
    if kind in (SettleDone, SettleRefused):
        state = replace(state, settling=True)
    if kind is EarlierEnded:
        state = replace(state, earlier_reducing=True)
    if (phase, kind) not in LISTED:
        with pytest.raises(ImpossibleEvent):
            tick(state, SAMPLES[kind], 50.0)
        return
    after, _ = tick(state, SAMPLES[kind], 50.0)
    assert after.phase is phase or after.phase in TRANSITIONS[phase]


def test_every_event_is_in_the_table_and_ended_rounds_take_none() -> None:
    assert {kind for _, kind in LISTED} == set(SAMPLES)
    assert not [pair for pair in LISTED if pair[0] in (Phase.SETTLED, Phase.SKIPPED)]


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (in_phase(Phase.TRAINING), Leased("a")),
        (replace(in_phase(Phase.TRAINING), paused=True), Leased("new")),
        (in_phase(Phase.TRAINING), Committed("nobody")),
        (in_phase(Phase.TRAINING), Abandoned("a")),
        (in_phase(Phase.GATHER), RosterSigned(())),
        (in_phase(Phase.GATHER), ReducerReported("stranger", ())),
        (in_phase(Phase.BROADCAST), ReducerDelivered("stranger")),
        (in_phase(Phase.BROADCAST), SettleDone()),
        (in_phase(Phase.BROADCAST), SettleRefused("too large")),
        (in_phase(Phase.TRAINING), Restarted(-1.0)),
        (in_phase(Phase.TRAINING), EarlierEnded()),
    ],
)
def test_an_event_that_contradicts_the_state_is_our_bug(state: Round, event: Event) -> None:
    with pytest.raises(ImpossibleEvent):
        tick(state, event, 50.0)


def possible(state: Round, draw: random.Random) -> Event:
    """Some event that the engine could send in this state."""
    workers = [f"w{i}" for i in range(6)]
    events: list[Event] = [Tick(), Tick(), Paused(), Resumed(), Restarted(draw.uniform(0, 50))]
    there_to_be = [*state.committed, *state.reducers]
    events += [Tick(frozenset(w for w in there_to_be if draw.random() < 0.2))]
    if state.accepts_leases:
        free = [w for w in workers if w not in state.training + state.committed]
        events += [Leased(w) for w in free[:2]]
    if state.accepts_commits:
        events += [Committed(w) for w in state.training] + [Abandoned(w) for w in state.training]
    if state.phase is Phase.GATHER:
        if not state.reducers:
            spare = len(state.committed) - state.policy.min_members
            left_out = state.committed[: draw.randrange(spare + 1)]
            events += [RosterSigned(("r1", "r2")), RosterSigned(("r3",), left_out)]
        for reducer in state.reducers:
            some = tuple(w for w in state.committed if draw.random() < 0.7)
            events += [ReducerReported(reducer, some), ReducerReported(reducer, state.committed)]
    if state.phase is Phase.BROADCAST:
        if state.settling:
            events += [SettleDone(), SettleRefused("too large")]
        events += [ReducerDelivered(r) for r in state.reducers if r not in state.delivered]
        events += [ResultsCame()]
    return draw.choice(events)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), members=st.integers(1, 4), attempts=st.integers(1, 3))
def test_random_histories_keep_the_rules(seed: int, members: int, attempts: int) -> None:
    draw = random.Random(seed)
    state = Round(0, replace(POLICY, min_members=members, max_attempts=attempts))
    now_s, settles = 0.0, 0
    while not state.ended and now_s < 1e6:
        now_s += draw.choice([0.0, 0.1, 1.0, 15.0])
        event = possible(state, draw)
        if isinstance(event, Restarted):
            now_s += event.downtime_s
        before, (state, effects) = state, tick(state, event, now_s)
        assert load(dump(state)) == state
        check_step(before, state)
        for effect in effects:
            match effect:
                case SignRoster():
                    assert state.phase is Phase.GATHER
                    assert len(effect.members) >= members
                    assert 1 <= effect.attempt <= attempts + state.free_attempts
                case SignInclusion():
                    assert effect.members == before_inclusion(before, event)
                    assert len(effect.members) >= members
                case AskHolders():
                    assert state.phase is Phase.BROADCAST
                    assert state.rescue_until_s is not None
                    assert isinstance(event, Tick)
                    assert event.absent & set(state.reducers) - set(state.delivered)
                case Settle():
                    settles += 1
                    assert set(state.delivered) == set(state.reducers) != set()
                case FreeLeases():
                    assert state.ended
                case Skip():
                    assert state.phase is Phase.SKIPPED
                    assert effect.reason
        if state.phase is Phase.SETTLED:
            assert settles
    assert state.ended or state.phase in (Phase.OPEN, Phase.TRAINING)


def before_inclusion(before: Round, event: Event) -> tuple[str, ...]:
    """The members complete at every reducer, computed another way."""
    held = {reducer: set(members) for reducer, members in before.complete}
    if isinstance(event, ReducerReported):
        held[event.reducer] = held.get(event.reducer, set()) | set(event.complete)
    everywhere = set.intersection(*(held.get(r, set()) for r in before.reducers))
    return tuple(w for w in before.committed if w in everywhere)


def check_step(before: Round, after: Round) -> None:
    if after.phase is not before.phase:
        assert after.phase in TRANSITIONS[before.phase]
    assert after.attempt >= before.attempt
    if before.deadline_s is not None and after.deadline_s is not None:
        same_attempt = after.attempt == before.attempt
        assert after.deadline_s >= before.deadline_s or not same_attempt or not before.reducers
    assert not set(after.training) & set(after.committed)
    assert len(after.training) + len(after.committed) <= after.policy.max_members
    assert set(after.inclusion) <= set(after.committed)
    assert set(after.delivered) <= set(after.reducers)


@pytest.mark.parametrize("phase", [Phase.TRAINING, Phase.COMMITTING, Phase.GATHER, Phase.BROADCAST])
def test_a_clock_that_is_set_back_does_not_stop_the_run(phase: Phase) -> None:
    state = in_phase(phase)
    assert state.deadline_s is not None
    now_s = state.deadline_s - 86_400
    state, _ = tick(state, Tick(), now_s)
    assert state.phase is phase
    longest_s = max(POLICY.duration_s, POLICY.gather_s + POLICY.broadcast_s)
    assert now_s < state.deadline_s <= now_s + longest_s
    if state.broadcast_deadline_s is not None:
        assert state.deadline_s <= state.broadcast_deadline_s <= now_s + longest_s
    later, _ = tick(state, Tick(), state.deadline_s)
    assert later != state, "the phase ends, or goes on to its grace"
    same, _ = tick(state, Tick(), now_s + 1)
    assert same.deadline_s == state.deadline_s


@given(seed=st.integers(0, 2**32))
def test_time_alone_ends_a_round_that_has_begun(seed: int) -> None:
    """However far it got, a round ends once nothing but time happens; settling never expires."""
    draw = random.Random(seed)
    state, now_s = Round(0, POLICY), 0.0
    state, _ = tick(state, Leased("w0"), now_s)
    for _ in range(draw.randrange(30)):
        if not state.ended:
            state, _ = tick(state, possible(state, draw), now_s)
    for _ in range(20):
        now_s += 2000.0
        if not state.ended and not state.settling:
            state, _ = tick(state, Tick(), now_s)
    assert state.ended or state.settling
