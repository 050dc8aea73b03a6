"""An auditor that stands still, or is gone: the run does not wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chaos_scripted_run import ScriptedRun, engine_rig, manifest
from sqlalchemy.orm import Session

from coordinator.admission import Admission, AdmissionPolicy
from coordinator.audit import jobs
from coordinator.audit.jobs import backlog
from coordinator.newcomers import NewcomerPolicy
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.envelope import seal
from protocol.errors import RateLimited
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

ROUNDS = 6
LEASE_S = 120.0
BACKLOG_JOBS = 8
CPU = "cpu"


@pytest.fixture
async def run(tmp_path: Path) -> Any:
    made = ScriptedRun(tmp_path, manifest(ROUNDS))  # every unit is drawn for an audit
    await made.boot()
    yield made
    made.database.close()


def auditor(number: int) -> Identity:
    return Identity.from_seed((900 + number).to_bytes(32, "big"))


def claim(run: Any, who: Identity) -> jobs.JobSpec | None:
    def take(session: Session) -> jobs.JobSpec | None:
        return jobs.claim(session, who.peer_id, CPU, run.now_s, LEASE_S)

    return run.read(take)


def finish(run: Any, who: Identity, job: jobs.JobSpec) -> bool:
    result = wire.AuditResult(run_id=run.run_id, job_id=job.job_id, auditor=who.peer_id)
    return run.read(lambda s: jobs.finish(s, job.job_id, who.peer_id, seal(result, who), run.now_s))


async def test_rounds_go_on_without_it_and_newcomers_wait(run: Any) -> None:
    began_s = run.now_s
    await run.play()  # all rounds, at the members' pace: it asserts that no lease is lost
    seconds = run.now_s - began_s
    steps = 6  # of the script in a round: two leases, two commits, the reduce, the settle
    assert seconds <= ROUNDS * (steps + 2) * 0.25
    waiting = run.read(lambda session: backlog(session, retained=False))
    assert waiting >= BACKLOG_JOBS
    policy = AdmissionPolicy(run.run_id, "0", [], NewcomerPolicy(backlog_jobs=BACKLOG_JOBS))
    run.admission = Admission(run.database, run.log, run.keys.round, policy, lambda: run.now_s)
    with pytest.raises(RateLimited, match="auditors have"):
        await run.admit(77)
    assert (await run.admit(2)).name == run.workers[0].name, "who is in stays in"
    with run.database.session() as session:
        report = verify(DatabaseSource(session), root=engine_rig.ROOT.peer_id)
    assert report.rounds == ROUNDS and report.audits.passed == report.audits.failed == 0
    assert report.final_microcredits == 0, "nothing is final that nobody audited"


async def test_its_job_goes_to_another_and_it_goes_on(run: Any) -> None:
    await run.play()
    slow, other = auditor(1), auditor(2)
    job = claim(run, slow)
    assert job is not None
    run.now_s += LEASE_S / 2
    others = claim(run, other)
    assert others is not None and others.job_id != job.job_id, "it may only be slow"
    run.now_s += LEASE_S  # stopped meanwhile: it renews nothing
    taken = {found.job_id for _ in range(2) if (found := claim(run, other)) is not None}
    assert job.job_id in taken
    assert not finish(run, slow, job), "what comes too late is dropped"
    assert claim(run, slow) is not None, "and it goes on with the next"
