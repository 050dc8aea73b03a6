"""The round as a pure state machine: ``tick(state, event, now) -> (state, effects)``.

Invariants:

* Nothing here reads a clock, draws a random number or does I/O; whoever calls it stores the
  new state and carries the effects out in the same database transaction.
* Every phase change is in :data:`TRANSITIONS`, every (phase, event) pair that can happen has a
  handler; any other pair raises :class:`ImpossibleEvent`: a bug of ours, never a peer's fault.
* Nobody waits for a straggler beyond the grace; every phase but OPEN has a deadline and at most
  ``max_attempts`` reduces are tried, so a round that has begun always ends. A clock that is set
  back does not lengthen a phase beyond its full length from then on.
* What is included was complete at *every* reducer of the attempt, and a round settles only when
  every reducer of that attempt has delivered all its result chunks.
* A round that opened while the one before is reduced (``overlap = lag1``) trains, but does not
  close before that one has ended: its mean is applied to the state that comes out of it.
* Whoever is gone is not waited for: a gather ends when all that are there are complete, and a lost
  reducer ends its attempt at once, unless others turn out to hold what it had made.

Phases and rules: protocol.md section 7. OPEN has no deadline, so that a run without volunteers
does not burn rounds: the first lease starts the clock. COMMITTING is the grace; it has zero
length when every lease has been committed already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from coordinator.round_state import (
    Abandoned,
    AskHolders,
    Committed,
    EarlierEnded,
    Effect,
    Event,
    FreeLeases,
    Leased,
    Paused,
    Phase,
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
)

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.OPEN: frozenset({Phase.TRAINING}),
    Phase.TRAINING: frozenset({Phase.COMMITTING, Phase.GATHER, Phase.SKIPPED}),
    Phase.COMMITTING: frozenset({Phase.GATHER, Phase.SKIPPED}),
    Phase.GATHER: frozenset({Phase.GATHER, Phase.BROADCAST, Phase.SKIPPED}),
    Phase.BROADCAST: frozenset({Phase.GATHER, Phase.SETTLED, Phase.SKIPPED}),
    Phase.SETTLED: frozenset(),
    Phase.SKIPPED: frozenset(),
}
"""GATHER -> GATHER and BROADCAST -> GATHER are further attempts."""


_NO_REDUCER = (
    "no reducer could be found: start an anchor ([server] anchor = true, or "
    "'barnraise worker anchor')"
)


class ImpossibleEvent(RuntimeError):
    """An event that the phase cannot see: the caller has a bug."""


Step = tuple[Round, tuple[Effect, ...]]


def tick(state: Round, event: Event, now_s: float) -> Step:
    """Advance a round by one event.

    Args:
        state: the round as stored.
        event: what happened.
        now_s: the coordinator's clock, seconds since the epoch.

    Returns:
        The new state, and the effects to carry out in order.

    Raises:
        ImpossibleEvent: the event cannot happen in this phase. Anything else is a bug too.
    """
    handler = _HANDLERS.get((state.phase, type(event)))
    if handler is None:
        raise ImpossibleEvent(f"{type(event).__name__} in phase {state.phase}")
    if isinstance(event, Tick):
        state = _within_reach(state, now_s)
    after, effects = handler(state, event, now_s)
    if after.phase is not state.phase and after.phase not in TRANSITIONS[state.phase]:
        raise ImpossibleEvent(f"{state.phase} -> {after.phase}")
    return after, effects


def _within_reach(state: Round, now_s: float) -> Round:
    """No deadline is further away than its phase is long, unless the clock was set back."""
    policy = state.policy
    longest_s = {
        Phase.TRAINING: policy.duration_s,
        Phase.COMMITTING: policy.grace_s,
        Phase.GATHER: policy.gather_s,
        Phase.BROADCAST: policy.gather_s + policy.broadcast_s,
    }.get(state.phase)
    if longest_s is None or state.deadline_s is None or state.deadline_s <= now_s + longest_s:
        return state
    by_s = now_s + longest_s - state.deadline_s
    return replace(
        state,
        deadline_s=now_s + longest_s,
        broadcast_deadline_s=_later(state.broadcast_deadline_s, by_s),
    )


# ---- handlers, in the order of the phases ----


def _leased(state: Round, event: Leased, now_s: float) -> Step:
    if not state.accepts_leases or event.worker in state.training + state.committed:
        raise ImpossibleEvent(f"no lease for {event.worker} now")
    deadline_s = state.deadline_s
    if state.phase is Phase.OPEN:
        deadline_s = now_s + state.policy.duration_s
    training = (*state.training, event.worker)
    return replace(state, phase=Phase.TRAINING, deadline_s=deadline_s, training=training), ()


def _committed(state: Round, event: Committed, now_s: float) -> Step:
    training = _without_worker(state, event.worker)
    committed = (*state.committed, event.worker)
    return _close_if_done(replace(state, training=training, committed=committed), now_s)


def _abandoned(state: Round, event: Abandoned, now_s: float) -> Step:
    return _close_if_done(replace(state, training=_without_worker(state, event.worker)), now_s)


def _without_worker(state: Round, worker: str) -> tuple[str, ...]:
    if worker not in state.training:
        raise ImpossibleEvent(f"{worker} has no open lease")
    at = state.training.index(worker)
    return state.training[:at] + state.training[at + 1 :]


def _close_if_done(state: Round, now_s: float) -> Step:
    """Close early: everybody has committed and they are enough, or nobody can join any more."""
    enough = len(state.committed) >= state.policy.min_members
    if not state.training and (enough or state.phase is Phase.COMMITTING):
        return _close(state, now_s)
    return state, ()


def _train_until_deadline(state: Round, _: Tick, now_s: float) -> Step:
    assert state.deadline_s is not None
    if now_s < state.deadline_s:
        return state, ()
    if not state.training:
        return _close(state, now_s)
    deadline_s = state.deadline_s + state.policy.grace_s
    return replace(state, phase=Phase.COMMITTING, deadline_s=deadline_s), ()


def _wait_out_grace(state: Round, _: Tick, now_s: float) -> Step:
    assert state.deadline_s is not None
    return _close(state, now_s) if now_s >= state.deadline_s else (state, ())


def _close(state: Round, now_s: float) -> Step:
    if state.earlier_reducing:
        return state, ()
    if len(state.committed) < state.policy.min_members:
        have, need = len(state.committed), state.policy.min_members
        return _skip(state, f"{have} of at least {need} members committed in time")
    return _next_attempt(state, (), now_s, "")


def _earlier_ended(state: Round, _: EarlierEnded, now_s: float) -> Step:
    if not state.earlier_reducing:
        raise ImpossibleEvent("no round was reduced beside this one")
    after = replace(state, earlier_reducing=False)
    return (after, ()) if state.phase is Phase.OPEN else _close_if_done(after, now_s)


def _next_attempt(state: Round, failed: tuple[str, ...], now_s: float, why: str) -> Step:
    state = replace(state, failed=failed)
    if state.is_last_attempt:
        return _skip(state, why)
    gather_s = now_s + state.policy.gather_s
    after = replace(
        state,
        phase=Phase.GATHER,
        attempt=state.attempt + 1,
        deadline_s=gather_s,
        broadcast_deadline_s=gather_s + state.policy.broadcast_s,
        avoid=tuple(dict.fromkeys(state.avoid + failed)),
        training=(),
        reducers=(),
        complete=(),
        inclusion=(),
        delivered=(),
        rescue_until_s=None,
    )
    return after, (_sign_roster(after),)


def _sign_roster(state: Round) -> SignRoster:
    return SignRoster(state.attempt, state.committed, state.avoid, state.anchors_only)


def _skip(state: Round, reason: str) -> Step:
    after = replace(state, phase=Phase.SKIPPED, deadline_s=None, training=(), reason=reason)
    return after, (FreeLeases(), Skip(reason))


def _roster_signed(state: Round, event: RosterSigned, _: float) -> Step:
    if state.reducers or not event.reducers:
        raise ImpossibleEvent("a roster is signed once in an attempt, with reducers")
    committed = tuple(w for w in state.committed if w not in event.left_out)
    return replace(state, reducers=event.reducers, committed=committed), ()


def _reducer_reported(state: Round, event: ReducerReported, now_s: float) -> Step:
    if event.reducer not in state.reducers:
        raise ImpossibleEvent(f"{event.reducer} is no reducer of this attempt")
    held = dict(state.complete)
    before = held.get(event.reducer, ())
    known = frozenset((*before, *event.complete))
    held[event.reducer] = tuple(w for w in state.committed if w in known)
    after = replace(state, complete=tuple(held.items()))
    if after.complete_everywhere() == after.committed:
        return _include(after, now_s)
    return after, ()


def _gather_until_deadline(state: Round, event: Tick, now_s: float) -> Step:
    assert state.deadline_s is not None
    if now_s >= state.deadline_s:
        return _include(state, now_s)
    if not state.reducers:
        return state, (_sign_roster(state),)
    lost = tuple(reducer for reducer in state.reducers if reducer in event.absent)
    if lost and not state.is_last_attempt:  # the last one is worth waiting for its return
        return _next_attempt(state, lost, now_s, "reduce failed: a reducer was lost")
    complete = state.complete_everywhere()
    awaited = frozenset(state.committed) - event.absent - frozenset(complete)
    if not awaited and len(complete) >= state.policy.min_members:
        return _include(state, now_s)
    return state, ()


def _include(state: Round, now_s: float) -> Step:
    members = state.complete_everywhere()
    enough = len(members) >= state.policy.min_members
    hindering, gained = _hindering(state)
    if enough and (state.is_last_attempt or not _worth_another_attempt(state, gained)):
        deadline_s = state.broadcast_deadline_s
        after = replace(state, phase=Phase.BROADCAST, inclusion=members, deadline_s=deadline_s)
        return after, (SignInclusion(state.attempt, members),)
    why = _NO_REDUCER if not state.reducers else "too few members reached them all"
    return _next_attempt(state, hindering, now_s, f"reduce failed: {why}")


def _worth_another_attempt(state: Round, gained: int) -> bool:
    """Whether so many more members are worth a wait for all. One alone never is: it would have
    the power to make everybody wait."""
    return gained >= 2 and 4 * gained >= len(state.committed)


def _hindering(state: Round) -> tuple[tuple[str, ...], int]:
    """Reducers to do without: the swarm is split, or they are slow, or leave members out.

    Of the reducers, taken by how many members they hold, the first so many are kept that most
    members are complete at each of them.

    Returns:
        The others, and how many members would be complete beside those that are now.
    """
    held = {reducer: frozenset(members) for reducer, members in state.complete}
    nobody: frozenset[str] = frozenset()
    ranked = sorted(state.reducers, key=lambda r: -len(held.get(r, nobody)))  # stable
    common, kept, most = frozenset(state.committed), 0, 0
    for count, reducer in enumerate(ranked, start=1):
        common &= held.get(reducer, nobody)
        if len(common) >= max(most, state.policy.min_members):
            kept, most = count, len(common)
    return tuple(ranked[kept:]), most - len(state.complete_everywhere())


def _delivered(state: Round, event: ReducerDelivered, _: float) -> Step:
    if event.reducer not in state.reducers or event.reducer in state.delivered:
        raise ImpossibleEvent(f"{event.reducer} delivers once, if it is a reducer")
    after = replace(state, delivered=(*state.delivered, event.reducer))
    if set(after.delivered) == set(after.reducers):
        return replace(after, settling=True), (Settle(after.inclusion),)
    return after, ()


def _results_came(state: Round, _: ResultsCame, now_s: float) -> Step:
    """Holders are at it: a rescue goes on as long as it brings something."""
    if state.rescue_until_s is None:
        return state, ()
    return replace(state, rescue_until_s=now_s + state.policy.rescue_s), ()


def _broadcast_until_deadline(state: Round, event: Tick, now_s: float) -> Step:
    assert state.deadline_s is not None
    if state.settling:
        return state, ()
    undelivered = tuple(r for r in state.reducers if r not in state.delivered)
    if now_s >= state.deadline_s:
        return _next_attempt(state, undelivered, now_s, "reduce failed: results were withheld")
    lost = tuple(reducer for reducer in undelivered if reducer in event.absent)
    if not lost:
        return replace(state, rescue_until_s=None), ()
    if state.rescue_until_s is None:
        until_s = now_s + state.policy.rescue_s
        return replace(state, rescue_until_s=until_s), (AskHolders(),)
    if now_s >= state.rescue_until_s and not state.is_last_attempt:
        return _next_attempt(state, lost, now_s, "reduce failed: a reducer was lost")
    return state, ()


def _settled(state: Round, _: SettleDone, __: float) -> Step:
    if not state.settling:
        raise ImpossibleEvent("settled before all results were held")
    return replace(state, phase=Phase.SETTLED, deadline_s=None), (FreeLeases(),)


def _settle_refused(state: Round, event: SettleRefused, _: float) -> Step:
    if not state.settling:
        raise ImpossibleEvent("a settle was refused that was not due")
    return _skip(replace(state, settling=False), event.reason)


def _restarted(state: Round, event: Restarted, now_s: float) -> Step:
    """protocol.md section 7: open deadlines move by the downtime. A settle begins anew.

    A gather whose roster has expired meanwhile, for members go by the deadlines that were signed,
    begins anew too, and is not counted among the policy's attempts.
    """
    if event.downtime_s < 0:
        raise ImpossibleEvent("negative downtime")
    expired = state.broadcast_deadline_s is not None and now_s >= state.broadcast_deadline_s
    if state.phase is Phase.GATHER and expired:
        again = replace(state, free_attempts=state.free_attempts + 1)
        return _next_attempt(again, (), now_s, "")
    after = replace(
        state,
        deadline_s=_later(state.deadline_s, event.downtime_s),
        broadcast_deadline_s=_later(state.broadcast_deadline_s, event.downtime_s),
        rescue_until_s=_later(state.rescue_until_s, event.downtime_s),
    )
    return after, ((Settle(after.inclusion),) if after.settling else ())


def _later(deadline_s: float | None, by_s: float) -> float | None:
    return None if deadline_s is None else deadline_s + by_s


def _nothing(state: Round, _: Tick, __: float) -> Step:
    return state, ()


def _paused(state: Round, _: Paused, __: float) -> Step:
    return replace(state, paused=True), ()


def _resumed(state: Round, _: Resumed, __: float) -> Step:
    return replace(state, paused=False), ()


_HANDLERS: dict[tuple[Phase, type], Callable[[Round, Any, float], Step]] = {
    (Phase.OPEN, Leased): _leased,
    (Phase.OPEN, Tick): _nothing,
    (Phase.TRAINING, Leased): _leased,
    (Phase.TRAINING, Committed): _committed,
    (Phase.TRAINING, Abandoned): _abandoned,
    (Phase.TRAINING, Tick): _train_until_deadline,
    (Phase.COMMITTING, Committed): _committed,
    (Phase.COMMITTING, Abandoned): _abandoned,
    (Phase.COMMITTING, Tick): _wait_out_grace,
    (Phase.GATHER, RosterSigned): _roster_signed,
    (Phase.GATHER, ReducerReported): _reducer_reported,
    (Phase.GATHER, Tick): _gather_until_deadline,
    (Phase.BROADCAST, ResultsCame): _results_came,
    (Phase.BROADCAST, ReducerDelivered): _delivered,
    (Phase.BROADCAST, Tick): _broadcast_until_deadline,
    (Phase.BROADCAST, SettleDone): _settled,
    (Phase.BROADCAST, SettleRefused): _settle_refused,
}
for _phase in (Phase.OPEN, Phase.TRAINING, Phase.COMMITTING):
    _HANDLERS[_phase, EarlierEnded] = _earlier_ended
for _phase in (p for p in Phase if TRANSITIONS[p]):
    _HANDLERS |= {
        (_phase, Restarted): _restarted,
        (_phase, Paused): _paused,
        (_phase, Resumed): _resumed,
    }

LISTED = frozenset(_HANDLERS)
"""Every (phase, event type) that can happen."""
