"""Members and reducers that are gone, as the coordinator notices: by streams and heartbeats."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from coordinator.attendance import Attendance
from coordinator.context import EngineOptions
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api

OPTIONS = EngineOptions()


# ---- who is there


def beat(worker: str) -> wire.Heartbeat:
    return wire.Heartbeat(worker=worker)


def test_whose_stream_ended_is_gone_unless_it_is_heard_of_again() -> None:
    attendance = Attendance(0.0)
    attendance.came("ada")
    attendance.note(beat("ada"), 100.0)
    attendance.left("ada", 101.0)
    assert not attendance.is_absent("ada", 103.0, OPTIONS)
    assert attendance.is_absent("ada", 103.1, OPTIONS)
    attendance.note(beat("ada"), 104.0)
    assert not attendance.is_absent("ada", 110.0, OPTIONS)


def test_whoever_came_back_before_the_old_stream_was_missed_is_there() -> None:
    attendance = Attendance(0.0)
    attendance.came("ada")
    attendance.came("ada")
    attendance.left("ada", 50.0)
    attendance.note(beat("ada"), 51.0)
    assert not attendance.is_absent("ada", 55.0, OPTIONS)


def test_a_machine_without_power_closes_nothing_but_its_heartbeats_stop() -> None:
    attendance = Attendance(0.0)
    attendance.came("ada")
    attendance.note(beat("ada"), 100.0)
    assert OPTIONS.unheard_after_s == 12.0
    assert not attendance.is_absent("ada", 112.0, OPTIONS)
    assert attendance.is_absent("ada", 112.1, OPTIONS)


def test_after_our_restart_everybody_gets_time_to_find_us() -> None:
    attendance = Attendance(1000.0)
    assert not attendance.is_absent("ada", 1030.0, OPTIONS)
    assert attendance.is_absent("ada", 1030.1, OPTIONS)


def test_a_busy_machine_is_not_gone_however_short_its_heartbeats() -> None:
    assert EngineOptions(heartbeat_s=0.1).unheard_after_s == 10.0
    assert EngineOptions(heartbeat_s=20.0).unheard_after_s == 60.0


# ---- what a round makes of it


class Present:
    """Event streams of members, opened and closed at will."""

    def __init__(self, rig: Any, *members: Any) -> None:
        self._rig, self._members, self._open = rig, members, dict[str, Any]()

    async def open(self) -> None:
        for member in self._members:
            stream = self._open[member.name] = self._rig.engine.subscribe(member.name)
            member.events = await stream.__aenter__()

    async def leave(self, member: Any) -> None:
        await self._open.pop(member.name).__aexit__(None, None, None)

    async def close(self) -> None:
        for stream in self._open.values():
            await stream.__aexit__(None, None, None)


@pytest_asyncio.fixture
async def scene(boot: Any) -> Any:
    """Two anchors, two members that are both committed, everybody watching."""
    rig = await boot(round={"min_members": 1})
    anchors = [rig.enrol(seed, anchor=True) for seed in (1, 4)]
    members = [rig.enrol(seed) for seed in (2, 3)]
    present = Present(rig, *anchors, *members)
    await present.open()
    for member in members:
        await member.lease()
    for member in members:
        member.train()
        await member.commit()
    rig.present, rig.anchors, rig.pair = present, anchors, members
    yield rig
    await present.close()


async def test_a_member_that_left_is_not_waited_for(scene: Any) -> None:
    ada, bob = scene.pair
    await scene.gather(complete=[ada])
    assert scene.phase() == "GATHER"
    await scene.present.leave(bob)
    await scene.pass_time(2.5)
    assert scene.phase() == "BROADCAST"
    await scene.submit(scene.results())
    assert await scene.engine.settle()
    assert scene.board().donors[bob.name].tally.contributions == 0
    freed = bob.assignment.start_sequence
    await scene.pass_time(0.5)
    starts = [(await member.lease()).start_sequence for member in (bob, ada)]
    assert freed in starts, "what was not merged is leased again"


async def test_a_reducer_that_left_in_the_gather_is_replaced_at_once(scene: Any) -> None:
    gone, there = scene.anchors
    await scene.gather(only=[there])
    await scene.present.leave(gone)
    await scene.pass_time(2.5)
    roster, _ = scene.roster()
    assert roster.attempt == 2
    assert [r.reducer for r in roster.reducers] == [there.name]
    await scene.gather()
    await scene.submit(scene.results())
    assert await scene.engine.settle()
    assert scene.board().rounds[0].leaf.outcome == "settled"


async def lost_in_broadcast(scene: Any) -> tuple[Any, list[Any]]:
    """A reducer leaves when the other has delivered; who it was, and its results."""
    gone, there = scene.anchors
    await scene.gather()
    await scene.submit([p for p in scene.results() if reducer_of(p) == there.name])
    await scene.present.leave(gone)
    await scene.pass_time(2.5)
    return gone, [p for p in scene.results() if reducer_of(p) == gone.name]


def reducer_of(piece: api.ResultPiece) -> str:
    return str(piece.result.signatures[0].keyid)


async def next_wanted(member: Any) -> api.ResultsWanted:
    async for event in member.events:
        if event.WhichOneof("event") == "results_wanted":
            assert event.phase == "BROADCAST"
            return event.results_wanted
    raise AssertionError("the stream ended")


async def test_whoever_holds_a_lost_reducers_results_is_asked_for_them(scene: Any) -> None:
    _, pieces = await lost_in_broadcast(scene)
    roster, group_id = scene.roster()
    assert roster.attempt == 1
    for member in scene.pair:
        wanted = await next_wanted(member)
        assert wanted.group_id == group_id
        assert len(wanted.chunks) == len(pieces)
    await scene.submit(pieces[:1])
    await scene.pass_time(2.9)  # something came: the rescue goes on
    assert scene.roster()[0].attempt == 1
    await scene.submit(pieces[1:])
    assert await scene.engine.settle()
    assert scene.board().rounds[0].leaf.outcome == "settled"


async def test_who_connects_later_is_asked_too(scene: Any) -> None:
    await lost_in_broadcast(scene)
    async with scene.engine.subscribe("newcomer") as events:
        kinds = [(await anext(events)).WhichOneof("event") for _ in range(4)]
    assert kinds == ["run_head", "roster", "inclusion_set", "results_wanted"]


async def test_what_nobody_holds_takes_another_attempt(scene: Any) -> None:
    gone, _ = await lost_in_broadcast(scene)
    await scene.pass_time(3.1)
    roster, _ = scene.roster()
    assert roster.attempt == 2
    assert gone.name not in [r.reducer for r in roster.reducers]
    await scene.gather()
    await scene.submit(scene.results())
    assert await scene.engine.settle()


async def test_where_the_only_anchor_is_gone_a_roster_waits_for_its_return(boot: Any) -> None:
    rig = await boot(round={"min_members": 1})
    anchor, ada = rig.enrol(1, anchor=True), rig.enrol(2)
    present = Present(rig, anchor, ada)
    await present.open()
    await ada.lease()
    ada.train()
    await present.leave(anchor)
    rig.now_s += 2.5
    await ada.commit()
    assert rig.stored_roster() == (None, None)
    async with rig.engine.subscribe(anchor.name):
        await rig.pass_time(1.0)
        assert rig.roster()[0].attempt == 1
    await present.close()


@pytest.mark.parametrize("away_s", [5.0, 600.0])
async def test_commits_outlive_an_absence_of_ours_however_long(boot: Any, away_s: float) -> None:
    rig = await boot(round={"min_members": 1})
    rig.enrol(1, anchor=True)
    ada = rig.enrol(2)
    await ada.lease()
    ada.train()
    await ada.commit()
    first = rig.roster()[0]
    await rig.reboot(downtime_s=away_s)
    roster = rig.roster()[0]
    assert roster.attempt == (1 if away_s == 5.0 else 2)
    assert roster.members == first.members
    assert roster.gather_deadline_ms >= rig.now_s * 1000 or away_s == 5.0
    await rig.gather()
    await rig.submit(rig.results())
    assert await rig.engine.settle()
