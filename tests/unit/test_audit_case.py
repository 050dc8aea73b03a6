"""The table of an audit, line by line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

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
    Task,
    Wait,
    decide,
    judge_task,
)
from coordinator.audit.schema import ANSWERED, ASKED, OPENING, REFUSED, SILENT, WAITING
from protocol.audit_policy import Verdict
from protocol.tolerance import Outcome

AGREES, DIFFERS, BETWEEN = Outcome.AGREES, Outcome.DIFFERS, Outcome.BETWEEN


def need(*statuses: str, met: bool = False, asked_at_s: float = 0.0) -> Need:
    names = ("reducer", "worker")
    sources = [
        Source(who, status, asked_at_s) for who, status in zip(names, statuses, strict=False)
    ]
    return Need("0-9", tuple(sources), met or ANSWERED in statuses)


def waiting(*needs: Need, **fields: Any) -> Facts:
    return replace(Facts(5.0, WAITING, since_s=0.0, projections=needs), **fields)


def opening(*outcomes: Outcome | None, agreeing: Any = (), **fields: Any) -> Facts:
    """All chunks are proven; replays by different auditors said these."""
    replays = tuple(
        Replay(number, f"auditor {number}", "cpu", outcome)
        for number, outcome in enumerate(outcomes, 1)
    )
    facts = Facts(
        now_s=5.0,
        phase=OPENING,
        since_s=0.0,
        projections=(),
        openings=(need(ANSWERED),),
        replays=replays,
        agreeing=frozenset(agreeing),
    )
    return replace(facts, **fields)


DONE = (Replay(1, "auditor", "cpu"),)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (waiting(need("unasked", "unasked")), Ask((("0-9", "reducer"),))),
        (waiting(need(ASKED, "unasked")), Wait()),
        (
            waiting(need(ASKED, "unasked"), now_s=60.0),
            Ask((("0-9", "worker"),), (("0-9", "reducer"),)),
        ),
        (waiting(need(REFUSED, "unasked")), Ask((("0-9", "worker"),))),
        (waiting(need(SILENT, "unasked")), Ask((("0-9", "worker"),))),
        (waiting(need(SILENT, ASKED), now_s=60.0), Ask((), (("0-9", "worker"),))),
        (waiting(need(SILENT, SILENT)), Wait()),
        (waiting(need(SILENT, REFUSED)), Wait()),
        (waiting(need(SILENT, ANSWERED), unfinished=1), Wait()),
        (waiting(need(ANSWERED), replays=DONE), OpenChunks()),
        (waiting(need(ANSWERED), unfinished=1), Wait()),
    ],
)
def test_projections_are_asked_of_one_after_the_other(facts: Facts, expected: Any) -> None:
    assert decide(facts) == expected


@pytest.mark.parametrize(
    ("facts", "verdict", "reason"),
    [
        (waiting(need(REFUSED, REFUSED), replays=DONE), "unavailable", "projections_unavailable"),
        (
            waiting(need(SILENT, SILENT), now_s=1e6, replays=DONE),
            "unavailable",
            "projections_unavailable",
        ),
        (waiting(need(ANSWERED), now_s=1e6, unfinished=1), "inconclusive", "not_replayed"),
        (
            waiting(need("unasked"), replays=(Replay(1, "a", "cpu", failed="weights_lost"),)),
            "unaudited-lost",
            "weights_lost",
        ),
        (opening(AGREES, openings=(need(REFUSED, REFUSED),)), "unavailable", "chunks_unavailable"),
        (
            opening(AGREES, openings=(need(SILENT, SILENT),), now_s=1e6),
            "unavailable",
            "chunks_unavailable",
        ),
        (opening(AGREES), "passed", "replay_agrees"),
        (opening(AGREES, AGREES, second=True), "passed", "replay_agrees"),
        (opening(BETWEEN, AGREES, AGREES), "passed", "replay_agrees"),
        (opening(DIFFERS, DIFFERS, agreeing={(1, 2)}), "failed", "replay_differs"),
        (opening(AGREES, DIFFERS, DIFFERS, agreeing={(2, 3)}), "failed", "replay_differs"),
        (opening(DIFFERS, DIFFERS, DIFFERS), "inconclusive", "replays_disagree"),
        (opening(AGREES, BETWEEN, DIFFERS), "inconclusive", "replays_disagree"),
        (opening(BETWEEN, BETWEEN, BETWEEN), "inconclusive", "between_bounds"),
        (opening(DIFFERS, unfinished=1, now_s=1e6), "inconclusive", "replays_disagree"),
        (opening(AGREES, second=True, now_s=1e6), "inconclusive", "replays_disagree"),
    ],
)
def test_a_case_ends(facts: Facts, verdict: str, reason: str) -> None:
    decision = decide(facts)
    assert isinstance(decision, Decide)
    assert (decision.verdict, decision.reason) == (Verdict(verdict), reason)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (opening(None), Compare((1,))),
        (opening(DIFFERS, None), Compare((2,))),
        (opening(AGREES, second=True), QueueJob(2, ("auditor 1",), ())),
        (opening(DIFFERS), QueueJob(2, ("auditor 1",), ("cpu",))),
        (opening(BETWEEN), QueueJob(2, ("auditor 1",), ("cpu",))),
        (opening(AGREES, DIFFERS), QueueJob(3, ("auditor 1", "auditor 2"), ("cpu",))),
        (opening(DIFFERS, DIFFERS), QueueJob(3, ("auditor 1", "auditor 2"), ("cpu",))),
        (opening(DIFFERS, unfinished=1), Wait()),
        (opening(AGREES, second=True, unfinished=1), Wait()),
    ],
)
def test_a_doubt_takes_another_replay(facts: Facts, expected: Any) -> None:
    assert decide(facts) == expected


def test_a_replay_that_could_not_be_done_is_another_ones_turn_but_not_for_ever() -> None:
    failed = tuple(Replay(number, "a", "cpu", failed="diverged") for number in (1, 2, 3))
    facts = waiting(need(ANSWERED))
    assert decide(replace(facts, replays=failed[:1])) == QueueJob(2, ("a",), ())
    assert decide(replace(facts, replays=failed)) == Decide(
        Verdict.INCONCLUSIVE, "not_replayed", ()
    )
    # One that could be done decides as if it were the first.
    agrees = Replay(2, "b", "cpu", AGREES)
    facts = opening(replays=(failed[0], agrees))
    assert decide(facts) == Decide(Verdict.PASSED, "replay_agrees", (2,))


def test_who_is_outvoted_is_named() -> None:
    passed, failed = (
        decide(opening(DIFFERS, AGREES, AGREES)),
        decide(opening(AGREES, DIFFERS, DIFFERS, agreeing={(2, 3)})),
    )
    assert isinstance(passed, Decide)
    assert isinstance(failed, Decide)
    assert (passed.by, passed.outvoted) == ((2, 3), ("auditor 1",))
    assert (failed.by, failed.outvoted) == ((2, 3), ("auditor 1",))


@pytest.mark.parametrize("twice", [AGREES, DIFFERS])
def test_an_auditor_that_replays_twice_has_one_voice(twice: Outcome) -> None:
    other = AGREES if twice is DIFFERS else DIFFERS

    def said(*voices: tuple[str, Outcome]) -> Any:
        replays = tuple(
            Replay(number, auditor, "cpu", outcome)
            for number, (auditor, outcome) in enumerate(voices, 1)
        )
        pairs = frozenset((one, two) for one in (1, 2) for two in (2, 3) if one < two)
        return decide(opening(replays=replays, agreeing=pairs, second=True))

    against_another = said(("mallory", twice), ("ada", other), ("mallory", twice))
    assert against_another == Decide(Verdict.INCONCLUSIVE, "replays_disagree", (1, 2, 3))
    alone = said(("ada", twice), ("ada", twice))
    assert (alone.verdict, alone.outvoted) == (
        Verdict.PASSED if twice is AGREES else Verdict.FAILED,
        (),
    )


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task(donors=2, guilty=2, undecided=0), "sound"),
        (Task(donors=3, guilty=2, undecided=0), "suspect"),
        (Task(donors=3, guilty=1, undecided=0), "sound"),
        (Task(donors=3, guilty=1, undecided=1), "open"),
        (Task(donors=4, guilty=2, undecided=0), "sound"),
        (Task(donors=4, guilty=2, undecided=1), "open"),
        (Task(donors=4, guilty=3, undecided=1), "suspect"),
    ],
)
def test_a_task_is_suspect_when_more_than_half_fail(task: Task, expected: str) -> None:
    assert judge_task(task) == expected


HELD = replace(need(ANSWERED), chunks=6)
REFUSED_BY_ALL = replace(need(REFUSED, REFUSED), name="own range", chunks=2)


def test_a_range_that_its_worker_keeps_to_itself_does_not_end_the_case() -> None:
    assert decide(waiting(HELD, REFUSED_BY_ALL, replays=DONE)) == OpenChunks()
    assert decide(opening(None, openings=(HELD, REFUSED_BY_ALL))) == Compare((1,))


def test_what_was_shown_convicts_though_a_part_was_refused() -> None:
    facts = opening(DIFFERS, DIFFERS, agreeing={(1, 2)}, openings=(HELD, REFUSED_BY_ALL))
    assert decide(facts) == Decide(Verdict.FAILED, "replay_differs", (1, 2))


@pytest.mark.parametrize(
    "missing", [{"openings": (HELD, REFUSED_BY_ALL)}, {"unprojected": True}], ids=str
)
def test_nothing_passes_while_a_part_was_not_shown(missing: Any) -> None:
    decision = decide(opening(AGREES, **missing))
    assert decision == Decide(Verdict.UNAVAILABLE, "chunks_unavailable", (1,))


def test_less_than_half_is_not_compared() -> None:
    facts = opening(None, openings=(replace(HELD, chunks=1), REFUSED_BY_ALL))
    assert decide(facts) == Decide(Verdict.UNAVAILABLE, "chunks_unavailable")


def test_what_is_silent_for_ever_is_given_up_when_patience_is_over() -> None:
    silent = replace(need(SILENT, SILENT), name="own range", chunks=2)
    facts = waiting(HELD, silent, replays=DONE)
    assert decide(facts) == Wait()
    assert decide(replace(facts, now_s=facts.patience_s)) == OpenChunks()
