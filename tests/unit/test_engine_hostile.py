"""What a stranger can send, hang up on, or claim, and what the engine makes of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from coordinator import evidence
from coordinator.admission import dismiss_anchors
from coordinator.requests import NonceCache
from coordinator.roster import MAX_REDUCERS, Candidate, choose_reducers
from coordinator.schema import EvidenceRow, ReducerReportRow, WorkerRow
from ledger.log import latest_head
from ledger.tree import tree_size
from protocol.envelope import open_envelope, seal
from protocol.errors import BadRecord, Conflict, TransientError, UsageError
from protocol.identity import Identity
from protocol.limits import MAX_MULTIADDR_CHARS, MAX_MULTIADDRS, MAX_RECORD_BYTES
from protocol.uncancelled import to_the_end
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2


async def committed(rig: Any, *members: Any) -> None:
    for member in members:
        await member.lease()
    for member in members:
        member.train()
        await member.commit()


# ---- hanging up ----


async def test_work_that_was_begun_is_ended_and_then_the_cancellation_counts() -> None:
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), []

    async def work() -> int:
        begun.set()
        await go_on.wait()
        ended.append(1)
        return 7

    async with asyncio.TaskGroup() as tasks:
        caller = tasks.create_task(to_the_end(work()))
        await begun.wait()
        caller.cancel()
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
        go_on.set()
    assert ended == [1]
    assert caller.cancelled()
    assert await to_the_end(work()) == 7


async def test_a_client_that_hangs_up_does_not_keep_the_roster_from_the_others(
    boot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    async with rig.engine.subscribe(ada.name) as events:
        assert (await anext(events)).WhichOneof("event") == "run_head"
        handed_over, run = asyncio.Event(), rig.database.run

        async def run_and_tell(fn: Any) -> Any:
            handed_over.set()
            return await run(fn)

        monkeypatch.setattr(rig.database, "run", run_and_tell)
        committing = asyncio.ensure_future(ada.commit())
        await handed_over.wait()
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        async with asyncio.timeout(5):
            while (await anext(events)).WhichOneof("event") != "roster":
                pass
    assert rig.phase() == "GATHER"


async def test_a_head_that_could_not_be_signed_is_signed_with_the_next_turn(
    boot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await committed(rig, ada)
    await rig.gather()
    await rig.submit(rig.results())

    def locked(session: Any) -> str:
        raise TransientError("locked")

    with monkeypatch.context() as patch:
        patch.setattr(rig.log, "sign_head", locked)
        with pytest.raises(TransientError):
            await rig.engine.settle()
    assert rig.head().settled_rounds == 1
    await rig.engine.tick()
    with rig.database.session() as session:
        head = latest_head(session)
        assert head is not None
        assert head.tree_size == tree_size(session)


# ---- a step out of the finite numbers ----


async def test_a_mean_that_no_state_can_hold_skips_its_round_and_the_run_goes_on(
    boot: Any,
) -> None:
    rig = await boot(update={"codec": "fp32"})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    before = rig.head()
    await ada.lease()
    ada.train(scale=1e36)
    await ada.commit()
    await rig.gather()
    huge = rig.results()
    for piece in huge:
        values = np.full(len(piece.encoded) // 4, 3e38, "<f4")
        record = open_envelope(piece.result, wire.ResultChunk).record
        piece.encoded = values.tobytes()
        record.sha256 = hashlib.sha256(piece.encoded).digest()
        piece.result.CopyFrom(seal(record, rig.members[record.reducer].identity))
    await rig.submit(huge)
    assert not await rig.engine.settle()
    head = rig.head()
    assert (head.round, head.settled_rounds) == (1, 0)
    assert head.state_digest == before.state_digest
    assert rig.board().rounds[0].leaf.outcome == "skipped"
    await rig.reboot()
    await rig.play_round(ada)
    assert rig.head().settled_rounds == 1


# ---- floods ----


async def test_evidence_about_one_record_is_bounded(boot: Any) -> None:
    rig = await boot(round={"min_members": 2})
    ada = rig.enrol(2)
    await committed(rig, ada)
    for loss in range(20):
        with pytest.raises(Conflict):
            await ada.commit(mean_loss=100.0 + loss)
    with rig.database.session() as session:
        assert session.scalar(select(func.count(EvidenceRow.id))) == evidence.MOST_PAIRS


async def test_a_reducer_cannot_fill_the_database_with_reports(boot: Any) -> None:
    rig = await boot(round={"min_members": 2})
    anchor = rig.enrol(1, anchor=True)
    await committed(rig, rig.enrol(2), rig.enrol(3))
    roster, group = rig.roster()

    async def report(revision: int) -> None:
        record = wire.ReducerReport(
            round=roster.round,
            attempt=roster.attempt,
            group_id=group,
            reducer=anchor.name,
            revision=revision,
        )
        await rig.engine.reducer_report(anchor.sign(record))

    with pytest.raises(BadRecord, match="more reports"):
        for revision in range(1000):
            await report(revision)
    with rig.database.session() as session:
        assert (session.scalar(select(func.count()).select_from(ReducerReportRow)) or 0) < 100


async def test_the_same_signed_bytes_in_another_envelope_accuse_nobody(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await rig.play_round(ada)
    record = wire.Report(
        run_id=rig.run_id, round=0, attempt=1, worker=ada.name, state_digest=rig.head().state_digest
    )
    envelope = seal(record, ada.identity)
    assert (await rig.engine.report(open_envelope(envelope, wire.Report))).agrees
    # A field that nobody knows, added by whoever carries the envelope: length-delimited, number 99.
    carried = wire.Envelope.FromString(envelope.SerializeToString() + b"\x9a\x06\x04evil")
    opened = open_envelope(carried, wire.Report)
    assert opened.envelope == envelope
    assert (await rig.engine.report(opened)).agrees
    with rig.database.session() as session:
        assert session.scalar(select(func.count(EvidenceRow.id))) == 0


async def test_an_upload_has_at_most_as_many_results_as_there_are_chunks(boot: Any) -> None:
    rig = await boot()
    rig.enrol(1, anchor=True)
    await committed(rig, rig.enrol(2))
    await rig.gather()
    pieces = rig.results()
    with pytest.raises(BadRecord, match="more results"):
        await rig.submit([pieces[0]] * (rig.layout.count + 1))
    assert not (await rig.submit(pieces)).missing


def test_a_roster_of_the_most_verbose_reducers_fits_into_a_record() -> None:
    address = "/dns4/" + "x" * (MAX_MULTIADDR_CHARS - 6)
    names = [Identity.from_seed(i.to_bytes(32, "big")).peer_id for i in range(100)]
    crowd = [Candidate(name, name, False, (address,) * MAX_MULTIADDRS) for name in names]
    shares = choose_reducers(crowd, 10_000)
    assert len(shares) == MAX_REDUCERS
    assert [share.first for share in shares[1:]] == [share.end for share in shares[:-1]]
    assert shares[-1].end == 10_000
    member = wire.RosterMember(
        worker=names[0],
        assignment_id=bytes(16),
        weight=2**63,
        commitment_root=bytes(32),
        client_mode=True,
    )
    ranges = [
        wire.ReducerRange(
            reducer=share.candidate.worker,
            first_chunk=share.first,
            end_chunk=share.end,
            multiaddrs=share.candidate.multiaddrs,
        )
        for share in shares
    ]
    roster = wire.Roster(members=[member] * 4096, reducers=ranges)
    assert roster.ByteSize() < MAX_RECORD_BYTES


# ---- claims ----


async def test_a_claimed_speed_without_bounds_is_bounded(boot: Any) -> None:
    rig = await boot()
    lease = await rig.enrol(2).lease(speed=1.7e308)
    assert lease.steps == rig.manifest.inner.max_steps


@pytest.mark.parametrize(
    "changes", [{"mean_loss": -1.0}, {"mean_loss": 1e39}, {"update_norm": 1e300}]
)
async def test_numbers_that_float32_cannot_give_are_refused(
    boot: Any, changes: dict[str, float]
) -> None:
    rig = await boot()
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    with pytest.raises(BadRecord, match=next(iter(changes))):
        await ada.commit(**changes)


async def test_a_device_that_was_blocked_after_its_lease_contributes_no_more(boot: Any) -> None:
    rig = await boot()
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    rig.block(ada.name, "cheated")
    with pytest.raises(UsageError, match="cheated"):
        await ada.commit()


async def test_an_anchor_that_is_listed_no_more_is_a_plain_device(boot: Any) -> None:
    rig = await boot()
    kept, gone = rig.enrol(1, anchor=True), rig.enrol(2, anchor=True)
    with rig.database.session() as session:
        dismiss_anchors(session, [kept.name])
    with rig.database.session() as session:
        assert session.get_one(WorkerRow, kept.name).anchor
        assert not session.get_one(WorkerRow, gone.name).anchor
        assert json.loads(session.get_one(WorkerRow, gone.name).multiaddrs)


def test_a_nonce_is_remembered_to_the_last_moment_of_its_freshness() -> None:
    now_s = [1_800_000_000.0]
    cache = NonceCache(lambda: now_s[0])
    ahead = wire.Freshness(sent_at_ms=int((now_s[0] + 120) * 1000), nonce=bytes(16))
    cache.check("ada", ahead)
    now_s[0] += 240.0
    with pytest.raises(BadRecord, match="answered before"):
        cache.check("ada", ahead)


async def test_presence_is_taken_before_it_is_written(boot: Any) -> None:
    rig = await boot()
    ada = rig.enrol(2)
    await ada.beat(steps_done=5, phase=service_pb2.ACTION_KEEP)
    await rig.pass_time(1.0)
    with rig.database.session() as session:
        assert session.get_one(WorkerRow, ada.name).steps_done == 5
