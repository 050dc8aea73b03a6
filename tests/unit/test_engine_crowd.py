"""Many at once: what comes together is committed together, and each by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import event, func, select

from coordinator.attendance import Attendance
from coordinator.batches import Batches, each
from coordinator.context import EngineOptions
from coordinator.database import Database, DatabaseAway
from coordinator.events import Hub, Subscription
from coordinator.lookups import fetch, find, rows_by
from coordinator.opening import running_round
from coordinator.round_state import load
from coordinator.schema import ContributionRow, EvidenceRow, WorkerRow
from coordinator.turn import Turn
from protocol.errors import BadRecord, Conflict, NotEnrolled
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api

CROWD = 40


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each transaction."""
    counted: list[object] = []
    once = Database._once

    def count(self: Database, work: Any) -> Any:
        counted.append(work)
        return once(self, work)

    monkeypatch.setattr(Database, "_once", count)
    return counted


async def crowd(boot: Any, count: int = CROWD) -> tuple[Any, list[Any]]:
    """Members that have leased and trained."""
    rig = await boot(round={"max_members": CROWD + 2})
    members = [rig.enrol(seed) for seed in range(1, count + 1)]
    await asyncio.gather(*(member.lease() for member in members))
    for member in members:
        member.train()
    return rig, members


async def test_leases_that_are_asked_for_at_once_differ(
    boot: Any, transactions: list[object]
) -> None:
    _, members = await crowd(boot)
    assert len(transactions) < CROWD
    starts = {(m.assignment.epoch, m.assignment.start_sequence) for m in members}
    assert len(starts) == CROWD


async def test_one_who_asks_twice_at_once_has_one_lease(boot: Any) -> None:
    rig = await boot()
    ada = rig.enrol(1)
    replies = await asyncio.gather(*(ada.request() for _ in range(5)))
    assert len({reply.assignment.payload for reply in replies}) == 1


async def test_commits_that_come_at_once_share_transactions(
    boot: Any, transactions: list[object]
) -> None:
    rig, members = await crowd(boot)
    transactions.clear()
    replies = await asyncio.gather(*(member.commit() for member in members))
    assert all(reply.first for reply in replies)
    assert len(transactions) < CROWD / 4
    await rig.reboot()  # nothing that was acknowledged is lost
    assert await members[0].commit() == api.CommitReply(first=False)
    with rig.database.session() as session:
        assert session.scalar(select(func.count()).select_from(ContributionRow)) == CROWD


async def test_a_bad_commit_is_refused_among_good_ones(boot: Any) -> None:
    _, members = await crowd(boot)
    asked = [m.commit(**({"codec": "none"} if m is members[3] else {})) for m in members]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(outcomes[3], BadRecord)
    assert [outcome.first for outcome in outcomes if outcome is not outcomes[3]] == [True] * 39


async def test_commits_to_nothing_do_not_part_the_good_ones(
    boot: Any, transactions: list[object]
) -> None:
    """Anybody can sign them, and who is late does: a look at older rounds flushes the others'."""
    rig, (ada, bob, cleo) = await crowd(boot, 3)
    stray = ada.sign(ada.contribution(assignment_id=bytes(16)))
    transactions.clear()
    outcomes = await asyncio.gather(
        ada.commit(),
        rig.engine.commit(stray),
        bob.commit(),
        rig.engine.commit(stray),
        cleo.commit(),
        return_exceptions=True,
    )
    assert [isinstance(outcome, BadRecord) for outcome in outcomes] == [False, True] * 2 + [False]
    assert len(transactions) == 1
    with rig.database.session() as session:
        assert session.scalar(select(func.count()).select_from(ContributionRow)) == 3


async def test_the_same_commit_twice_at_once_counts_once(boot: Any) -> None:
    _, (ada, bob, *_) = await crowd(boot)
    replies = await asyncio.gather(ada.commit(), bob.commit(), ada.commit())
    assert [reply.first for reply in replies] == [True, True, False]


async def test_two_different_commits_at_once_are_evidence(boot: Any) -> None:
    rig, (ada, bob, *_) = await crowd(boot)
    first, other, second = await asyncio.gather(
        ada.commit(), bob.commit(), ada.commit(mean_loss=4.0), return_exceptions=True
    )
    assert first.first
    assert other.first
    assert isinstance(second, Conflict)
    with rig.database.session() as session:
        assert session.scalars(select(EvidenceRow.signer)).all() == [ada.name]


async def test_an_update_is_copied_by_nobody_who_commits_with_its_maker(boot: Any) -> None:
    _, (ada, bob, cleo, *_) = await crowd(boot)
    outcomes = await asyncio.gather(
        cleo.commit(),
        ada.commit(),
        bob.commit(commitment_root=ada.update.root),
        return_exceptions=True,
    )
    assert [getattr(outcome, "first", None) for outcome in outcomes] == [True, True, None]
    assert isinstance(outcomes[2], BadRecord)


async def test_who_fails_half_way_takes_nothing_of_the_others_along(boot: Any) -> None:
    rig = await boot()
    names = [rig.enrol(seed).name for seed in (1, 2, 3)]

    def rename(turn: Turn, worker: str) -> str:
        turn.session.get_one(WorkerRow, worker).device_name = "renamed"
        if worker == names[1]:
            raise BadRecord("after it was written")
        return worker

    desk = Batches[str, str](
        lambda batch: rig.engine._turn(lambda turn: each(turn, batch, rename)), 8
    )
    outcomes = await asyncio.gather(*map(desk.ask, names), return_exceptions=True)
    assert [outcomes[0], outcomes[2]] == [names[0], names[2]]
    assert isinstance(outcomes[1], BadRecord)
    with rig.database.session() as session:
        found = [session.get_one(WorkerRow, name).device_name for name in names]
    assert found == ["renamed", "", "renamed"]


async def test_heartbeats_that_come_at_once_are_answered_each_for_itself(
    boot: Any, transactions: list[object]
) -> None:
    rig = await boot()
    members = [rig.enrol(seed) for seed in range(1, CROWD + 1)]
    rig.block(members[5].name, "a test")
    beats = [wire.Heartbeat(run_id=rig.run_id, worker=member.name) for member in members]
    stranger = Identity.generate()
    unknown = wire.Heartbeat(run_id=rig.run_id, worker=stranger.peer_id)
    transactions.clear()
    *replies, refused = await asyncio.gather(
        *(rig.engine.heartbeat(m.sign(b)) for m, b in zip(members, beats, strict=True)),
        rig.engine.heartbeat(type(members[0])(rig, stranger).sign(unknown)),
        return_exceptions=True,
    )
    assert len(transactions) < CROWD / 4
    assert isinstance(refused, NotEnrolled)
    actions = Counter(reply.action for reply in replies)
    assert actions == {api.ACTION_KEEP: CROWD - 1, api.ACTION_PAUSE: 1}
    assert "a test" in replies[5].reason


async def test_rows_are_found_as_the_transaction_has_them(boot: Any) -> None:
    rig = await boot()
    ada = rig.enrol(1).name
    fields = {"donor": ada, "device_class": "cpu", "enrolled_at_s": 0.0}
    with rig.database.session() as session:
        fetch(session, WorkerRow.worker, [ada, "absent"])
        assert find(session, WorkerRow, ada).worker == ada
        assert find(session, WorkerRow, "absent") is None
        session.add(WorkerRow(worker="absent", **fields))
        assert find(session, WorkerRow, "absent").donor == ada  # added, not flushed yet
        assert len(rows_by(session, WorkerRow.donor, ada)) == 2  # by the database
        assert len(rows_by(session, WorkerRow.worker, "absent")) == 1


@pytest.mark.parametrize("how", ["silent", "paused"])
async def test_a_crowd_that_gives_its_leases_up_is_written_down_once(boot: Any, how: str) -> None:
    rig, members = await crowd(boot, 5)
    written: list[str] = []
    event.listen(
        rig.database.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: written.append(statement),
    )
    if how == "paused":
        await asyncio.gather(*(m.beat(phase=wire.WORKER_PHASE_PAUSED) for m in members[1:]))
    else:
        await rig.pass_time(rig.options.silent_after_s + 1, heard=members[:1])
    assert sum(statement.startswith("UPDATE rounds") for statement in written) == 1
    with rig.database.session() as session:
        assert load(running_round(session).machine).training == (members[0].name,)


# ---- how often members are to be heard of ----


def test_many_members_beat_less_often() -> None:
    attendance, options = Attendance(0.0), EngineOptions(heartbeat_s=4.0, heartbeats_per_s=10.0)
    assert attendance.heartbeat_s(options) == 4.0
    for number in range(80):
        attendance.came(str(number))
    told = [attendance.heartbeat_s(options) for _ in range(1000)]
    # Not all the same, or who was told at once would come back at once.
    assert 4.0 <= min(told) < 5.0 and 11.0 < max(told) <= 12.0
    assert 7.5 < sum(told) / len(told) < 8.5
    for number in range(10_000):
        attendance.came(str(number))
    told = [attendance.heartbeat_s(options) for _ in range(1000)]
    assert min(told) >= 30.0 and max(told) == 60.0  # all that workers agree to


def test_requests_of_many_wait_for_each_other() -> None:
    attendance, options = Attendance(0.0), EngineOptions(heartbeats_per_s=250.0)
    assert attendance.gather_s(options) == 0.0
    for number in range(250):
        attendance.came(str(number))
    assert attendance.gather_s(options) == 1 / 400
    for number in range(16_384):
        attendance.came(str(number))
    assert attendance.gather_s(options) == 0.1


async def test_anchors_beat_as_often_as_ever(boot: Any) -> None:
    """Or a roster would be signed without one that is there, and the last attempt trust members."""
    rig = await boot(rig={"options": EngineOptions(heartbeats_per_s=1.0)})
    anchor, ada = rig.enrol(1, anchor=True), rig.enrol(2)
    for number in range(40):
        rig.engine._attendance.came(str(number))
    assert 20_000 <= (await ada.beat()).next_heartbeat_ms <= 60_000
    assert (await anchor.beat()).next_heartbeat_ms == 4000


async def test_many_who_wait_for_work_ask_less_often(boot: Any) -> None:
    rig = await boot(rig={"options": EngineOptions(heartbeats_per_s=1.0)})
    ada = rig.enrol(1)
    await rig.engine.set_paused(True)
    assert (await ada.request()).wait.retry_after_ms == 2000
    for number in range(20):
        rig.engine._attendance.came(str(number))
    assert (await ada.request()).wait.retry_after_ms == 20_000
    await rig.engine.set_paused(False)
    assert (await ada.request()).HasField("assignment")


def test_who_was_told_to_beat_less_often_is_waited_for_longer() -> None:
    attendance, options = Attendance(0.0), EngineOptions(heartbeat_s=4.0)
    for name, told_s in (("ada", 4.0), ("bob", 20.0)):
        attendance.note(wire.Heartbeat(worker=name), 100.0, told_s)
    gone: dict[float, list[str]] = {
        112.0: [],
        113.0: ["ada"],
        160.0: ["ada"],
        161.0: ["ada", "bob"],
    }
    for now_s, absent in gone.items():
        assert [n for n in ("ada", "bob") if attendance.is_absent(n, now_s, options)] == absent
    silent = [n for n in ("ada", "bob") if attendance.is_silent(n, 0.0, 131.0, options)]
    assert silent == attendance.doubtful(("ada", "bob"), 131.0, options) == ["ada"]


async def test_what_a_database_that_was_away_did_not_take_is_written_later(
    boot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next heartbeat of a member of a crowd may be half a minute away."""
    rig = await boot()
    ada, bob = rig.enrol(1), rig.enrol(2)
    rig.now_s += 1.0
    await ada.beat(steps_done=7)
    await bob.beat(steps_done=7)
    with monkeypatch.context() as patch, pytest.raises(DatabaseAway):
        patch.setattr(Database, "_once", Mock(side_effect=DatabaseAway("for a moment")))
        await rig.engine.tick()
    await bob.beat(steps_done=8)
    await rig.engine.tick()
    with rig.database.session() as session:
        assert session.get_one(WorkerRow, ada.name).steps_done == 7
        assert session.get_one(WorkerRow, bob.name).steps_done == 8


# ---- news for a crowd ----


async def test_a_crowd_hears_everything_in_order_a_few_at_a_time() -> None:
    hub, readers = Hub(16), [Subscription(16) for _ in range(200)]
    for reader in readers:
        hub.open(reader, ())
    hub.publish([api.RunEvent(round=1)])
    hub.publish([api.RunEvent(round=2)])
    late = Subscription(16)
    hub.open(late, [api.RunEvent(round=2)])  # its snapshot holds what is published
    hub.publish([api.RunEvent(round=3)])
    assert 0 < sum(not reader._queue.empty() for reader in readers) < 200
    for reader in readers:
        events = reader.events()
        assert [(await anext(events)).round for _ in range(3)] == [1, 2, 3]
    events = late.events()
    assert [(await anext(events)).round for _ in range(2)] == [2, 3]


async def test_who_leaves_while_its_stream_opens_is_not_remembered(boot: Any) -> None:
    rig = await boot()
    hub = rig.engine._turns._hub

    async def watch() -> None:
        async with rig.watching():
            raise AssertionError("it was cancelled before")

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    async with rig.watching() as events:
        await anext(events)
        assert len(hub) == 1
