"""A new key's first unit, and what audits decide of weight and of reducing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.audit import trust
from coordinator.audit.schema import AuditJobRow, AuditRow, ProbationRow, SuspensionRow
from coordinator.audit.verdict import record_verdict
from coordinator.context import AuditOptions, EngineOptions
from coordinator.leases import consumed_batches
from coordinator.probation import pause_s
from coordinator.schema import AssignmentRow, EvidenceRow, RoundRow, WorkerRow
from coordinator.turn import Turn
from protocol.audit_policy import Verdict
from protocol.draw import SEED_BYTES
from protocol.envelope import open_envelope
from protocol.errors import BadRecord, Conflict, NotFound, TooLate, UsageError
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

WANTS_UNIT = {"probation_steps": 5, "probation_passes": 0, "reducer_passes": 0}
WANTS_TRUST = {"probation_steps": 0, "probation_passes": 2, "reducer_passes": 2}
OPTIONS = EngineOptions(heartbeat_s=0.5, audit=AuditOptions(probation_s=100.0))


@pytest.fixture
async def rig(boot: Any) -> Any:
    made = await boot(verification=WANTS_UNIT, rig={"options": OPTIONS})
    made.enrol(1, anchor=True)
    return made


def decide(rig: Any, verdict: Verdict) -> None:
    """As the desk does, once the replays are compared."""
    with rig.database.session() as session:
        turn = Turn(rig.engine.context, session, rig.now_s)
        row = session.scalars(select(AuditRow).where(AuditRow.verdict.is_(None))).one()
        record_verdict(turn, row, verdict, "test", [], [])


def trusted(rig: Any, member: Any, passes: int) -> None:
    with rig.database.session() as session:
        for _ in range(passes):
            trust.add_pass(session, member.name, "cpu")


async def test_a_new_key_gets_a_short_unit_that_no_round_knows_of(rig: Any) -> None:
    ada = rig.enrol(2)
    reply = await ada.request()
    unit = open_envelope(reply.assignment, wire.Assignment, signer=rig.keys.round.peer_id).record
    assert unit.probation
    assert 1 <= unit.steps <= 5
    batch = rig.manifest.inner.sequences_per_batch
    assert unit.end_sequence - unit.start_sequence == unit.steps * batch
    assert unit.start_sequence % batch == 0
    assert unit.deadline_ms == (rig.now_s + 100) * 1000
    head = open_envelope(reply.run_head, wire.RunHead).record
    assert (head.round, head.state_digest) == (unit.round, unit.state_digest)
    assert rig.phase() == "OPEN"
    with rig.database.session() as session:
        assert session.scalars(select(AssignmentRow)).all() == []
        assert consumed_batches(session) == 0

    again = await ada.request()
    assert again.assignment == reply.assignment
    await rig.reboot(downtime_s=5)
    assert (await ada.request()).assignment == reply.assignment
    bob = await rig.enrol(3).request()
    other = open_envelope(bob.assignment, wire.Assignment).record
    assert (other.seed, other.assignment_id) != (unit.seed, unit.assignment_id)


async def test_a_slow_machine_gets_less_and_a_still_slower_one_a_step(rig: Any) -> None:
    per_step = rig.manifest.tokens_per_step
    slow = await rig.enrol(2).lease(speed=3 * per_step / 100)
    slower = await rig.enrol(3).lease(speed=1e-6)
    unknown = await rig.enrol(4).lease(speed=0.0)
    assert (slow.steps, slower.steps, unknown.steps) == (2, 1, 5)


async def test_the_unit_starts_from_the_state_before_the_running_rounds(boot: Any) -> None:
    rig = await boot(verification=WANTS_UNIT)
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    trusted(rig, ada, 1)
    for _ in range(2):
        await rig.play_round(ada)
    reply = await rig.enrol(3).request()
    unit = open_envelope(reply.assignment, wire.Assignment).record
    head = open_envelope(reply.run_head, wire.RunHead).record
    assert (unit.round, head.settled_rounds) == (1, 1)
    assert unit.tokens_base == head.merged_tokens == 10 * rig.manifest.tokens_per_step


async def test_a_committed_unit_is_audited_and_its_key_waits(rig: Any) -> None:
    ada = rig.enrol(2)
    unit = await ada.lease()
    assert (await ada.commit()).first
    assert not (await ada.commit()).first
    with pytest.raises(Conflict):
        await ada.commit(mean_loss=4.0)
    reply = await ada.request()
    assert (reply.wait.code, reply.wait.retry_after_ms) == ("probation", 500)
    assert "auditor" in reply.wait.reason
    assert rig.phase() == "OPEN"
    with rig.database.session() as session:
        audit = session.scalars(select(AuditRow)).one()
        assert (audit.subject, audit.why) == ("probation", "probation")
        assert (audit.worker, audit.round, audit.group_id) == (ada.name, unit.round, b"")
        assert audit.execution == "cpu"
        assert len(audit.draw) == len(audit.projection_seed) == SEED_BYTES
        assert audit.draw != audit.projection_seed
        assert session.scalars(select(AuditJobRow.ordinal)).all() == [1]
        assert session.scalars(select(EvidenceRow.signer)).all() == [ada.name]


async def test_what_passes_works_and_has_a_receipt(rig: Any) -> None:
    ada = rig.enrol(2)
    unit = await ada.lease()
    with pytest.raises(NotFound, match="did not pass"):
        await rig.engine.receipt(unit.assignment_id)
    await ada.commit()
    with pytest.raises(NotFound, match="being checked"):
        await rig.engine.receipt(unit.assignment_id)
    decide(rig, Verdict.PASSED)
    assert not (await ada.lease()).probation
    await rig.engine.tick()
    with rig.database.session() as session:
        rig.log.sign_head(session)
    leaf = json.loads((await rig.engine.receipt(unit.assignment_id)).leaf)
    assert (leaf["work"], leaf["assignment_id"]) == ("probation", unit.assignment_id.hex())
    ada.train()
    await ada.commit()
    await rig.gather()
    await rig.submit(rig.results())
    assert await rig.engine.settle()


async def test_what_fails_is_out_and_hears_why(rig: Any) -> None:
    ada = rig.enrol(2)
    await ada.lease()
    await ada.commit()
    decide(rig, Verdict.FAILED)
    with pytest.raises(UsageError, match="blocked"):
        await ada.request()
    beat = await ada.beat()
    assert beat.action == service_pb2.ACTION_PAUSE
    assert "blocked" in beat.reason


@pytest.mark.parametrize("verdict", [Verdict.INCONCLUSIVE, Verdict.UNAVAILABLE, Verdict.LOST])
async def test_what_cannot_be_decided_is_followed_by_another_unit(
    rig: Any, verdict: Verdict
) -> None:
    ada = rig.enrol(2)
    first = await ada.lease()
    await ada.commit()
    decide(rig, verdict)
    second = await ada.lease()
    assert second.probation
    assert second.assignment_id != first.assignment_id


async def test_units_that_come_to_nothing_are_given_ever_more_slowly(rig: Any) -> None:
    ada = rig.enrol(2)
    for _ in range(2):
        await ada.lease()
        await ada.commit()
        decide(rig, Verdict.UNAVAILABLE)
    wait = (await ada.request()).wait
    assert (wait.code, wait.retry_after_ms) == ("probation", pause_s(2) * 1000)
    rig.now_s += pause_s(2)
    assert (await ada.lease()).probation
    assert [pause_s(lapsed) for lapsed in (0, 1, 2, 3, 10**6)] == [0, 0, 60, 120, 6 * 3600]


async def test_another_kind_of_device_shows_what_it_can_first(rig: Any) -> None:
    ada = rig.enrol(2)
    await ada.lease()
    await ada.commit()
    decide(rig, Verdict.PASSED)
    assert not (await ada.lease()).probation
    with rig.database.session() as session:
        session.get_one(WorkerRow, ada.name).device_class = "mps"
    ada.train()
    with pytest.raises(BadRecord, match="passed on mps"):
        await ada.commit(execution="mps")
    assert (await ada.lease()).probation


async def test_a_unit_that_is_late_is_refused_and_another_one_given(rig: Any) -> None:
    ada = rig.enrol(2)
    first = await ada.lease()
    beat = await ada.beat(assignment_id=first.assignment_id)
    assert beat.action == service_pb2.ACTION_KEEP
    rig.now_s += 101
    beat = await ada.beat(assignment_id=first.assignment_id)
    assert beat.action == service_pb2.ACTION_ABANDON
    with pytest.raises(TooLate, match="over"):
        await ada.commit()
    contribution = ada.contribution()
    second = await ada.lease()
    assert second.assignment_id != first.assignment_id
    with pytest.raises(TooLate):
        await rig.engine.commit(ada.sign(contribution))
    with rig.database.session() as session:
        assert session.scalars(select(AuditRow)).all() == []
        found = session.scalars(select(ProbationRow.status).order_by(ProbationRow.issued_at_s))
        assert found.all() == ["lapsed", "issued"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 6}, "leased|steps"),
        ({"state_digest": b"x" * 32}, "state_digest"),
        ({"tokens": 1}, "tokens"),
        ({"mean_loss": float("nan")}, "mean_loss"),
        ({"execution": "cuda"}, "execution"),
        ({"execution": "gpu"}, "execution"),
    ],
)
async def test_units_that_are_not_what_was_asked_for(
    rig: Any, changes: dict[str, Any], words: str
) -> None:
    ada = rig.enrol(2)
    await ada.lease()
    with pytest.raises(BadRecord, match=words):
        await ada.commit(**changes)
    assert (await ada.commit()).first


async def test_a_unit_is_its_keys_alone(rig: Any) -> None:
    ada, eve = rig.enrol(2), rig.enrol(3)
    await ada.lease()
    eve.assignment, eve.update = ada.assignment, ada.train()
    with pytest.raises(BadRecord, match="does not have"):
        await eve.commit()
    assert (await ada.commit()).first


async def test_many_new_keys_have_neither_weight_nor_ranges_before_one_passes(rig: Any) -> None:
    sybils = [rig.enrol(seed, public=True) for seed in range(10, 20)]
    honest = rig.enrol(2)
    trusted(rig, honest, 1)
    for sybil in sybils:
        assert (await sybil.lease()).probation
        await sybil.commit()
        assert (await sybil.request()).wait.code == "probation"
    await honest.lease()
    honest.train()
    await honest.commit()
    roster, _ = rig.roster()
    assert [member.worker for member in roster.members] == [honest.name]
    named = {share.reducer for share in roster.reducers}
    assert not named & {sybil.name for sybil in sybils}


async def test_the_organisers_pause_and_the_end_of_the_run_come_first(rig: Any) -> None:
    ada = rig.enrol(2)
    await rig.engine.set_paused(True)
    assert (await ada.request()).wait.code == "paused"
    await rig.engine.set_paused(False)
    assert (await ada.lease()).probation


async def test_whoever_awaits_approval_hears_so(rig: Any) -> None:
    ada = rig.enrol(2)
    with rig.database.session() as session:
        session.get_one(WorkerRow, ada.name).approved = False
    with pytest.raises(UsageError, match="yet to approve"):
        await ada.request()
    assert "yet to approve" in (await ada.beat()).reason


# ---- weight ----


async def roster_after(rig: Any, *members: Any) -> wire.Roster:
    for member in members:
        await member.lease()
    for member in members:
        member.train()
        await member.commit()
    return rig.roster()[0]


async def test_newcomers_weigh_a_quarter_of_the_trusted_median(boot: Any) -> None:
    rig = await boot(verification=WANTS_TRUST, round={"min_members": 3})
    rig.enrol(1, anchor=True)
    old, older, new = rig.enrol(2), rig.enrol(3), rig.enrol(4)
    trusted(rig, old, 2)
    trusted(rig, older, 9)
    trusted(rig, new, 1)
    roster = await roster_after(rig, old, new, older)
    tokens = 10 * rig.manifest.tokens_per_step
    assert {m.worker: m.weight for m in roster.members} == {
        old.name: tokens,
        older.name: tokens,
        new.name: tokens // 4,
    }


async def test_a_young_run_of_newcomers_weighs_them_alike(boot: Any) -> None:
    rig = await boot(verification=WANTS_TRUST, round={"min_members": 2})
    rig.enrol(1, anchor=True)
    roster = await roster_after(rig, rig.enrol(2), rig.enrol(3))
    assert len({member.weight for member in roster.members}) == 1


# ---- reducers ----


async def test_only_the_trusted_reduce_beside_the_anchor(boot: Any) -> None:
    rig = await boot(verification=WANTS_TRUST, round={"min_members": 2})
    anchor = rig.enrol(1, anchor=True)
    old, new = rig.enrol(2, public=True), rig.enrol(3, public=True)
    trusted(rig, old, 2)
    trusted(rig, new, 1)
    roster = await roster_after(rig, old, new)
    assert {share.reducer for share in roster.reducers} == {anchor.name, old.name}


async def test_without_anchor_and_trust_the_round_says_that_an_anchor_is_missing(
    boot: Any,
) -> None:
    rig = await boot(verification=WANTS_TRUST, round={"max_attempts": 1})
    ada = rig.enrol(2, public=True)
    await ada.lease()
    await ada.commit()
    assert rig.phase() == "GATHER"
    await rig.pass_time(1000)
    with rig.database.session() as session:
        row = session.get_one(RoundRow, 0)
        assert row.phase == "SKIPPED"
        assert "start an anchor" in row.reason


async def test_two_withheld_reduces_suspend_a_member_but_no_anchor(boot: Any) -> None:
    rig = await boot(verification=WANTS_TRUST, round={"max_attempts": 2})
    anchor, bob = rig.enrol(1, anchor=True), rig.enrol(2, public=True)
    trusted(rig, bob, 2)
    for number in range(2):
        await bob.lease()
        bob.train()
        await bob.commit()
        roster, _ = rig.roster()
        assert {share.reducer for share in roster.reducers} == {anchor.name, bob.name}
        await rig.gather()
        assert rig.phase() == "BROADCAST"
        withheld = [p for p in rig.results() if _reducer_of(p) != bob.name]
        await rig.submit(withheld)
        await rig.pass_time(1000, heard=[anchor, bob])
        roster, _ = rig.roster()
        assert (roster.round, roster.attempt) == (number, 2)
        assert {share.reducer for share in roster.reducers} == {anchor.name}
        await rig.gather()
        await rig.submit(rig.results())
        assert await rig.engine.settle()
        await rig.engine.evaluate()
    await bob.lease()
    bob.train()
    await bob.commit()
    assert {share.reducer for share in rig.roster()[0].reducers} == {anchor.name}
    with rig.database.session() as session:
        row = session.scalars(select(SuspensionRow)).one()
        assert (row.worker, row.withheld, row.until_round) == (bob.name, 2, 6)


def _reducer_of(piece: service_pb2.ResultPiece) -> str:
    return str(wire.ResultChunk.FromString(piece.result.payload).reducer)
