"""The queue of replays: who gets which job, and that nobody gets one twice."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.dialects import postgresql

from coordinator.audit import jobs
from coordinator.audit.schema import DONE, QUEUED, RUNNING, AuditJobRow, AuditorRow, AuditRow
from coordinator.database import Database
from protocol.audit_policy import Why
from protocol.envelope import seal
from protocol.errors import BadRecord
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

NOW_S = 1_800_000_100.0
LEASE_S = 60.0
ADA, BOB, EVE = (Identity.from_seed(bytes([n]) * 32) for n in (201, 202, 203))


class Desk:
    """Auditors at one queue, on a clock of the test's."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.now_s = NOW_S

    def ask(self, who: Identity, execution: str = "cpu") -> bytes | None:
        with self.queue.database.session() as session:
            spec = jobs.claim(session, who.peer_id, execution, self.now_s, LEASE_S)
        return None if spec is None else spec.job_id

    def finish(self, who: Identity, job_id: bytes) -> bool:
        result = seal(wire.AuditResult(job_id=job_id, auditor=who.peer_id), who)
        with self.queue.database.session() as session:
            return jobs.finish(session, job_id, who.peer_id, result, self.now_s)

    def suspend(self, who: Identity) -> None:
        with self.queue.database.session() as session:
            session.get_one(AuditorRow, who.peer_id).suspended_reason = "outvoted twice"


@pytest.fixture
def desk(audit_queue: Any) -> Desk:
    return Desk(audit_queue)


def test_jobs_go_out_oldest_first_with_public_inputs_only(desk: Desk) -> None:
    first, second = desk.queue.add(steps=3), desk.queue.add()
    with desk.queue.database.session() as session:
        spec = jobs.claim(session, ADA.peer_id, "cpu", NOW_S, LEASE_S)
    assert spec is not None
    task = desk.queue.tasks[first]
    assert (spec.job_id, spec.worker, spec.steps, spec.seed) == (first, task.worker, 3, task.seed)
    assert spec.state_digest == desk.queue.state_digest
    assert desk.ask(BOB) == second
    assert desk.ask(BOB) is None
    held = desk.queue.job(first)
    assert (held["status"], held["auditor"]) == (RUNNING, ADA.peer_id)
    assert held["leased_until_s"] == NOW_S + LEASE_S


def test_what_a_conviction_asks_for_comes_after_what_draws_ask_for(desk: Desk) -> None:
    retained, drawn = desk.queue.add(), desk.queue.add()
    with desk.queue.database.session() as session:
        job = session.get_one(AuditJobRow, retained)
        session.get_one(AuditRow, job.audit_id).why = Why.RETAINED
        session.flush()
        assert (jobs.backlog(session), jobs.backlog(session, retained=False)) == (2, 1)
    assert desk.ask(ADA) == drawn
    assert desk.ask(BOB) == retained


def test_a_lease_that_ends_goes_to_the_next_and_the_late_result_is_dropped(desk: Desk) -> None:
    job_id = desk.queue.add()
    assert desk.ask(ADA) == job_id
    desk.now_s += LEASE_S - 1
    assert desk.ask(BOB) is None
    desk.now_s += 2
    assert desk.ask(BOB) == job_id
    assert not desk.finish(ADA, job_id)
    assert desk.finish(BOB, job_id)
    assert not desk.finish(BOB, job_id)
    held = desk.queue.job(job_id)
    assert (held["status"], held["auditor"], held["attempts"]) == (DONE, BOB.peer_id, 2)
    with desk.queue.database.session() as session:
        assert session.get_one(AuditorRow, BOB.peer_id).jobs_done == 1
        assert session.get_one(AuditorRow, ADA.peer_id).jobs_done == 0
        assert jobs.backlog(session) == 0


def test_a_renewed_lease_holds(desk: Desk) -> None:
    job_id = desk.queue.add()
    assert desk.ask(ADA) == job_id
    for _ in range(3):
        desk.now_s += LEASE_S - 1
        with desk.queue.database.session() as session:
            assert jobs.renew(session, job_id, ADA.peer_id, "cpu", desk.now_s, LEASE_S)
        assert desk.ask(BOB) is None
    desk.now_s += LEASE_S + 1
    assert desk.ask(BOB) == job_id
    with desk.queue.database.session() as session:
        assert not jobs.renew(session, job_id, ADA.peer_id, "cpu", desk.now_s, LEASE_S)


@pytest.mark.parametrize("counted", [False, True])
def test_what_is_given_back_is_queued_again(desk: Desk, counted: bool) -> None:
    job_id = desk.queue.add()
    assert desk.ask(ADA) == job_id
    with desk.queue.database.session() as session:
        assert jobs.give_back(session, BOB.peer_id, counted=True) == 0
        assert jobs.give_back(session, ADA.peer_id, counted=counted) == 1
    held = desk.queue.job(job_id)
    assert (held["status"], held["auditor"]) == (QUEUED, None)
    assert held["attempts"] == counted
    assert desk.ask(BOB) == job_id


def test_a_suspended_auditor_gets_nothing_and_is_waited_for_by_nobody(desk: Desk) -> None:
    assert desk.ask(ADA) is None and desk.ask(BOB) is None  # both are known now
    desk.suspend(ADA)
    job_id = desk.queue.add(avoid_auditors=[BOB.peer_id])
    assert desk.ask(ADA) is None
    assert desk.ask(BOB) == job_id


def test_a_second_opinion_waits_for_another_auditor_while_one_lives(desk: Desk) -> None:
    assert desk.ask(BOB) is None
    job_id = desk.queue.add(avoid_auditors=[ADA.peer_id])
    assert desk.ask(ADA) is None
    desk.now_s += jobs.ALIVE_S + 1
    assert desk.ask(ADA) == job_id


def test_another_class_is_preferred_while_one_lives(desk: Desk) -> None:
    assert desk.ask(BOB, "cuda") is None
    job_id = desk.queue.add(avoid_executions=["cpu"])
    assert desk.ask(ADA) is None
    assert desk.ask(BOB, "cuda") == job_id


def test_an_insisting_job_waits_for_another_class_for_ever(desk: Desk) -> None:
    job_id = desk.queue.add(avoid_executions=["cpu"], insists=True)
    desk.now_s += 10 * jobs.ALIVE_S
    assert desk.ask(ADA) is None
    assert desk.ask(BOB, "cpu-bf16") == job_id


def test_wishes_that_contradict_each_other_never_leave_a_job_undone(desk: Desk) -> None:
    """Everybody alive is unwanted for some reason: the least unwanted does it."""
    assert desk.ask(ADA) is None and desk.ask(BOB, "cuda") is None
    job_id = desk.queue.add(avoid_auditors=[ADA.peer_id], avoid_executions=["cuda"])
    assert desk.ask(ADA) is None
    assert desk.ask(BOB, "cuda") == job_id


def test_an_insisting_job_does_not_wait_for_whoever_may_not_do_it(desk: Desk) -> None:
    assert desk.ask(BOB) is None
    insisting = {"avoid_executions": ["cpu"], "insists": True}
    job_id = desk.queue.add(avoid_auditors=[ADA.peer_id], **insisting)
    assert desk.ask(ADA, "cuda") == job_id


def test_an_unknown_execution_class_is_refused(desk: Desk) -> None:
    with pytest.raises(BadRecord, match="execution is"):
        desk.ask(EVE, "quantum")


def test_each_job_is_claimed_once_by_auditors_that_race(desk: Desk) -> None:
    wanted = {desk.queue.add() for _ in range(24)}
    claimed: list[bytes] = []
    barrier = threading.Barrier(6)

    def race(number: int) -> None:
        auditor = Identity.from_seed(bytes([100 + number]) * 32)
        database = Database(desk.queue.database.url)
        barrier.wait()
        while True:
            with database.session() as session:
                spec = jobs.claim(session, auditor.peer_id, "cpu", NOW_S, LEASE_S)
            if spec is None:
                break
            claimed.append(spec.job_id)
        database.close()

    threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(wanted)


def test_postgresql_skips_rows_that_another_auditor_has_locked() -> None:
    statement = select(AuditJobRow).with_for_update(skip_locked=True)
    compiled = str(statement.compile(dialect=postgresql.dialect()))
    assert compiled.endswith("FOR UPDATE SKIP LOCKED")
