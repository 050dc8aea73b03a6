"""What the coordinator does with a worker's word that a peer served wrong bytes: it tells, once."""

from __future__ import annotations

from structlog.testing import capture_logs

from coordinator.attendance import Attendance
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire


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
