"""Audits in any world: who answers, refuses or is silent, what replays say, in any order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.audit.case import (
    Ask,
    Compare,
    Decide,
    Facts,
    Need,
    OpenChunks,
    QueueJob,
    Replay,
    Source,
    Wait,
    decide,
)
from coordinator.audit.schema import ANSWERED, ASKED, OPENING, REFUSED, SILENT, WAITING
from protocol.audit_policy import Verdict
from protocol.tolerance import Outcome

ANSWER_S, PATIENCE_S = 10.0, 1000.0
_SLOWEST = 20
PEOPLE = ("reducer", "worker")
SHOWS, REFUSES, SILENCE = "shows", "refuses", "silence"


@dataclass(frozen=True)
class World:
    """What everybody will do, whenever they get to it."""

    behaviour: tuple[tuple[str, str], ...]  # of reducer and worker, by need
    needs: tuple[int, int]  # projections, openings
    outcomes: tuple[Outcome | str, ...]  # of replays by ordinal; a text is why it failed
    agreeing: frozenset[tuple[int, int]]
    second: bool


behaviours = st.sampled_from((SHOWS, SHOWS, REFUSES, SILENCE))
outcomes = st.sampled_from((*Outcome, *Outcome, "diverged", "weights_lost"))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    needs = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pairs = list(combinations((1, 2, 3), 2))
    return World(
        tuple(draw(st.tuples(behaviours, behaviours)) for _ in range(sum(needs))),
        needs,
        tuple(draw(outcomes) for _ in range(3)),
        frozenset(draw(st.lists(st.sampled_from(pairs), unique=True))),
        draw(st.booleans()),
    )


def first_facts(world: World) -> Facts:
    sources = tuple(Source(who) for who in PEOPLE)
    count = world.needs[0]
    return Facts(
        now_s=0.0,
        phase=WAITING,
        since_s=0.0,
        projections=tuple(Need(str(number), sources) for number in range(count)),
        unfinished=1,
        second=world.second,
        answer_s=ANSWER_S,
        patience_s=PATIENCE_S,
    )


def carry_out(world: World, facts: Facts, decision: object) -> Facts:
    """What the desk does."""
    match decision:
        case Ask():
            changes = dict.fromkeys(decision.ask, ASKED)
            changes |= dict.fromkeys(decision.silent, SILENT)
            return with_statuses(facts, changes)
        case OpenChunks():
            first = world.needs[0]
            sources = tuple(Source(who) for who in PEOPLE)
            needs = tuple(Need(str(first + n), sources) for n in range(world.needs[1]))
            return replace(
                facts, phase=OPENING, since_s=facts.now_s, projections=(), openings=needs
            )
        case Compare():
            found = {n: world.outcomes[n - 1] for n in decision.ordinals}
            replays = [
                replace(r, outcome=found[r.ordinal]) if r.ordinal in found else r
                for r in facts.replays
            ]
            return replace(facts, replays=tuple(replays), agreeing=world.agreeing)
        case QueueJob():
            assert decision.ordinal == len(facts.replays) + 1
            return replace(facts, unfinished=1)
    raise AssertionError(decision)


def with_statuses(facts: Facts, changes: dict[tuple[str, str], str]) -> Facts:
    def changed(need: Need) -> Need:
        sources = tuple(
            replace(
                source,
                status=changes.get((need.name, source.who), source.status),
                asked_at_s=facts.now_s
                if changes.get((need.name, source.who)) == ASKED
                else source.asked_at_s,
            )
            for source in need.sources
        )
        met = need.met or any(source.status == ANSWERED for source in sources)
        return Need(need.name, sources, met)

    return replace(
        facts,
        projections=tuple(map(changed, facts.projections)),
        openings=tuple(map(changed, facts.openings)),
    )


def possible_events(world: World, facts: Facts) -> list[tuple[str, str, str]]:
    """Answers and replays that could come in now."""
    events = [
        (need.name, source.who, behaviour)
        for need in (*facts.projections, *facts.openings)
        for source, behaviour in zip(need.sources, world.behaviour[int(need.name)], strict=True)
        if source.status in (ASKED, SILENT) and behaviour != SILENCE
    ]
    return events + ([("replay", "", "")] if facts.unfinished else [])


def happen(world: World, facts: Facts, event: tuple[str, str, str]) -> Facts:
    name, who, behaviour = event
    if name == "replay":
        ordinal = len(facts.replays) + 1
        said = world.outcomes[ordinal - 1]
        failed = "" if isinstance(said, Outcome) else said
        replay = Replay(ordinal, f"auditor {ordinal}", "cpu", failed=failed)
        return replace(facts, replays=(replay, *facts.replays), unfinished=0)
    status = ANSWERED if behaviour == SHOWS else REFUSED
    return with_statuses(facts, {(name, who): status})


def play(world: World, data: st.DataObject) -> tuple[Facts, Decide]:
    """Until it is decided; the draw says what happens next, and when time passes."""
    facts, slowness = first_facts(world), 0
    for _ in range(300):
        decision = decide(facts)
        if isinstance(decision, Decide):
            return facts, decision
        if not isinstance(decision, Wait):
            facts = carry_out(world, facts, decision)
            continue
        events = possible_events(world, facts)
        # What can come in does, before patience is over; at times somebody is slow first.
        slow = bool(events) and slowness < _SLOWEST and data.draw(st.booleans())
        slowness += slow
        if events and not slow:
            facts = happen(world, facts, data.draw(st.sampled_from(events)))
        else:
            facts = replace(facts, now_s=facts.now_s + ANSWER_S)
    raise AssertionError("this case never ends")


@given(world=worlds(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_every_case_ends_and_convicts_only_by_two_replays_that_agree(
    world: World, data: st.DataObject
) -> None:
    facts, decision = play(world, data)
    if decision.verdict is Verdict.FAILED:
        one, other = decision.by
        assert (one, other) in world.agreeing
        assert world.outcomes[one - 1] is world.outcomes[other - 1] is Outcome.DIFFERS
        assert facts.phase == OPENING
        assert all(need.met for need in facts.openings)
    if decision.verdict is Verdict.PASSED:
        assert Outcome.AGREES in [replay.outcome for replay in facts.replays]
        assert all(need.met for need in facts.openings)
    if decision.verdict is Verdict.UNAVAILABLE:
        shown = [SHOWS in behaviour for behaviour in world.behaviour]
        assert not all(shown)
    assert len(facts.replays) <= facts.most_replays


@given(world=worlds(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_the_verdict_does_not_depend_on_the_order_of_arrival(
    world: World, data: st.DataObject
) -> None:
    # Two reasons why nothing comes of it may both hold: then either may be given first.
    def said(decision: Decide) -> str:
        if decision.verdict in (Verdict.UNAVAILABLE, Verdict.INCONCLUSIVE, Verdict.LOST):
            return "nothing"
        return f"{decision.verdict} {decision.by} {decision.outvoted}"

    _, one = play(world, data)
    _, other = play(world, data)
    assert said(one) == said(other)


@given(world=worlds(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_facts_are_a_set(world: World, data: st.DataObject) -> None:
    facts, decision = play(world, data)
    shuffled = replace(facts, replays=tuple(data.draw(st.permutations(facts.replays))))
    assert decide(shuffled) == decision
