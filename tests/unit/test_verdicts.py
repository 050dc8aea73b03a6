"""From the draw to the last appeal, on the real engine; every test folds the public record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import func, select

from coordinator.audit import trust
from coordinator.audit.appeal import MOST_UNDECIDED, accept_appeal
from coordinator.audit.begin import audit_id_of
from coordinator.audit.challenges import retain_from_round
from coordinator.audit.finality import finish_credit
from coordinator.audit.reducer_audit import advance
from coordinator.audit.schema import (
    DECIDED,
    DONE,
    FINAL,
    FORFEITED,
    OPENING,
    PENDING,
    UNPAID,
    WAITING,
    AuditJobRow,
    AuditRow,
    DrawRow,
    OpeningRow,
    OtherCreditRow,
    ProbationRow,
    ReducerAuditRow,
    SuspensionRow,
)
from coordinator.audit.selection import publish_draws
from coordinator.audit.verdict import convict_reducer, record_verdict
from coordinator.blocks import AUDIT, BlockList, reason_for
from coordinator.context import AuditOptions
from coordinator.schema import AssignmentRow, ContributionRow, RosterRow
from coordinator.suspensions import FIRST_ROUNDS
from coordinator.turn import Turn
from ledger.records import ReversalLeaf, parse_leaf
from ledger.schema import LogLeaf
from protocol.audit_policy import PPM, Verdict, Why
from protocol.draw import audited_results, check_preimage, draw, is_selected
from protocol.envelope import open_envelope
from protocol.errors import BadRecord, NotFound, TooLate, UsageError
from protocol.wire import records_pb2 as wire

T = TypeVar("T")

POLICY = {
    "p_min": 0.5,
    "probation_passes": 2,
    "probation_steps": 0,
    "reducer_passes": 0,
    "pending_contributions": 2,
    "pending_s": 10.0,
    "last_pending_s": 1000.0,
    "p_second_auditor": 0.0,
}


@pytest.fixture
def start(boot: Any) -> Callable[..., Any]:
    """``await start(p_min=1.0)``: a run whose units earn something, with an anchor."""

    async def make(**policy: Any) -> Any:
        rig = await boot(
            inner={"max_steps": 100}, verification={**POLICY, **policy}, rig={"sequences": 400_000}
        )
        rig.enrol(1, anchor=True)
        return rig

    return make


def turn_of(rig: Any, work: Callable[[Turn], T]) -> T:
    """One transaction of the engine, as the desk makes them."""
    with rig.database.session() as session:
        turn = Turn(rig.engine.context, session, rig.now_s)
        result = work(turn)
        if turn.then.leaves_added:
            session.flush()
    return result


def decide(rig: Any, verdict: Verdict, round_: int, worker: Any, **changes: Any) -> None:
    """Give a verdict on a worker's newest audit of a round."""

    def work(turn: Turn) -> None:
        row = turn.session.scalars(
            select(AuditRow)
            .where(AuditRow.round == round_, AuditRow.worker == worker.name)
            .order_by(AuditRow.appeal.desc())
            .limit(1)
        ).one()
        record_verdict(turn, row, verdict, changes.get("reason", "replay_differs"), [], [])

    turn_of(rig, work)


def credits_of(rig: Any, worker: Any) -> list[str]:
    """Status of a worker's merged contributions, by round."""
    with rig.database.session() as session:
        rows = select(ContributionRow.credit).where(ContributionRow.worker == worker.name)
        return list(session.scalars(rows.order_by(ContributionRow.round)))


def audits_of(rig: Any, worker: Any) -> list[tuple[int, str, str, str | None]]:
    """(round, phase, why, verdict) of every audit of a worker."""
    with rig.database.session() as session:
        rows = select(AuditRow).where(AuditRow.worker == worker.name)
        found = session.scalars(rows.order_by(AuditRow.round, AuditRow.appeal))
        return [(row.round, row.phase, row.why, row.verdict) for row in found]


def passes(rig: Any, worker: Any) -> int:
    with rig.database.session() as session:
        return trust.passes_of(session, worker.name, "cpu")


async def play(rig: Any, rounds: int, *workers: Any, execution: str = "cpu") -> None:
    for _ in range(rounds):
        for worker in workers:
            await worker.lease()
        for worker in workers:
            worker.train()
            await worker.commit(execution=execution)
        await rig.gather()
        await rig.submit(rig.results())
        assert await rig.engine.settle()
        await rig.engine.evaluate()
        rig.now_s += 1.0


async def earn(rig: Any, *workers: Any, execution: str = "cpu") -> None:
    """Two audited passes for each: the trust that these runs ask for."""
    for _ in range(2):
        await play(rig, 1, *workers, execution=execution)
        for worker in workers:
            decide(rig, Verdict.PASSED, rig.head().round - 1, worker, reason="replay_agrees")


def reason_of_block(rig: Any, worker: Any) -> str | None:
    with rig.database.session() as session:
        return reason_for(session, worker.name, worker.name)


def watch_once(rig: Any, worker: Any) -> None:
    """Make the next audit certain: what is drawn is chance, and tests are not."""
    why = Why.INCONCLUSIVE_BEFORE
    turn_of(rig, lambda turn: trust.watch(turn.session, worker.name, "cpu", why))


# ---- selection ----


async def test_newcomers_are_audited_by_a_draw_that_anybody_can_check(start: Any) -> None:
    rig = await start()
    ada, bob = rig.enrol(2), rig.enrol(3)
    await play(rig, 1, ada, bob)
    assert [why for _, _, why, _ in audits_of(rig, ada)] == [Why.NEWCOMER]
    assert not turn_of(rig, publish_draws)  # projections are awaited
    for worker in (ada, bob):
        decide(rig, Verdict.PASSED, 0, worker)
    assert turn_of(rig, publish_draws)
    assert not turn_of(rig, publish_draws)
    board = rig.board()
    assert board.audits.draws.keys() == {0}
    assert (passes(rig, ada), board.workers[ada.name].passes) == (1, {"cpu": 1})
    with rig.database.session() as session:
        row = session.get_one(DrawRow, 0)
        roster = session.scalars(select(RosterRow)).one()
        payload = wire.Envelope.FromString(roster.inclusion).payload
        assert hashlib.sha256(payload).digest() == row.inclusion_digest
        preimage = rig.keys.draws.preimage(0)
        check_preimage(preimage, 0, rig.keys.draws.tip)
        value = draw(preimage, row.inclusion_digest)
        chunks = select(ReducerAuditRow.chunk).where(ReducerAuditRow.phase == OPENING)
        assert list(session.scalars(chunks)) == audited_results(value, rig.layout.count, 1)
        for audit in session.scalars(select(AuditRow)):
            assert audit.draw == value
            assert audit.audit_id == audit_id_of(audit.assignment_id)
            assert session.get_one(ContributionRow, audit.assignment_id).chance_ppm == PPM
        jobs = session.scalars(select(AuditJobRow)).all()
        assert [(job.ordinal, job.insists) for job in jobs] == [(1, False)] * 2


async def test_the_trusted_are_sampled_exactly_as_the_draw_says(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await earn(rig, ada)
    await play(rig, 6, ada)
    with rig.database.session() as session:
        audited = set(session.scalars(select(AuditRow.assignment_id)))
        for row in session.scalars(select(ContributionRow).where(ContributionRow.round >= 2)):
            digest = session.get_one(DrawRow, row.round).inclusion_digest
            value = draw(rig.keys.draws.preimage(row.round), digest)
            chosen = is_selected(value, row.assignment_id, 500_000)
            assert chosen == (row.assignment_id in audited)
            assert row.chance_ppm == 500_000
    rig.board()


async def test_draws_are_published_in_order_and_none_before_its_projections(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await play(rig, 3, ada)
    decide(rig, Verdict.PASSED, 2, ada)  # a later preimage would give the earlier ones away
    assert not turn_of(rig, publish_draws)
    with rig.database.session() as session:
        waiting = session.scalars(select(AuditRow).where(AuditRow.phase == WAITING)).all()
        for row in waiting:
            row.phase = OPENING
    assert turn_of(rig, publish_draws)
    assert rig.board().audits.draws.keys() == {0, 1, 2}


async def test_a_first_unit_that_is_never_shown_holds_up_no_draw(start: Any) -> None:
    rig = await start(probation_steps=2)
    ada, eve = rig.enrol(2), rig.enrol(3)
    turn_of(rig, lambda turn: trust.add_pass(turn.session, ada.name, "cpu"))
    assert (await eve.lease()).round == 0
    await eve.commit()
    await play(rig, 1, ada)
    decide(rig, Verdict.PASSED, 0, ada)
    assert [audit[1] for audit in audits_of(rig, eve)] == [WAITING]
    assert turn_of(rig, publish_draws)


async def test_another_execution_class_is_audited_and_trusted_apart(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await earn(rig, ada)
    await earn(rig, ada, execution="cpu-bf16")
    await play(rig, 1, ada)
    whys = [why for _, _, why, _ in audits_of(rig, ada)]
    assert whys == [Why.NEWCOMER] * 4 + [Why.DEVICE_CHANGED]
    assert rig.board().workers[ada.name].passes == {"cpu": 2, "cpu-bf16": 2}


# ---- verdicts ----


async def test_a_cheat_loses_all_that_is_pending_and_is_sent_away(start: Any) -> None:
    rig = await start()
    ada, eve = rig.enrol(2), rig.enrol(3)
    await earn(rig, ada, eve)
    await play(rig, 3, ada, eve)
    watch_once(rig, eve)
    await play(rig, 1, ada, eve)
    await eve.lease()
    await ada.lease()
    decide(rig, Verdict.FAILED, 5, eve)
    assert credits_of(rig, eve) == [FORFEITED] * 6
    assert credits_of(rig, ada) == [PENDING] * 6
    assert passes(rig, eve) == 0
    after = audits_of(rig, eve)
    assert [round_ for round_, *_ in after] == list(range(6))  # all that is retained
    assert {why for _, _, why, _ in after[2:5]} <= {Why.SAMPLED, Why.RETAINED}
    with pytest.raises(UsageError, match=r"blocked: round 5, verdict replay_differs"):
        await eve.request()
    ada.train()
    await ada.commit()  # eve's lease is gone: the round closes without her
    assert [m.worker for m in rig.roster()[0].members] == [ada.name]
    board = rig.board()
    assert board.donors[eve.name].tally.forfeited_microcredits == 6 * 2
    assert board.donors[eve.name].tally.total_microcredits == 0
    decide(rig, Verdict.PASSED, 5, eve)  # a verdict is given once
    assert rig.board().size == board.size


async def test_a_convicted_members_commitment_is_left_out_of_the_reduce(start: Any) -> None:
    rig = await start()
    ada, eve = rig.enrol(2), rig.enrol(3)
    await play(rig, 1, ada, eve)
    for worker in (ada, eve):
        await worker.lease()
        worker.train()
    await eve.commit()
    decide(rig, Verdict.FAILED, 0, eve)
    await ada.commit()
    assert [m.worker for m in rig.roster()[0].members] == [ada.name]
    await rig.gather([ada])
    await rig.submit(rig.results())
    assert await rig.engine.settle()
    assert rig.board().total.contributions == 3


async def test_what_cannot_be_had_costs_that_unit_and_another_audit(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await earn(rig, ada)
    watch_once(rig, ada)
    await play(rig, 1, ada)
    decide(rig, Verdict.UNAVAILABLE, 2, ada, reason="chunks_unavailable")
    assert credits_of(rig, ada) == [PENDING, PENDING, UNPAID]
    assert passes(rig, ada) == 2
    await play(rig, 1, ada)
    assert audits_of(rig, ada)[-1][2] == Why.UNAVAILABLE_BEFORE
    decide(rig, Verdict.INCONCLUSIVE, 3, ada, reason="between_bounds")
    await play(rig, 1, ada)
    assert audits_of(rig, ada)[-1][2] == Why.INCONCLUSIVE_BEFORE
    decide(rig, Verdict.LOST, 4, ada, reason="weights_lost")
    await play(rig, 1, ada)
    with rig.database.session() as session:
        chances = select(ContributionRow.chance_ppm).order_by(ContributionRow.round)
        assert list(session.scalars(chances))[2:] == [PPM, PPM, PPM, 500_000]  # once is enough
    assert credits_of(rig, ada) == [PENDING, PENDING, UNPAID] + [PENDING] * 3
    rig.board()


async def test_verdicts_are_signed_and_name_what_decided(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await play(rig, 1, ada)
    finding = wire.Finding(what="chunk", chunk=3, distance=0.5, bound=0.1)

    def work(turn: Turn) -> None:
        row = turn.session.scalars(select(AuditRow)).one()
        record_verdict(turn, row, Verdict.FAILED, "replay_differs", [finding], [b"r" * 32])

    turn_of(rig, work)
    with rig.database.session() as session:
        row = session.scalars(select(AuditRow)).one()
        envelope = wire.Envelope.FromString(row.record)
        leaf = parse_leaf(session.get_one(LogLeaf, row.leaf_index).data)
    signed = open_envelope(envelope, wire.Verdict, signer=rig.keys.round.peer_id)
    assert signed.record.verdict == "failed"
    assert signed.record.findings == [finding]
    assert list(signed.record.results) == [b"r" * 32]
    assert leaf.record_digest == hashlib.sha256(envelope.payload).hexdigest()
    rig.board()


async def test_one_donor_answers_for_all_its_devices(start: Any) -> None:
    rig = await start()
    eve, twin, ada = rig.enrol(2), rig.enrol(3, donor=2), rig.enrol(4)
    await play(rig, 1, eve, twin, ada)
    decide(rig, Verdict.FAILED, 0, eve)
    assert credits_of(rig, twin) == [FORFEITED]
    assert credits_of(rig, ada) == [PENDING]
    with pytest.raises(UsageError, match="blocked"):
        await twin.request()
    rig.board()


# ---- reducers ----


async def test_a_reducer_is_convicted_once_of_one_reduce(start: Any) -> None:
    rig = await start(probation_passes=0)
    ada, eve = rig.enrol(2), rig.enrol(3, public=True)
    await play(rig, 2, ada, eve)
    with rig.database.session() as session:
        row = session.scalars(select(OtherCreditRow).where(OtherCreditRow.worker == eve.name))
        assert {credit.credit for credit in row} == {PENDING}
        group = session.get_one(DrawRow, 0).group_id

    def work(turn: Turn) -> None:
        for chunk in (0, 0, 1):
            convict_reducer(turn, eve.name, 0, group, chunk, "false_projection")

    turn_of(rig, work)
    board = rig.board()
    assert board.audits.verdicts["failed"] == 1
    assert board.donors[eve.name].tally.total_microcredits == 0
    assert credits_of(rig, eve) == [FORFEITED] * 2
    with rig.database.session() as session:
        other = select(OtherCreditRow.credit).where(OtherCreditRow.worker == eve.name)
        assert set(session.scalars(other)) == {FORFEITED}
        assert "reducer" in str(reason_for(session, eve.name, eve.name))


async def test_a_reducer_that_shows_no_inputs_reduces_no_more_for_ever_longer(start: Any) -> None:
    rig = await start(audited_results=64)
    ada = rig.enrol(2, public=True)
    left_out = []
    for _ in range(2):
        await play(rig, 1, ada)
        await rig.pass_time(AuditOptions().patience_s, heard=rig.members.values())

        def give_up(turn: Turn) -> int:
            rows = select(ReducerAuditRow).where(ReducerAuditRow.phase != DECIDED)
            for row in turn.session.scalars(rows).all():
                assert advance(turn, row)
            left_out_until = turn.session.scalars(select(SuspensionRow.until_round)).one()
            turn.session.scalars(select(SuspensionRow)).one().until_round = 0  # as if it were over
            return left_out_until - turn.machine.number - 1

        left_out.append(turn_of(rig, give_up))
    assert left_out == [FIRST_ROUNDS, 2 * FIRST_ROUNDS]
    assert reason_of_block(rig, ada) is None
    assert FORFEITED not in credits_of(rig, ada)
    rig.board()


async def test_a_chunk_that_passed_can_still_convict_by_other_evidence(start: Any) -> None:
    rig = await start(audited_results=64)
    ada, eve = rig.enrol(2), rig.enrol(3, public=True)
    await play(rig, 1, ada)

    def work(turn: Turn) -> None:
        rows = turn.session.scalars(select(ReducerAuditRow)).all()
        assert len(rows) == rig.layout.count
        for row in rows:
            record_verdict(turn, row, Verdict.PASSED, "equal")
        first = rows[0]
        convict_reducer(turn, eve.name, 0, first.group_id, first.chunk, "equivocation")

    turn_of(rig, work)
    with rig.database.session() as session:
        found = session.execute(
            select(ReducerAuditRow.verdict, func.count()).group_by(ReducerAuditRow.verdict)
        )
        assert dict(found.all()) == {"passed": rig.layout.count, "failed": 1}
    rig.board()


# ---- final credit ----


async def test_credit_is_final_after_time_and_later_contributions(start: Any) -> None:
    rig = await start(pending_s=3.0)
    ada = rig.enrol(2)
    await play(rig, 4, ada)
    turn_of(rig, finish_credit)
    assert credits_of(rig, ada) == [PENDING] * 4  # no audit is decided
    for round_ in (0, 1, 3):
        decide(rig, Verdict.PASSED, round_, ada)
    rig.now_s += 5.0
    turn_of(rig, finish_credit)
    assert credits_of(rig, ada) == [PENDING] * 4  # no draw is published
    turn_of(rig, publish_draws)
    rig.now_s += 5.0
    turn_of(rig, finish_credit)
    assert credits_of(rig, ada) == [FINAL, FINAL, PENDING, PENDING]  # two later ones each
    decide(rig, Verdict.INCONCLUSIVE, 2, ada)
    rig.now_s += 1000.0
    turn_of(rig, publish_draws)
    turn_of(rig, finish_credit)
    assert credits_of(rig, ada) == [FINAL] * 4
    tally = rig.board().donors[ada.name].tally
    assert (tally.final_microcredits, tally.pending_microcredits) == (8, 0)


async def test_reducing_becomes_final_too_once_nothing_is_open(start: Any) -> None:
    rig = await start(last_pending_s=50.0)
    ada = rig.enrol(2)
    await play(rig, 1, ada)
    rig.now_s += 60.0
    turn_of(rig, finish_credit)
    statuses = select(OtherCreditRow.credit)
    with rig.database.session() as session:
        assert list(session.scalars(statuses)) == [PENDING]  # a result chunk is being audited
        audit = session.scalars(select(ReducerAuditRow)).one().audit_id

    def work(turn: Turn) -> None:
        row = turn.session.get_one(ReducerAuditRow, audit)
        record_verdict(turn, row, Verdict.UNAVAILABLE, "inputs_unavailable")

    turn_of(rig, work)
    turn_of(rig, finish_credit)  # too soon after the last look
    rig.now_s += 5.0
    turn_of(rig, finish_credit)
    with rig.database.session() as session:
        assert list(session.scalars(statuses)) == [FINAL]
    rig.board()


async def test_final_credit_falls_only_with_the_very_work_that_was_false(start: Any) -> None:
    rig = await start(pending_s=0.0, pending_contributions=2, audited_results=0)
    ada = rig.enrol(2)
    await play(rig, 4, ada)
    for round_ in range(4):
        if round_ != 3:
            decide(rig, Verdict.PASSED, round_, ada)
    turn_of(rig, publish_draws)
    rig.now_s += 5.0
    turn_of(rig, finish_credit)
    assert credits_of(rig, ada) == [FINAL, FINAL, PENDING, PENDING]
    decide(rig, Verdict.FAILED, 3, ada)
    assert credits_of(rig, ada) == [FINAL, FINAL, FORFEITED, FORFEITED]
    rig.board()


# ---- appeals ----


def appeal(rig: Any, worker: Any, round_: int) -> str:
    with rig.database.session() as session:
        assignment_id = session.scalars(
            select(ContributionRow.assignment_id).where(
                ContributionRow.round == round_, ContributionRow.worker == worker.name
            )
        ).one()
    record = wire.Appeal(run_id=rig.run_id, worker=worker.name, assignment_id=assignment_id)
    return turn_of(rig, lambda turn: accept_appeal(turn, worker.sign(record)).message)


def replayed(rig: Any, worker: Any, round_: int, execution: str) -> None:
    """A finished replay and an opened chunk, as the desk leaves them behind."""

    def work(turn: Turn) -> None:
        row = turn.session.scalars(
            select(AuditRow)
            .where(AuditRow.round == round_, AuditRow.worker == worker.name)
            .order_by(AuditRow.appeal.desc())
            .limit(1)
        ).one()
        job = turn.session.scalars(
            select(AuditJobRow).where(AuditJobRow.audit_id == row.audit_id)
        ).one()
        result = wire.AuditResult(job_id=job.job_id, execution=execution)
        job.status, job.result = DONE, turn.context.sign(result).SerializeToString()
        row.chunks = "[5]"
        if not row.appeal:
            opening = {"member": worker.name, "chunk": 5, "encoded": b"five", "proof": b""}
            turn.session.add(OpeningRow(audit_id=row.audit_id, **opening))

    turn_of(rig, work)


async def test_an_appeal_that_passes_elsewhere_gives_everything_back(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await play(rig, 2, ada)
    replayed(rig, ada, 0, "cpu")
    decide(rig, Verdict.FAILED, 0, ada)
    assert credits_of(rig, ada) == [FORFEITED] * 2
    assert "another kind of device than cpu" in appeal(rig, ada, 0)
    assert "is open already" in appeal(rig, ada, 0)
    with rig.database.session() as session:
        row = session.scalars(select(AuditRow).where(AuditRow.appeal == 1)).one()
        assert (row.phase, row.why, row.chunks) == (OPENING, Why.APPEAL, "[5]")
        job = session.scalars(select(AuditJobRow).where(AuditJobRow.audit_id == row.audit_id)).one()
        assert job.insists
        assert json.loads(job.avoid_executions) == ["cpu"]
        assert session.get_one(OpeningRow, (row.audit_id, ada.name, 5)).encoded == b"five"
    decide(rig, Verdict.PASSED, 0, ada)
    assert audits_of(rig, ada)[1][3] == Verdict.OVERTURNED
    assert credits_of(rig, ada) == [PENDING] * 2
    assert (await ada.request()).HasField("assignment")
    assert "was overturned" in appeal(rig, ada, 0)
    tally = rig.board().donors[ada.name].tally
    assert (tally.pending_microcredits, tally.forfeited_microcredits) == (4, 0)


async def test_credit_comes_back_only_when_no_conviction_stands(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await play(rig, 3, ada)
    for round_ in (0, 1):
        replayed(rig, ada, round_, "cpu")
        decide(rig, Verdict.FAILED, round_, ada)
        appeal(rig, ada, round_)
    decide(rig, Verdict.PASSED, 0, ada)
    assert credits_of(rig, ada) == [FORFEITED] * 3
    with pytest.raises(UsageError, match="blocked"):
        await ada.request()
    decide(rig, Verdict.UNAVAILABLE, 2, ada)  # meanwhile: it stays lost
    decide(rig, Verdict.PASSED, 1, ada)
    assert credits_of(rig, ada) == [PENDING, PENDING, FORFEITED]
    assert (await ada.request()).HasField("assignment")
    rig.board()
    with rig.database.session() as session:
        leaves = [parse_leaf(leaf.data) for leaf in session.scalars(select(LogLeaf))]
    restored = [leaf for leaf in leaves if isinstance(leaf, ReversalLeaf) and leaf.restored]
    assert len(restored) == 1  # all of it was taken by the first conviction


async def test_an_appeal_that_fails_can_go_on_to_a_class_that_has_not_judged(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await play(rig, 1, ada)
    for execution in ("cpu", "cuda", "cpu-bf16", "cuda-bf16", "mps", "mps-bf16"):
        replayed(rig, ada, 0, execution)
        decide(rig, Verdict.FAILED, 0, ada)
        if execution != "mps-bf16":
            assert execution in appeal(rig, ada, 0)
    with pytest.raises(UsageError, match="no further appeal"):
        appeal(rig, ada, 0)
    rig.board()


async def test_appeals_that_nobody_can_decide_come_to_an_end(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await play(rig, 1, ada)
    replayed(rig, ada, 0, "cpu")
    decide(rig, Verdict.FAILED, 0, ada)
    for _ in range(MOST_UNDECIDED):
        appeal(rig, ada, 0)
        decide(rig, Verdict.INCONCLUSIVE, 0, ada)
    with pytest.raises(UsageError, match="could not be decided"):
        appeal(rig, ada, 0)
    rig.board()


async def test_appeals_that_cannot_be(start: Any) -> None:
    rig = await start()
    ada, bob = rig.enrol(2), rig.enrol(3)
    await play(rig, 1, ada, bob)
    decide(rig, Verdict.PASSED, 0, ada)
    with pytest.raises(UsageError, match="no verdict convicts"):
        appeal(rig, ada, 0)
    unknown = wire.Appeal(run_id=rig.run_id, worker=ada.name, assignment_id=bytes(16))
    with pytest.raises(NotFound):
        await rig.engine.appeal(ada.sign(unknown))
    unknown.assignment_id = bytes(15)
    with pytest.raises(BadRecord, match="16 bytes"):
        await rig.engine.appeal(ada.sign(unknown))
    unknown.assignment_id = bob.assignment.assignment_id
    with pytest.raises(BadRecord, match="by the device"):
        await rig.engine.appeal(ada.sign(unknown))
    replayed(rig, bob, 0, "cpu")
    decide(rig, Verdict.FAILED, 0, bob)
    rig.now_s += 8 * 24 * 3600
    with pytest.raises(TooLate):
        appeal(rig, bob, 0)
    rig.board()


async def test_the_organisers_block_outlives_an_appeal(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await play(rig, 1, ada)
    replayed(rig, ada, 0, "cpu")
    decide(rig, Verdict.FAILED, 0, ada)
    rig.block(ada.name, "rude in the chat")
    appeal(rig, ada, 0)
    decide(rig, Verdict.PASSED, 0, ada)
    with pytest.raises(UsageError, match="rude in the chat"):
        await ada.request()
    assert credits_of(rig, ada) == [PENDING]
    assert ada.name in rig.board().audits.blocked


# ---- probation ----


async def test_a_first_unit_is_paid_when_it_passes(start: Any) -> None:
    rig = await start(probation_steps=2)
    ada = rig.enrol(2)
    assert (await ada.lease()).probation
    await ada.commit()
    decide(rig, Verdict.PASSED, 0, ada, reason="replay_agrees")
    assert not (await ada.lease()).probation
    board = rig.board()
    assert board.donors[ada.name].tally.contributions == 0
    assert passes(rig, ada) == board.workers[ada.name].passes["cpu"] == 1
    with rig.database.session() as session:
        row = session.scalars(select(OtherCreditRow)).one()
        assert (row.work, row.credit) == ("probation", PENDING)
        assert session.scalars(select(ProbationRow)).one().leaf_index == row.leaf_index


async def test_a_first_unit_that_is_false_blocks_and_an_appeal_admits(start: Any) -> None:
    rig = await start(probation_steps=2)
    eve = rig.enrol(2)
    await eve.lease()
    await eve.commit()
    assignment_id = eve.assignment.assignment_id
    replayed(rig, eve, 0, "cpu")
    decide(rig, Verdict.FAILED, 0, eve)
    with pytest.raises(UsageError, match="first unit"):
        await eve.request()
    record = wire.Appeal(run_id=rig.run_id, worker=eve.name, assignment_id=assignment_id)
    await rig.engine.appeal(eve.sign(record))
    decide(rig, Verdict.PASSED, 0, eve)
    assert not (await eve.lease()).probation
    rig.board()


async def test_a_first_unit_that_nobody_can_judge_is_followed_by_another(start: Any) -> None:
    rig = await start(probation_steps=2)
    ada = rig.enrol(2)
    first = await ada.lease()
    await ada.commit()
    decide(rig, Verdict.INCONCLUSIVE, 0, ada)
    second = await ada.lease()
    assert second.probation
    assert second.assignment_id != first.assignment_id
    rig.board()


# ---- commitments ----


async def test_a_commitment_is_made_once_in_a_run(start: Any) -> None:
    rig = await start()
    ada, eve = rig.enrol(2), rig.enrol(3)
    await play(rig, 1, ada)
    root = ada.update.root
    await ada.lease()
    with pytest.raises(BadRecord, match="made before"):
        await ada.commit(commitment_root=root)
    await eve.lease()
    with pytest.raises(BadRecord, match="made before"):
        await eve.commit(commitment_root=root)


@pytest.mark.parametrize("execution", ["", "tpu", "cuda", "mps-bf16", "cpu-fp8"])
async def test_only_what_the_device_can_run_is_an_execution(start: Any, execution: str) -> None:
    rig = await start()
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    with pytest.raises(BadRecord, match="execution"):
        await ada.commit(execution=execution)
    with rig.database.session() as session:
        assert session.scalars(select(AssignmentRow.status)).one() == "training"


# ---- retention ----


async def test_what_a_conviction_needs_is_retained_until_then(start: Any) -> None:
    rig = await start(pending_s=0.0, last_pending_s=20.0, audited_results=0)
    ada = rig.enrol(2)
    await play(rig, 3, ada)
    with rig.database.session() as session:
        assert retain_from_round(session) == 0
    for round_ in range(3):
        decide(rig, Verdict.PASSED, round_, ada)
    turn_of(rig, publish_draws)
    rig.now_s += 30.0
    turn_of(rig, finish_credit)
    assert credits_of(rig, ada) == [FINAL] * 3
    with rig.database.session() as session:
        assert retain_from_round(session) == 3
        assert set(session.scalars(select(AuditRow.phase))) == {DECIDED}
    rig.board()


async def test_a_block_is_news_once(start: Any) -> None:
    rig = await start()
    ada = rig.enrol(2)

    def work(turn: Turn) -> list[bool]:
        blocks = BlockList(turn.context.log, rig.run_id, turn.session, rig.now_s)
        return [
            blocks.block(ada.name, "caught", source=AUDIT, word="failed_audit"),
            blocks.block(ada.name, "caught again", source=AUDIT, word="failed_audit"),
            blocks.unblock(ada.name, word="organiser"),
            blocks.unblock(ada.name, word="organiser"),
        ]

    assert turn_of(rig, work) == [True, False, True, False]
    assert ada.name not in rig.board().audits.blocked
