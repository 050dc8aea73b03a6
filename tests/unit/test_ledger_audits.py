"""The fold of audits: what it makes of an honest record, and what it refuses of a false one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.orm import Session

from ledger.fold import Board, fold
from ledger.log import read_leaves
from ledger.records import Leaf
from protocol.audit_policy import PPM, Verdict, Why
from protocol.draw import CHAIN_ROUNDS
from protocol.errors import BadRecord

POLICY = {
    "p_min": 0.5,
    "probation_passes": 2,
    "pending_contributions": 3,
    "pending_s": 1000.0,
    "last_pending_s": 5000.0,
}
ADA, BOB, LAPTOP = 0, 1, 2  # the laptop is Bob's too


@pytest.fixture
def record(ledger_history: ModuleType, make_manifest: Callable[..., Any]) -> Iterator[Any]:
    """Three devices of two donors, and one settled round of all of them."""
    config = make_manifest().model_config_json
    manifest = make_manifest(
        model_config_json={**config, "hidden_size": 512, "num_hidden_layers": 8},
        verification=POLICY,
    )
    written = ledger_history.History(manifest)
    written.open()
    for name, donor in (("ada", "ada"), ("bob", "bob"), ("laptop", "bob")):
        written.enrol(name, donor=donor)
    written.settle({ADA: 10, BOB: 5, LAPTOP: 5})
    yield written
    written.close()


def board_of(record: Any) -> Board:
    with Session(record.engine) as session:
        return fold(read_leaves(session, 0, record.size()))


def refuse(record: Any, leaf: Leaf, words: str) -> None:
    board = board_of(record)
    with pytest.raises(BadRecord, match=words) as caught:
        board.apply(leaf.canonical())
    assert str(caught.value).startswith(f"leaf {record.size()}: ")


def amounts(tally: Any) -> tuple[int, int, int, int]:
    return (
        tally.pending_microcredits,
        tally.final_microcredits,
        tally.forfeited_microcredits,
        tally.unpaid_microcredits,
    )


def credit_of(record: Any, *workers: int) -> int:
    return sum(
        record.credit_leaf(index).microcredits
        for worker in workers
        for index in record.credits_of(worker)
    )


def grow_old(record: Any, worker: int = ADA) -> None:
    """Enough later contributions of a device, all of them audited, for the first to be final."""
    for _ in range(3):
        record.settle({worker: 1})
        record.judge(record.round - 1, worker)


# ---- draws ----


def test_a_draw_shows_who_was_selected(record: Any) -> None:
    before = board_of(record)
    record.publish_draw(0)
    after = board_of(record)
    assert (before.audits.selected, after.audits.selected, after.audits.unaudited) == (0, 3, 3)
    assert all(credit.selected for credit in after.accounts.training_of(0))
    record.judge(0, ADA)
    assert board_of(record).audits.unaudited == 2


def test_only_part_is_drawn_of_those_that_are_trusted(record: Any) -> None:
    for _ in range(2):
        record.judge(record.round - 1, ADA)
        record.settle({ADA: 1})
    record.judge(2, ADA)
    drawn = []
    for _ in range(12):
        record.settle({ADA: 1}, chances={ADA: 500_000})
        last = record.round - 1
        drawn.append(record.is_drawn(last, ADA, 500_000))
        record.publish_draw(last)
    board = board_of(record)
    selected = [board.accounts.training_of(n)[0].selected for n in range(3, record.round)]
    assert selected == drawn
    assert 0 < sum(drawn) < 12
    assert board.audits.unaudited == sum(drawn)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preimage": bytes(32)}, "does not lead to the run's tip"),
        ({"round": 1}, "credited nobody"),
        ({"run_id": bytes(32)}, "another run"),
    ],
)
def test_a_false_draw_is_refused(record: Any, changes: dict[str, Any], words: str) -> None:
    raw = record.draw_leaf(0).model_dump()
    refuse(record, type(record.draw_leaf(0))(**{**raw, **changes}), words)


def test_draws_come_once_and_in_order(record: Any) -> None:
    record.settle({ADA: 1})
    record.publish_draw(1)
    refuse(record, record.draw_leaf(1), "after round 1")
    refuse(record, record.draw_leaf(0), "after round 1")


def test_a_round_that_nobody_was_paid_for_has_no_draw(record: Any) -> None:
    record.skip()
    refuse(record, record.draw_leaf(1), "credited nobody")


def test_a_chain_ends(record: Any, ledger_history: ModuleType) -> None:
    board = board_of(record)
    board.audits.chain.rounds = 0
    assert ledger_history.DRAWS.rounds < CHAIN_ROUNDS
    with pytest.raises(BadRecord, match="no draw for round 0"):
        board.apply(record.draw_leaf(0).canonical())


def test_nobody_is_paid_for_a_round_after_its_draw(record: Any) -> None:
    record.publish_draw(0)
    record.round = 0
    late = record.settled_leaves({ADA: 3})[0].model_copy(update={"assignment_id": "ab" * 16})
    refuse(record, late, "after its draw was published")


# ---- chances and trust ----


def test_a_chance_below_the_policys_is_refused(record: Any) -> None:
    leaf = record.settled_leaves({ADA: 1}, chances={ADA: PPM - 1})[0]
    refuse(record, leaf, "after 0 audited passes the policy asks for 1000000")


def test_trust_is_what_the_verdicts_give(record: Any) -> None:
    record.judge(0, ADA)
    record.judge(0, BOB)
    record.settle({ADA: 1, BOB: 1, LAPTOP: 1})
    record.judge(1, ADA)
    record.judge(1, BOB, Verdict.INCONCLUSIVE)
    workers = board_of(record).workers
    assert [dict(workers[key].passes) for key, _ in record.workers] == [{"cpu": 2}, {"cpu": 1}, {}]
    trusted, not_yet = (
        record.settled_leaves({worker: 1}, chances={worker: 500_000})[0] for worker in (ADA, BOB)
    )
    board_of(record).apply(trusted.canonical())
    refuse(record, not_yet, "after 1 audited passes")
    other_class = trusted.model_copy(update={"execution": "cuda"})
    refuse(record, other_class, "after 0 audited passes")


def test_a_failure_takes_all_trust(record: Any) -> None:
    record.judge(0, ADA)
    record.settle({ADA: 1})
    record.judge(1, ADA)
    record.settle({ADA: 1})
    record.judge(2, ADA, Verdict.FAILED)
    ada = record.workers[ADA][0]
    assert not board_of(record).workers[ada].passes
    leaf = record._credit(ADA, 1, 500_000)
    refuse(record, leaf, "after 0 audited passes")
    record.judge(2, ADA, Verdict.FAILED, why=Why.APPEAL)
    record.judge(2, ADA, Verdict.OVERTURNED, why=Why.APPEAL)
    refuse(record, leaf, "after 0 audited passes")  # what failed is undone, trust begins anew
    assert not board_of(record).donors[ada].convictions
    record.settle({ADA: 1})
    record.judge(3, ADA, why=Why.RETAINED)
    assert not board_of(record).workers[ada].passes["cpu"]


# ---- verdicts ----


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"assignment_id": "ab" * 16}, "never credited"),
        ({"execution": "cuda"}, "other work"),
        ({"round": 1}, "other work"),
        ({"subject": "probation"}, "other work"),
        ({"worker": "bob"}, "other work"),
        ({"worker": "stranger"}, "not enrolled"),
        ({"verdict": "overturned"}, "does not stand"),
    ],
)
def test_a_verdict_is_about_work_that_was_credited(
    record: Any, ledger_history: ModuleType, fields: dict[str, Any], words: str
) -> None:
    if "worker" in fields:
        fields = {"worker": ledger_history.identity(fields["worker"]).peer_id}
    leaf = record.verdict_leaf(0, ADA).model_copy(update=fields)
    refuse(record, leaf, words)


def test_work_is_judged_once(record: Any) -> None:
    record.judge(0, ADA)
    again = record.verdict_leaf(0, ADA, Verdict.FAILED)
    refuse(record, again, "judges the same work twice")
    refuse(record, record.verdict_leaf(0, ADA, Verdict.FAILED, why=Why.APPEAL), "twice")
    record.judge(0, BOB, Verdict.FAILED)
    refuse(record, record.verdict_leaf(0, BOB, why=Why.APPEAL), "twice")
    copied = record.verdict_leaf(0, LAPTOP)
    record.write([copied])
    refuse(record, copied, "recorded before")


def test_nobody_is_audited_whom_the_draw_did_not_choose(record: Any) -> None:
    for _ in range(2):
        record.judge(record.round - 1, ADA)
        record.settle({ADA: 1})
    while record.is_drawn(record.round, ADA, 500_000):
        record.settle({ADA: 1})
    spared = record.round
    record.settle({ADA: 1}, chances={ADA: 500_000})
    early = record.verdict_leaf(spared, ADA, why=Why.SAMPLED)
    board = board_of(record)
    board.apply(early.canonical())
    with pytest.raises(BadRecord, match="audited as sampled, but the draw"):
        board.apply(record.draw_leaf(spared).canonical())
    record.publish_draw(spared)
    refuse(record, early, "audited as sampled, but the draw")
    record.judge(spared, ADA, why=Why.RETAINED)
    assert board_of(record).audits.verdicts["passed"] == 3


def test_reducing_is_judged_by_chunk(record: Any) -> None:
    record.judge(0, ADA, subject="reducing", chunk=4)
    record.judge(0, ADA, subject="reducing", chunk=5)
    board = board_of(record)
    assert board.audits.verdicts == {"passed": 2}
    assert not board.workers[record.workers[ADA][0]].passes
    overturned = record.verdict_leaf(0, ADA, Verdict.OVERTURNED, subject="reducing")
    refuse(record, overturned, "no appeal")


def test_probation_is_paid_once_and_only_when_it_passed(
    record: Any, ledger_history: ModuleType
) -> None:
    assignment = ledger_history.assignment(0, ADA, "probation")
    unpaid = record._credit(ADA, 5, PPM, work="probation", round_=0)
    refuse(record, unpaid, "did not pass")
    record.judge(0, ADA, subject="probation", assignment_id=assignment, why=Why.PROBATION)
    other = unpaid.model_copy(update={"worker": record.workers[BOB][0]})
    refuse(record, other.model_copy(update={"donor": record.workers[BOB][1]}), "other probation")
    index = record.pay_probation(0, ADA)
    refuse(record, unpaid, "twice")
    board = board_of(record)  # the round's tokens and members are as it merged them
    ada = board.donors[record.workers[ADA][1]].tally
    assert ada.probation_microcredits == record.credit_leaf(index).microcredits > 0
    assert (ada.contributions, board.workers[record.workers[ADA][0]].passes["cpu"]) == (1, 1)
    assert board.accounts.credits[index].verdict is not None


# ---- final ----


def test_credit_becomes_final_after_enough_contributions(record: Any) -> None:
    record.judge(0, ADA)
    first = record.credits_of(ADA, 0, "training")
    refuse(record, record.final_leaf(ADA, first), "draw of round 0 is not published")
    record.publish_draw(0)
    refuse(record, record.final_leaf(ADA, first), "not 1000 s old")
    record.now_s += 2000
    refuse(record, record.final_leaf(ADA, first), "only 0 later contributions")
    grow_old(record)
    record.finish(ADA, first)
    board = board_of(record)
    paid = record.credit_leaf(first[0]).microcredits
    ada = board.donors[record.workers[ADA][1]].tally
    assert (ada.final_microcredits, ada.total_microcredits) == (paid, credit_of(record, ADA))
    assert board.total.final_microcredits == board.credited[0].final_microcredits == paid
    refuse(record, record.final_leaf(ADA, first), "it is final")


def test_the_last_contributions_become_final_after_a_while(record: Any) -> None:
    record.judge(0, ADA, Verdict.INCONCLUSIVE)
    record.publish_draw(0)
    mine = record.credits_of(ADA)  # training and reducing
    record.now_s += 4999
    refuse(record, record.final_leaf(ADA, mine), "the last one 4999 s ago")
    record.now_s += 1
    record.finish(ADA, mine)
    assert amounts(board_of(record).donors[record.workers[ADA][1]].tally)[:2] == (
        0,
        credit_of(record, ADA),
    )


def test_a_friend_cannot_be_spared(record: Any) -> None:
    """What the published draw selected and nobody audited never becomes final."""
    record.publish_draw(0)
    grow_old(record)
    record.now_s += 100_000
    friend = record.credits_of(ADA, 0, "training")
    refuse(record, record.final_leaf(ADA, friend), "the draw chose it for an audit")
    assert board_of(record).audits.unaudited == 3


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.UNAVAILABLE])
def test_what_an_audit_spoke_against_is_not_final(record: Any, verdict: Verdict) -> None:
    record.publish_draw(0)
    record.judge(0, ADA, verdict)
    record.now_s += 100_000
    words = "convicts its donor" if verdict == Verdict.FAILED else "its audit said unavailable"
    refuse(record, record.final_leaf(ADA, record.credits_of(ADA, 0, "training")), words)


def test_a_conviction_holds_what_was_pending_even_before_it_is_taken(record: Any) -> None:
    record.publish_draw(0)
    record.judge(0, LAPTOP)
    record.judge(0, BOB, Verdict.FAILED)
    record.now_s += 100_000
    of_laptop = record.credits_of(LAPTOP, 0)
    refuse(record, record.final_leaf(LAPTOP, of_laptop), "convicts its donor")
    record.judge(0, BOB, Verdict.OVERTURNED, why=Why.APPEAL)
    record.finish(LAPTOP, of_laptop)
    record.finish(BOB, record.credits_of(BOB, 0))
    assert board_of(record).donors[record.workers[BOB][1]].tally.pending_microcredits == 0


@pytest.mark.parametrize(("whose", "index", "words"), [(BOB, 0, "another donor's"), (ADA, 1, "no")])
def test_final_credit_is_ones_own(record: Any, whose: int, index: int, words: str) -> None:
    listed = record.credits_of(ADA, 0, "training") if words != "no" else [index]
    refuse(record, record.final_leaf(whose, listed), words)


# ---- reversals ----


def test_a_proven_cheat_forfeits_all_that_is_pending(record: Any) -> None:
    record.judge(0, LAPTOP)
    verdict = record.judge(0, BOB, Verdict.FAILED)
    all_of_bob = sorted(record.credits_of(BOB) + record.credits_of(LAPTOP))
    record.reverse(BOB, all_of_bob, verdict)
    record.block(BOB)
    board = board_of(record)
    bob = board.donors[record.workers[BOB][1]]
    assert amounts(bob.tally) == (0, 0, credit_of(record, BOB, LAPTOP), 0)
    assert amounts(board.total)[:3] == (credit_of(record, ADA), 0, credit_of(record, BOB, LAPTOP))
    assert record.workers[BOB][0] in board.audits.blocked
    refuse(record, record.reversal_leaf(BOB, all_of_bob, verdict), "which is forfeited")

    over = record.judge(0, BOB, Verdict.OVERTURNED, why=Why.APPEAL)
    refuse(record, record.reversal_leaf(BOB, all_of_bob, over), "takes nothing back")
    refuse(record, record.reversal_leaf(BOB, all_of_bob, verdict, restored=True), "no verdict")
    record.reverse(BOB, all_of_bob, over, restored=True, reason="overturned")
    record.block(BOB, blocked=False)
    board = board_of(record)
    assert amounts(board.total) == (credit_of(record, ADA, BOB, LAPTOP), 0, 0, 0)
    assert not board.audits.blocked
    again = record.reversal_leaf(BOB, all_of_bob, over, restored=True)
    refuse(record, again, "no verdict took that")


def test_false_work_is_taken_back_even_when_it_was_final(record: Any) -> None:
    record.publish_draw(0)
    record.judge(0, ADA)
    record.judge(0, BOB)
    record.judge(0, LAPTOP, Verdict.INCONCLUSIVE)
    record.now_s += 100_000
    for worker in (BOB, LAPTOP):
        record.finish(worker, record.credits_of(worker, 0, "training"))
    record.settle({BOB: 2})
    verdict = record.judge(1, BOB, Verdict.FAILED)
    final = record.credits_of(LAPTOP, 0, "training")
    refuse(record, record.reversal_leaf(BOB, final, verdict), "which is final")
    record.reverse(BOB, record.credits_of(BOB, 1), verdict)
    board = board_of(record)
    assert board.donors[record.workers[BOB][1]].tally.final_microcredits > 0


def test_final_work_that_is_judged_false_later_is_forfeited(record: Any) -> None:
    """A retained contribution, not drawn at first, is audited because of another one."""
    for _ in range(2):
        record.judge(record.round - 1, ADA)
        record.settle({ADA: 1})
    while record.is_drawn(record.round, ADA, 500_000):
        record.settle({ADA: 1})
    spared = record.round
    record.settle({ADA: 1}, chances={ADA: 500_000})
    record.publish_draw(spared)
    record.now_s += 100_000
    listed = record.credits_of(ADA, spared, "training")
    record.finish(ADA, listed)
    verdict = record.judge(spared, ADA, Verdict.FAILED, why=Why.RETAINED)
    record.reverse(ADA, listed, verdict)
    tally = board_of(record).donors[record.workers[ADA][1]].tally
    assert tally.forfeited_microcredits == record.credit_leaf(listed[0]).microcredits


def test_what_is_unavailable_costs_that_unit_alone(record: Any) -> None:
    verdict = record.judge(0, BOB, Verdict.UNAVAILABLE)
    mine, other = record.credits_of(BOB, 0), record.credits_of(LAPTOP, 0)
    refuse(record, record.reversal_leaf(BOB, other, verdict), "not the work")
    record.reverse(BOB, mine, verdict, reason="unavailable")
    tally = board_of(record).donors[record.workers[BOB][1]].tally
    assert amounts(tally) == (credit_of(record, LAPTOP), 0, 0, credit_of(record, BOB))
    refuse(record, record.reversal_leaf(BOB, mine, verdict), "which is unpaid")


def test_reversals_need_a_verdict_of_that_donor_and_the_right_sum(record: Any) -> None:
    failed = record.judge(0, BOB, Verdict.FAILED)
    passed = record.judge(0, ADA)
    idle = record.judge(0, ADA, Verdict.UNAVAILABLE, subject="reducing", chunk=1)
    ada, bob = record.credits_of(ADA, 0, "training"), record.credits_of(BOB, 0)
    for leaf, words in (
        (record.reversal_leaf(ADA, ada, failed), "does not convict this donor"),
        (record.reversal_leaf(ADA, ada, passed), "takes nothing back"),
        (record.reversal_leaf(ADA, record.credits_of(ADA), idle), "takes nothing back"),
        (record.reversal_leaf(ADA, ada, 0), "is no verdict"),
        (record.reversal_leaf(BOB, ada, failed), "another donor's"),
        (record.reversal_leaf(BOB, bob, failed, microcredits=1), "its credits are"),
        (record.reversal_leaf(BOB, bob, failed, restored=True), "no verdict took that"),
    ):
        refuse(record, leaf, words)
    reducing = record.judge(0, ADA, Verdict.FAILED, subject="reducing", chunk=2)
    record.reverse(ADA, record.credits_of(ADA), reducing)
    assert board_of(record).donors[record.workers[ADA][1]].tally.pending_microcredits == 0
