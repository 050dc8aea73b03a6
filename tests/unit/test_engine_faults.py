"""What goes wrong in a round: restarts, silence, lies, duplicates, reducers that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.context import EngineOptions
from coordinator.schema import EvidenceRow
from protocol.envelope import open_envelope
from protocol.errors import (
    BadDigest,
    BadRecord,
    BadSignature,
    Conflict,
    NotEnrolled,
    TooLate,
    TransientError,
    UsageError,
)
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2


def evidence(rig: Any) -> list[tuple[str, str]]:
    with rig.database.session() as session:
        return [(row.kind, row.signer) for row in session.scalars(select(EvidenceRow))]


async def committed(rig: Any, *members: Any) -> None:
    for member in members:
        await member.lease()
    for member in members:
        member.train()
        await member.commit()


# ---- contributions ----


async def test_the_same_contribution_twice_gets_the_first_answer(boot: Any) -> None:
    rig = await boot(round={"min_members": 2})
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    assert (await ada.commit()).first
    assert not (await ada.commit()).first
    await rig.pass_time(30.0)
    assert not (await ada.commit()).first, "an outbox may deliver late"
    assert evidence(rig) == []


async def test_two_contributions_to_one_assignment_are_evidence(boot: Any) -> None:
    rig = await boot(round={"min_members": 2})
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    await ada.commit()
    for _ in range(2):
        with pytest.raises(Conflict):
            await ada.commit(mean_loss=1.0)
    assert evidence(rig) == [("contribution", ada.name)]


MISFITS: list[dict[str, Any]] = [
    {"state_digest": b"\x00" * 32},
    {"run_id": b"\x00" * 32},
    {"round": 7},
    {"epoch": 1},
    {"start_sequence": 4},
    {"end_sequence": 9999},
    {"tokens": 1},
    {"tokens": 1 << 60},
    {"steps": 0},
    {"steps": 11},
    {"codec": "fp32"},
    {"training_spec": "other/1"},
    {"chunk_count": 1},
    {"vector_elements": 1},
    {"commitment_root": b"short"},
    {"update_norm": float("nan")},
    {"update_norm": -1.0},
    {"mean_loss": float("inf")},
]


async def test_a_contribution_that_does_not_fit_is_refused_by_the_name_of_its_field(
    boot: Any,
) -> None:
    rig = await boot()
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    for changes in MISFITS:
        with pytest.raises(BadRecord, match=next(iter(changes))):
            await ada.commit(**changes)
    assert rig.phase() == "TRAINING"
    assert (await ada.commit()).first


async def test_a_contribution_to_anothers_assignment_is_refused(boot: Any) -> None:
    rig = await boot()
    ada, eve = rig.enrol(2), rig.enrol(3)
    await ada.lease()
    ada.train()
    eve.assignment, eve.update = ada.assignment, ada.update
    for record in (eve.contribution(), eve.contribution(worker=ada.name)):
        with pytest.raises(BadRecord):
            await rig.engine.commit(eve.sign(record))


async def test_a_late_commit_is_nobodys_fault(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada, slow = rig.enrol(2), rig.enrol(3)
    await ada.lease()
    await slow.lease()
    ada.train()
    slow.train()
    await ada.commit()
    await rig.pass_time(10.0)
    await rig.pass_time(10.0)
    with pytest.raises(TooLate, match="closed"):
        await slow.commit()
    assert evidence(rig) == []


async def test_the_same_assignment_is_given_again(boot: Any) -> None:
    rig = await boot()
    ada = rig.enrol(2)
    first = (await ada.request()).assignment
    assert (await ada.request()).assignment == first


async def test_strangers_and_blocked_devices_get_no_work(boot: Any, engine_rig: Any) -> None:
    rig = await boot()
    stranger = engine_rig.Member(rig, Identity.generate())
    with pytest.raises(NotEnrolled):
        await stranger.request()
    with pytest.raises(NotEnrolled):
        await stranger.beat()
    ada = rig.enrol(2)
    rig.block(ada.name, "spam")
    with pytest.raises(UsageError, match="spam"):
        await ada.request()


async def test_a_full_round_says_so(boot: Any) -> None:
    rig = await boot(round={"max_members": 1})
    await rig.enrol(2).lease()
    assert (await rig.enrol(3).request()).wait.code == "round_full"


# ---- silence ----


async def test_a_silent_worker_loses_its_lease_and_the_round_closes_early(boot: Any) -> None:
    rig = await boot(round={"duration_s": 1000.0})
    rig.enrol(1, anchor=True)
    ada, gone = rig.enrol(2), rig.enrol(3)
    await gone.lease()
    await committed(rig, ada)
    await rig.pass_time(25.0)
    assert rig.phase() == "TRAINING"
    await rig.pass_time(10.0)
    assert rig.phase() == "GATHER"
    gone.train()
    with pytest.raises(TooLate):
        await gone.commit()
    reply = await gone.beat(assignment_id=gone.assignment.assignment_id)
    assert reply.action == service_pb2.ACTION_ABANDON


async def test_a_unit_that_is_given_up_frees_its_data_and_nobody_waits_for_it(boot: Any) -> None:
    rig = await boot(round={"duration_s": 1000.0})
    rig.enrol(1, anchor=True)
    ada, bob = rig.enrol(2), rig.enrol(3)
    await ada.lease()
    await bob.lease()
    await committed(rig, ada)
    await bob.beat(given_up=ada.assignment.assignment_id)  # not its own: nothing happens
    await bob.beat(given_up=b"another one")
    await rig.pass_time(1.0)
    assert rig.phase() == "TRAINING"
    # Given up and, before that was heeded, taken up again.
    await bob.beat(given_up=bob.assignment.assignment_id)
    await bob.beat(assignment_id=bob.assignment.assignment_id)
    await rig.pass_time(1.0)
    assert rig.phase() == "TRAINING"
    await bob.beat(given_up=bob.assignment.assignment_id)
    await rig.pass_time(1.0)
    assert rig.phase() == "GATHER"
    assert (await bob.request()).wait.code == "lease_expired"
    bob.train()
    with pytest.raises(TooLate):
        await bob.commit()


async def test_a_worker_that_is_heard_keeps_its_lease(boot: Any) -> None:
    rig = await boot(round={"duration_s": 1000.0})
    ada = rig.enrol(2)
    await ada.lease()
    for _ in range(5):
        await rig.pass_time(25.0)
        reply = await ada.beat(assignment_id=ada.assignment.assignment_id, steps_done=3)
        assert reply.action == service_pb2.ACTION_KEEP
    ada.train()
    assert (await ada.commit()).first


async def test_who_falls_asleep_gives_its_lease_up_at_once(boot: Any) -> None:
    rig = await boot(round={"min_members": 1})
    rig.enrol(1, anchor=True)
    ada, bob = rig.enrol(2), rig.enrol(3)
    await ada.lease()
    await bob.lease()
    bob.train()
    await bob.commit()
    paused = {"phase": wire.WORKER_PHASE_PAUSED, "reason": "paused by you"}
    # It stands still for a while, and will go on.
    await ada.beat(assignment_id=ada.assignment.assignment_id, **paused)
    assert rig.phase() == "TRAINING"
    reply = await ada.beat(**paused)
    assert reply.action == service_pb2.ACTION_KEEP
    # Nobody waits for it, and it is told so if it asks again.
    assert rig.phase() == "GATHER"
    await ada.beat(**paused)
    ada.train()
    with pytest.raises(TooLate):
        await ada.commit()


async def test_a_heartbeat_about_an_old_round_is_told_to_abandon(boot: Any) -> None:
    rig = await boot(round={"min_members": 2})
    ada = rig.enrol(2)
    await ada.lease()
    await rig.pass_time(10.0)
    await rig.pass_time(10.0)
    reply = await ada.beat(assignment_id=ada.assignment.assignment_id)
    assert (reply.action, reply.reason) == (service_pb2.ACTION_ABANDON, "round 0 is over")
    with pytest.raises(BadRecord):
        await ada.beat(multiaddrs=["not an address"])


# ---- restarts: kill -9 between any two requests ----


STEPS = ["leased", "committed", "gathered", "half delivered", "delivered"]


@pytest.mark.parametrize("killed_after", STEPS)
async def test_a_restart_goes_on_with_the_same_round(boot: Any, killed_after: str) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada, bob = rig.enrol(2), rig.enrol(3)

    async def perhaps_die(step: str) -> None:
        if step == killed_after:
            before = rig.head()
            await rig.reboot(downtime_s=3600.0)
            await rig.engine.tick()
            assert rig.head() == before

    await ada.lease()
    await bob.lease()
    assignment = (await ada.request()).assignment
    await perhaps_die("leased")
    assert killed_after != "leased" or (await ada.request()).assignment == assignment
    for member in (ada, bob):
        member.train()
        await member.commit()
    await perhaps_die("committed")
    await rig.gather()
    await perhaps_die("gathered")
    pieces = rig.results()
    await rig.submit(pieces[:3])
    await perhaps_die("half delivered")
    assert not (await rig.submit(pieces)).missing
    await perhaps_die("delivered")
    assert await rig.engine.settle()
    await rig.engine.evaluate()
    assert rig.head().settled_rounds == 1
    assert rig.board().total.contributions == 2


async def test_killed_after_the_checkpoint_before_the_rows(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await committed(rig, ada)
    await rig.gather()
    await rig.submit(rig.results())
    real_run = rig.database.run

    async def die(fn: Callable[[Any], Any]) -> Any:
        if calls.append(fn) or len(calls) > 1:
            raise TransientError("killed")
        return await real_run(fn)

    calls: list[Any] = []
    rig.database.run = die
    with pytest.raises(TransientError):
        await rig.engine.settle()
    rig.database.run = real_run
    assert await rig.engine.settle(), "the same process tries again from the same state"
    digest = rig.head().state_digest
    await rig.reboot()
    await rig.play_round(ada)
    assert rig.head().settled_rounds == 2
    assert rig.board().rounds[0].leaf.state_digest == digest.hex()


async def test_another_run_in_the_same_database_is_refused(
    boot: Any, make_manifest: Callable[..., Any]
) -> None:
    rig = await boot()
    rig.database.close()
    rig.manifest = make_manifest(name="other")
    with pytest.raises(UsageError, match="belongs to run"):
        await rig.boot()


async def test_too_little_data_is_refused(boot: Any) -> None:
    with pytest.raises(UsageError, match="fewer than one inner batch"):
        await boot(rig={"sequences": 3})


# ---- the reduce ----


async def test_a_member_that_reached_nobody_is_left_out_and_unpaid(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada, mute = rig.enrol(2), rig.enrol(3)
    await committed(rig, ada, mute)
    await rig.gather(complete=[ada])
    assert rig.phase() == "GATHER"
    await rig.pass_time(120.0)
    assert rig.phase() == "BROADCAST"
    await rig.submit(rig.results())
    await rig.engine.settle()
    await rig.engine.evaluate()
    board = rig.board()
    assert board.donors[ada.name].tally.contributions == 1
    assert board.donors[mute.name].tally.contributions == 0
    freed = mute.assignment.start_sequence
    assert (await mute.lease()).start_sequence == freed


async def test_a_reducer_that_says_nothing_is_replaced_in_the_next_attempt(boot: Any) -> None:
    rig = await boot()
    dead, alive = rig.enrol(1, anchor=True), rig.enrol(4, anchor=True)
    ada = rig.enrol(2)
    await committed(rig, ada)
    roster, first_group = rig.roster()
    assert {r.reducer for r in roster.reducers} == {dead.name, alive.name}
    await rig.gather(only=[alive])
    await rig.pass_time(120.0, heard=[dead, alive, ada])
    roster, group = rig.roster()
    assert roster.attempt == 2
    assert group != first_group
    assert [r.reducer for r in roster.reducers] == [alive.name]
    await rig.gather()
    await rig.submit(rig.results())
    assert await rig.engine.settle()


async def test_withheld_results_end_in_other_attempts_and_then_a_skip(boot: Any) -> None:
    rig = await boot(round={"max_attempts": 2})
    anchor = rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await committed(rig, ada)
    for attempt in (1, 2):
        await rig.gather()
        assert rig.roster()[0].attempt == attempt
        await rig.submit(rig.results()[1:])
        await rig.pass_time(500.0, heard=[anchor, ada])
    head = rig.head()
    assert (head.round, head.settled_rounds) == (1, 0)
    assert rig.board().rounds[0].leaf.outcome == "skipped"
    assert (await ada.lease()).start_sequence == 0


async def test_no_reducer_is_waited_for_until_one_comes(boot: Any) -> None:
    rig = await boot()
    ada = rig.enrol(2)
    await committed(rig, ada)
    assert rig.stored_roster() == (None, None)
    rig.enrol(1, anchor=True)
    await rig.pass_time(1.0)
    assert rig.stored_roster()[0] is not None


async def test_results_must_be_what_the_reducer_of_the_range_signed(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await committed(rig, ada)
    await rig.gather()
    piece, other, *_ = rig.results()
    with pytest.raises(BadDigest):
        swapped = service_pb2.ResultPiece(result=piece.result, encoded=other.encoded)
        await rig.submit([swapped])
    with pytest.raises(BadRecord, match="bytes"):
        short = service_pb2.ResultPiece(result=piece.result, encoded=piece.encoded[:-1])
        await rig.submit([short])
    record = open_envelope(piece.result, wire.ResultChunk).record
    with pytest.raises(BadSignature):
        await rig.submit(
            [service_pb2.ResultPiece(result=ada.sign(record).envelope, encoded=piece.encoded)]
        )
    record.reducer = ada.name
    with pytest.raises(BadRecord, match="range"):
        await rig.submit(
            [service_pb2.ResultPiece(result=ada.sign(record).envelope, encoded=piece.encoded)]
        )
    assert (await rig.submit([piece])).accepted == 1


async def test_equivocation_is_kept_as_evidence_and_the_first_result_counts(boot: Any) -> None:
    rig = await boot()
    anchor = rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await committed(rig, ada)
    await rig.gather()
    honest, bent = rig.results(), rig.results(bend=0.5)
    assert (await rig.submit([honest[0]])).accepted == 1
    assert (await rig.submit([bent[0]])).accepted == 0
    assert evidence(rig) == [("result", anchor.name)]
    await rig.submit(honest)
    assert await rig.engine.settle()


async def test_results_before_the_inclusion_set_or_of_an_unknown_group_are_refused(
    boot: Any,
) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await rig.play_round(ada)
    await committed(rig, ada)
    await rig.gather()
    pieces = rig.results()
    await rig.submit(pieces)
    await rig.engine.settle()
    assert (await rig.submit(pieces)).accepted == 0, "late pieces are harmless"
    await committed(rig, ada)
    record = open_envelope(pieces[0].result, wire.ResultChunk).record
    record.group_id = b"\x00" * 20
    record.reducer = ada.name
    forged = service_pb2.ResultPiece(result=ada.sign(record).envelope, encoded=pieces[0].encoded)
    with pytest.raises(BadRecord, match="does not exist"):
        await rig.submit([forged])


async def test_reducer_reports_are_checked(boot: Any) -> None:
    rig = await boot(round={"min_members": 2})
    anchor = rig.enrol(1, anchor=True)
    ada, bob = rig.enrol(2), rig.enrol(3)
    await committed(rig, ada, bob)
    roster, group = rig.roster()

    def report(statement: wire.Envelope | None, **changes: Any) -> wire.ReducerReport:
        outcome = wire.GatherOutcome(worker=ada.name, complete=True, statement=statement)
        fields = {"group_id": group, "reducer": anchor.name, "revision": 1, "round": roster.round}
        fields["attempt"] = roster.attempt
        return wire.ReducerReport(**{**fields, **changes}, outcomes=[outcome])

    share = roster.reducers[0]
    forged = rig.statement(roster, group, share, bob.name)
    with pytest.raises(BadSignature):
        await rig.engine.reducer_report(anchor.sign(report(forged)))
    about_another = rig.statement(roster, b"\x00" * 20, share, ada.name)
    with pytest.raises(BadRecord):
        await rig.engine.reducer_report(anchor.sign(report(about_another)))
    good = rig.statement(roster, group, share, ada.name)
    for elsewhere in ({"attempt": 2}, {"round": roster.round + 1}):
        with pytest.raises(BadRecord, match="another round or attempt"):
            await rig.engine.reducer_report(anchor.sign(report(good, **elsewhere)))
    with pytest.raises(BadRecord, match="does not exist"):
        await rig.engine.reducer_report(anchor.sign(report(good, group_id=b"\x00" * 20)))
    with pytest.raises(BadRecord, match="reduces nothing"):
        await rig.engine.reducer_report(ada.sign(report(good, reducer=ada.name)))
    await rig.engine.reducer_report(anchor.sign(report(good)))
    with pytest.raises(Conflict):
        await rig.engine.reducer_report(anchor.sign(report(None)))
    assert evidence(rig) == [("reducer_report", anchor.name)]
    reply = await rig.engine.reducer_report(anchor.sign(report(good, revision=2)))
    assert not reply.HasField("inclusion_set")


async def test_only_who_took_part_reports_and_only_once(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada, eve = rig.enrol(2), rig.enrol(3)
    await rig.play_round(ada)
    eve.assignment = ada.assignment
    with pytest.raises(BadRecord, match="no part"):
        await eve.report(b"\x01" * 32)
    await ada.report(b"\x01" * 32)
    with pytest.raises(Conflict):
        await ada.report(b"\x02" * 32)


# ---- watching ----


async def test_a_slow_reader_is_dropped_and_may_come_back(boot: Any) -> None:
    rig = await boot(rig={"options": EngineOptions(subscriber_events=3)})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    async with rig.engine.subscribe(ada.name) as events:
        await rig.play_round(ada)
        with pytest.raises(TransientError, match="connect again"):
            async for _ in events:
                pass
    assert set(await rig.snapshot()) == {"run_head"}


async def test_a_newcomer_hears_what_is_under_way(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await committed(rig, ada)
    assert set(await rig.snapshot()) == {"run_head", "roster"}
    await rig.gather()
    assert set(await rig.snapshot()) == {"run_head", "roster", "inclusion_set"}


# ---- hostile numbers ----


async def test_numbers_that_no_database_holds_are_refused_or_ignored(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await rig.play_round(ada)
    for changes in ({"round": (1 << 64) - 1}, {"attempt": (1 << 32) - 1}):
        record = wire.Report(worker=ada.name, state_digest=b"\x01" * 32, **changes)
        with pytest.raises(BadRecord):
            await rig.engine.report(ada.sign(record))
    await ada.beat(tokens_per_s=float("nan"), steps_done=(1 << 32) - 1, reason="\0" * 500)
    await rig.pass_time(1.0)
    assert (await ada.request(speed=float("nan"))).HasField("assignment")


# ---- validation ----


async def test_a_broken_evaluation_does_not_hold_up_the_record_for_ever(boot: Any) -> None:
    tries = []

    async def broken(weights: Any) -> float:
        tries.append(len(weights))
        raise TransientError("killed")

    rig = await boot(rig={"evaluate": broken})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await committed(rig, ada)
    await rig.gather()
    await rig.submit(rig.results())
    await rig.engine.settle()
    pending = 2  # the first state, and the settled one
    while pending:
        try:
            pending -= await rig.engine.evaluate()
        except TransientError:
            assert rig.board().rounds == {}
    assert len(tries) == 6
    assert rig.board().rounds[0].leaf.validation_loss_micronats is None


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e300, -1.0])
async def test_a_diverged_loss_is_recorded_as_none(boot: Any, loss: float) -> None:
    async def evaluate(weights: Any) -> float:
        return loss

    rig = await boot(rig={"evaluate": evaluate})
    rig.enrol(1, anchor=True)
    await rig.play_round(rig.enrol(2))
    while await rig.engine.evaluate():
        pass
    assert rig.board().rounds[0].leaf.validation_loss_micronats is None


async def test_old_checkpoints_go_and_the_newest_stay(boot: Any) -> None:
    rig = await boot(rig={"options": EngineOptions(kept_checkpoints=2)})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    for _ in range(4):
        await rig.play_round(ada)
    files = [path.name for path in (rig.folder / "blobs").iterdir()]
    # Besides the newest two the first one stays: audits rebuild the others from it.
    assert len([name for name in files if name.startswith("momentum-")]) == 3
    assert f"weights-{rig.head().weights_sha256.hex()}.safetensors" in files
