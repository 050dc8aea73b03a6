"""A worker's word that a peer served wrong bytes, and what comes of it: it is told, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from coordinator.attendance import Attendance
from protocol.hello import client_version
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.heartbeat import Heartbeats
from worker.reachability import Reachability
from worker.sources import Sources
from worker.status import Board


def beat(reporter: str, *sources: str) -> wire.Heartbeat:
    return wire.Heartbeat(worker=reporter, bad_sources=sources)


def test_a_report_is_told_once_for_each_reporter_and_as_unproven() -> None:
    liar = Identity.generate().peer_id
    attendance = Attendance(0.0)
    with capture_logs() as lines:
        for now_s in (1.0, 2.0):
            for reporter in ("ada", "bob"):
                attendance.note(beat(reporter, liar), now_s)
    told = [(line["reporter"], line["source"], line["proven"]) for line in lines]
    assert told == [("ada", liar, False), ("bob", liar, False)]


def test_reports_are_bounded_and_only_peers_can_be_named() -> None:
    attendance = Attendance(0.0)
    with capture_logs() as lines:
        attendance.note(beat("eve", "", "x" * 10_000, "\0", "coordinator"), 1.0)
        assert lines == []
        names = [Identity.generate().peer_id for _ in range(200)]
        attendance.note(beat("eve", *names[:100]), 2.0)
        assert len(lines) == 16
        for start in range(0, 200, 10):
            attendance.note(beat("eve", *names[start : start + 10]), 3.0)
    assert len(lines) == 64


async def test_a_worker_tells_its_owner_and_the_coordinator(session: Any) -> None:
    sources, board = Sources(session), Board("w", "r")
    liars = [Identity.generate().peer_id for _ in range(20)]
    for name in (*liars, "coordinator"):
        sources.convict(name, "it lied")
    # Not measured yet: nothing of the swarm is asked.
    reachability = Reachability(True, session, None, board)  # type: ignore[arg-type]
    node = SimpleNamespace(
        bad_sources=sources.bad,
        direct=reachability.reach.direct,
        addresses=reachability.addresses,
        identity=session.identity,
        config=SimpleNamespace(join_link=session.link),
    )
    beat = await Heartbeats(node, board)._beat()  # type: ignore[arg-type]
    assert list(beat.bad_sources) == board.snapshot()["bad_sources"] == liars[-16:]
    # The coordinator takes it, and it changes nothing for anybody.
    await session.enrol(enrolment(session))
    reply = await session.heartbeat(beat)
    assert reply.action == api.ACTION_KEEP


def enrolment(session: Any) -> wire.Enrolment:
    return wire.Enrolment(
        run_id=session.link.run_id,
        worker=session.identity.peer_id,
        donor=session.identity.peer_id,
        client_version=client_version(),
        device=wire.Device(device_class="cpu", name="a laptop", threads=1),
        display_name="Ada",
        client_mode=True,
    )
