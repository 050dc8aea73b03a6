"""Whole audits: real training, real proofs, real replays, the real engine; no network."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest

from coordinator.audit.schema import TrustRow
from coordinator.schema import ContributionRow

Start = Callable[..., Awaitable[Any]]


@pytest.fixture
def start(start_audits: Start) -> Start:
    return start_audits


async def test_honest_work_passes_and_leaves_nothing_behind(start: Start) -> None:
    rig = await start()
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"passed"}
    assert [row["verdict"] for row in rig.reducer_audits()] == ["passed"]
    assert not rig.openings()
    assert all(row["blob"] == "" for row in rig.jobs())
    assert len(rig.jobs()) == 2  # one replay each
    assert not rig.blocked()
    assert {row["status"] for row in rig.challenges()} == {"answered"}
    await rig.wait(rig.options.audit.appeal_s - 1)
    assert rig.challenges()
    await rig.wait(2)
    assert not rig.challenges()
    rig.board()


async def test_nine_tenths_of_the_steps_fail_by_two_replays(start: Start) -> None:
    rig = await start(inner={"max_steps": 10})
    cheat, other = rig.workers
    cheat.lazy_steps = 1
    await rig.play_round(cheat, other)
    await rig.audit()
    assert rig.verdicts() == {cheat.name: "failed", other.name: "passed"}
    failed = next(row for row in rig.audits() if row["worker"] == cheat.name)
    replays = [row for row in rig.jobs() if row["audit_id"] == failed["audit_id"]]
    assert len({row["auditor"] for row in replays}) == 2
    assert rig.blocked() == {cheat.name}
    # The evidence stays; the replays for as long as appeals are heard.
    assert {row["member"] for row in rig.openings()} == {cheat.name}
    assert all(row["blob"] for row in replays)
    await rig.wait(rig.options.audit.appeal_s + 1)
    assert not any(row["blob"] for row in rig.jobs())
    assert rig.openings()
    assert {row["audit_id"] for row in rig.challenges()} == {failed["audit_id"]}
    rig.board()


@pytest.mark.parametrize("signed", [True, False])
async def test_one_falsified_chunk_is_found_by_its_projection(
    start: Start, case_rig: ModuleType, signed: bool
) -> None:
    """Also where an update has too many chunks for its auditor to sign their projections."""
    rig = await start(verification={"opened_chunks": 1}, auditors=0)
    for number in range(2):
        rig.hire(number, signs_projections=signed)
    cheat, _ = rig.workers
    cheat.falsify = case_rig.noise_in_chunk(rig, 3)
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert rig.verdicts()[cheat.name] == "failed"
    failed = next(row for row in rig.audits() if row["worker"] == cheat.name)
    assert 3 in json.loads(failed["chunks"])
    assert len(json.loads(failed["chunks"])) <= 2


async def test_where_a_reducer_is_silent_the_worker_shows_its_work(start: Start) -> None:
    rig = await start()
    await rig.play_round(*rig.workers)
    rig.anchor.silent = True
    await rig.audit()
    assert set(rig.verdicts().values()) == {None}
    assert not any(worker.asked for worker in rig.workers)
    await rig.wait(rig.options.audit.answer_s + 1)
    await rig.wait(rig.options.audit.answer_s + 1)
    assert set(rig.verdicts().values()) == {"passed"}


async def test_silence_of_everybody_leaves_a_unit_unpaid_and_nobody_punished(start: Start) -> None:
    rig = await start()
    worker, other = rig.workers
    await rig.play_round(worker, other)
    rig.anchor.silent = worker.silent = True
    for _ in range(4):
        await rig.wait(rig.options.audit.answer_s + 1)
    assert rig.verdicts() == {worker.name: None, other.name: "passed"}
    await rig.wait(rig.options.audit.patience_s)
    assert rig.verdicts() == {worker.name: "unavailable", other.name: "passed"}
    assert {row["verdict"] for row in rig.reducer_audits()} == {"unavailable"}
    with rig.database.session() as session:
        credits = {row.worker: row.credit for row in session.query(ContributionRow)}
    assert credits == {worker.name: "unpaid", other.name: "pending"}
    assert not rig.blocked()
    rig.board()


async def test_a_late_answer_counts_while_the_audit_is_open(start: Start) -> None:
    rig = await start()
    await rig.play_round(*rig.workers)
    everybody = [rig.anchor, *rig.workers]
    for member in everybody:
        member.silent = True
    for _ in range(3):
        await rig.wait(rig.options.audit.answer_s + 1)
    assert {row["status"] for row in rig.challenges()} == {"silent"}
    rig.anchor.silent = False
    await rig.audit()
    assert set(rig.verdicts().values()) == {"passed"}


async def test_when_all_say_no_nobody_is_waited_for(start: Start, case_rig: ModuleType) -> None:
    rig = await start()
    await rig.play_round(*rig.workers)
    for member in (rig.anchor, *rig.workers):
        member.answers = case_rig.unavailable
    await rig.audit()
    assert set(rig.verdicts().values()) == {"unavailable"}
    assert not rig.jobs() or all(row["status"] == "done" for row in rig.jobs())
    assert not rig.blocked()


async def test_a_lying_auditor_is_outvoted_and_then_suspended(
    start: Start, case_rig: ModuleType
) -> None:
    rig = await start(auditors=0)
    liar = rig.hire(0, lie=case_rig.other_vector)
    await rig.play_round(*rig.workers)
    while liar.work():
        pass  # the first replay of everything is its
    rig.hire(1)
    rig.hire(2)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"passed"}
    assert len(rig.jobs()) == 6
    (row,) = [row for row in rig.auditor_rows() if row["auditor"] == liar.name]
    assert row["outvoted"] == 2
    assert row["suspended_reason"]
    assert not rig.blocked()


async def test_two_auditors_that_lie_differently_convict_nobody(
    start: Start, case_rig: ModuleType
) -> None:
    rig = await start(auditors=0)
    rig.hire(0, lie=case_rig.other_vector)
    rig.hire(1, lie=lambda vector: -vector)
    rig.hire(2, lie=lambda vector: 2 * vector)
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"inconclusive"}
    assert not rig.blocked()


async def test_a_task_that_most_fail_is_suspect_and_nobody_is_punished(
    start: Start, case_rig: ModuleType
) -> None:
    rig = await start(workers=4, auditors=0)
    for number in range(2):  # as if the organiser had kept the wrong weights
        rig.hire(number, lie=case_rig.other_vector)
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"inconclusive"}
    assert {row["reason"] for row in rig.audits()} == {"suspect_task"}
    assert not rig.blocked()


async def test_a_cheat_among_honest_members_does_not_make_their_task_suspect(start: Start) -> None:
    rig = await start(workers=4)
    cheat = rig.workers[0]
    cheat.lazy_steps = 2
    # One of them is away, with the reducer: it is not waited for.
    away = rig.workers[3]
    await rig.play_round(*rig.workers)
    rig.anchor.silent = away.silent = True
    for _ in range(6):
        await rig.wait(rig.options.audit.answer_s + 1)
    assert rig.verdicts()[cheat.name] == "failed"
    assert rig.verdicts()[away.name] is None
    assert rig.blocked() == {cheat.name}


async def test_no_auditors_cost_the_organiser_not_the_workers(start: Start) -> None:
    rig = await start(auditors=0)
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert set(rig.verdicts().values()) == {None}
    await rig.wait(rig.options.audit.patience_s + 1)
    assert set(rig.verdicts().values()) == {"inconclusive"}
    assert not rig.jobs()
    with rig.database.session() as session:
        assert {row.credit for row in session.query(ContributionRow)} == {"pending"}


async def test_lost_weights_are_the_organisers_loss(start: Start) -> None:
    rig = await start(auditors=0)
    rig.hire(0, fails="weights_lost")
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"unaudited-lost"}
    rig.board()


async def test_uncalibrated_classes_convict_nobody(start: Start) -> None:
    rig = await start(auditors=0)
    rig.hire(0, execution="mps", lie=lambda vector: vector * 1.001)
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"inconclusive"}
    assert {row["reason"] for row in rig.audits()} == {"between_bounds"}
    assert len(rig.jobs()) == 6


async def test_a_second_auditor_is_heard_where_one_was_drawn(start: Start) -> None:
    rig = await start(verification={"p_second_auditor": 1})
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"passed"}
    assert len(rig.jobs()) == 4
    by_audit = {(row["audit_id"], row["auditor"]) for row in rig.jobs()}
    assert len(by_audit) == 4


async def test_a_coordinator_that_is_killed_between_any_steps_goes_on(start: Start) -> None:
    rig = await start(inner={"max_steps": 10}, verification={"p_second_auditor": 1})
    rig.workers[0].lazy_steps = 1
    await rig.play_round(*rig.workers)
    for _ in range(60):
        await rig.engine.audit()
        await rig.reboot()
        for member in rig.members.values():
            await member.attend()
        for auditor in rig.auditors:
            auditor.work()
        if None not in rig.verdicts().values():
            break
    assert [rig.verdicts()[worker.name] for worker in rig.workers] == ["failed", "passed"]
    assert len([row for row in rig.audits() if row["record"]]) == 2
    rig.board()


async def test_an_appeal_is_judged_on_another_kind_of_device(
    start: Start, case_rig: ModuleType
) -> None:
    rig = await start(auditors=0)
    wrong = [rig.hire(number, lie=case_rig.other_vector) for number in range(2)]
    await rig.play_round(*rig.workers)
    await rig.audit()
    worker = rig.workers[0]
    assert rig.blocked() == case_rig.names(rig.workers)
    evidence = rig.openings()
    await rig.appeal(worker)
    rig.now_s += 300.0
    await rig.audit()
    assert len([row for row in rig.jobs() if row["status"] == "queued"]) == 1  # insists
    # Their own devices are not asked again: what they showed is still there.
    for member in rig.members.values():
        member.silent = True
    rig.hire(2, execution="cuda")
    await rig.audit()
    verdicts = [row["verdict"] for row in rig.audits() if row["worker"] == worker.name]
    assert sorted(verdicts) == ["failed", "overturned"]
    assert worker.name not in rig.blocked()
    left = {row["member"] for row in rig.openings()}
    assert left == {row["member"] for row in evidence} - {worker.name}
    assert {row["outvoted"] for row in rig.auditor_rows() if row["auditor"] == wrong[0].name} == {0}
    rig.board()


async def test_numbers_that_no_auditor_may_sign_harm_no_worker(start: Start) -> None:
    rig = await start(auditors=0)
    rig.hire(0, garble=True)
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"passed"}  # by the drawn chunks


async def test_a_replay_that_is_gone_before_it_is_projected_is_made_again(start: Start) -> None:
    rig = await start(workers=1, auditors=0)
    first = rig.hire(0, signs_projections=False)
    await rig.play_round(*rig.workers)
    assert first.work()
    rig.replays.delete(rig.jobs()[0]["job_id"])
    rig.hire(1)
    await rig.audit()
    assert set(rig.verdicts().values()) == {"passed"}
    assert len(rig.jobs()) == 2


@pytest.mark.parametrize(("lazy_steps", "verdict"), [(0, "passed"), (1, "failed")])
async def test_a_first_unit_is_judged_by_what_its_worker_alone_can_show(
    start: Start, lazy_steps: int, verdict: str
) -> None:
    rig = await start(verification={"probation_steps": 4})
    worker = rig.workers[0]
    assert (await worker.lease()).probation
    worker.lazy_steps = lazy_steps
    worker.train()
    await worker.commit()
    await rig.audit()
    (row,) = rig.audits()
    assert (row["subject"], row["verdict"]) == ("probation", verdict)
    assert {challenge["asked"] for challenge in rig.challenges()} == {worker.name}
    assert bool(rig.blocked()) is (verdict == "failed")
    rig.board()


def _trust(rig: Any, *members: Any) -> None:
    with rig.database.session() as session:
        for member in members:
            session.add(TrustRow(worker=member.name, execution="cpu", passes=1000, audits=1000))


async def test_cheats_in_concert_are_judged_beside_those_who_were_not_drawn(start: Start) -> None:
    rig = await start(workers=6)
    cheats, honest = rig.workers[:3], rig.workers[3:]
    _trust(rig, *honest)
    for cheat in cheats:
        cheat.lazy_steps = 2
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert rig.verdicts() == {
        **{cheat.name: "failed" for cheat in cheats},
        **{member.name: "passed" for member in honest},
    }
    assert rig.blocked() == {cheat.name for cheat in cheats}


async def test_a_faulty_machine_of_the_organiser_convicts_nobody_who_is_drawn_alone(
    start: Start, case_rig: ModuleType
) -> None:
    rig = await start(workers=4, auditors=0)
    for number in range(2):
        rig.hire(number, lie=case_rig.other_vector)
    _trust(rig, *rig.workers[1:])
    await rig.play_round(*rig.workers)
    await rig.audit()
    assert {row["reason"] for row in rig.audits()} == {"suspect_task"}
    assert "control" in {row["why"] for row in rig.audits()}
    assert not rig.blocked()
