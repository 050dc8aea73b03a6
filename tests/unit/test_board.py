"""What ``worker status`` says at each moment: one phase, and a reason if nothing is done."""

from __future__ import annotations

import pytest

from worker.status import AWAY, Board, Phase
from worker.verdict import Because, Verdict

BUSY = Verdict(False, Because.BUSY, "other programs use 60 % of the processors")
WORKS = Verdict(works=True)


def board(verdict: Verdict = WORKS, **fields: object) -> Board:
    made = Board("w", "r", **fields)  # type: ignore[arg-type]
    made.governed(verdict, paused=verdict.because == Because.OWNER, paused_until_s=None)
    return made


@pytest.mark.parametrize(
    ("verdict", "fields", "phase", "reason"),
    [
        (WORKS, {"phase": Phase.TRAINING, "reason": ""}, "training", ""),
        (WORKS, {"phase": Phase.TRAINING, "reason": "", "away": True}, "training", ""),
        (WORKS, {"phase": Phase.WAITING, "away": True}, "waiting", AWAY),
        (BUSY, {"phase": Phase.TRAINING, "reason": "", "frozen": True}, "paused", BUSY.reason),
        # Nothing more is trained, but what was is still seen through.
        (BUSY, {"phase": Phase.COMMITTING, "reason": ""}, "committing", ""),
        (BUSY, {"phase": Phase.REDUCING, "reason": "", "frozen": True}, "reducing", ""),
        (BUSY, {"phase": Phase.WAITING, "reason": "the round"}, "paused", BUSY.reason),
        (BUSY, {"phase": Phase.WAITING, "away": True}, "paused", BUSY.reason),
        (BUSY, {"asleep": True, "away": True}, "paused", BUSY.reason),
    ],
)
def test_there_is_one_reason(
    verdict: Verdict, fields: dict[str, object], phase: str, reason: str
) -> None:
    status = board(verdict, **fields).snapshot()
    assert (status["phase"], status["reason"]) == (phase, reason)
    assert bool(status["reason"]) == (phase in ("waiting", "paused"))
    assert status["because"] == ("busy" if verdict is BUSY else "")


def test_who_stands_still_has_no_eta() -> None:
    made = board(BUSY, phase=Phase.TRAINING, reason="", steps=10, steps_done=5)
    made.steps_per_s = 1.0
    assert made.snapshot()["eta_s"] == 5.0
    made.frozen = True
    assert made.snapshot()["eta_s"] is None


def test_a_unit_that_is_taken_up_again_is_not_given_up_any_more() -> None:
    made = board(given_up="aa")
    made.take_up("bb")
    assert (made.assignment_id, made.given_up) == ("bb", "aa")
    made.take_up("aa")
    assert (made.assignment_id, made.given_up) == ("aa", "")


def test_parts_of_the_worker_have_blocks_of_their_own() -> None:
    made = board()
    made.parts["cache"] = {"bytes": 7}
    assert made.snapshot()["parts"] == {"cache": {"bytes": 7}}
    assert Board("w", "r").parts == {}
