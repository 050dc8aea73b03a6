"""Heartbeats: a batch of them is answered from one read of the database.

Invariants:

* Every heartbeat is answered from what is committed when its batch is read: a block, a pause, a
  lease that ended are told with the next one.
* Anchors are told the usual interval, however many members there are: they are few, rosters take
  those that were heard of lately, and every member waits for one that is gone.
* They change memory only (:mod:`coordinator.attendance`), except that a lease may be given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from coordinator.attendance import Attendance, decide_action, gives_lease_up
from coordinator.audit.challenges import open_challenges, who_is_asked
from coordinator.audit.schema import ProbationRow
from coordinator.context import EngineOptions, to_ms
from coordinator.lookups import fetch
from coordinator.schema import AssignmentRow, ControlRow
from coordinator.turn import Turn
from coordinator.work import fetch_devices, kept_out, known
from protocol.errors import NotEnrolled, ProtocolError
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

Reply = service_pb2.HeartbeatReply | ProtocolError

_log = structlog.get_logger()


class HeartbeatDesk:
    """Answers heartbeats."""

    def __init__(
        self, attendance: Attendance, options: EngineOptions, retain_from_round: Callable[[], int]
    ) -> None:
        """Answer with the presence of ``attendance``; audits say from which round to retain."""
        self._attendance = attendance
        self._options = options
        self._retain_from_round = retain_from_round
        self._told_of_lost_rounds = False

    def answer(self, turn: Turn, beats: Sequence[wire.Heartbeat]) -> list[Reply]:
        """What each worker is to do, in their order; NotEnrolled for who is not known."""
        workers = [beat.worker for beat in beats]
        fetch_devices(turn.session, workers)
        units = [beat.assignment_id for beat in beats if beat.assignment_id]
        fetch(turn.session, ProbationRow.assignment_id, units)
        fetch(turn.session, AssignmentRow.assignment_id, units)
        asked = who_is_asked(turn.session, workers)
        control = turn.session.get_one(ControlRow, 1)
        turn.storing = False  # the round, at each lease that is given up
        replies = [self._answer(turn, beat, beat.worker in asked) for beat in beats]
        turn.storing = True
        turn.store()
        del control  # the session forgets a row that nobody holds
        return replies

    def _answer(self, turn: Turn, beat: wire.Heartbeat, is_asked: bool) -> Reply:
        self._watch_for_lost_rounds(beat, turn.machine.number)
        try:
            row = known(turn.session, beat.worker)
        except NotEnrolled as error:
            return error
        # Whoever is kept out hears why, and may still be asked to show what it did.
        out = kept_out(turn.session, row)
        if gives_lease_up(turn, beat):
            turn.expire(beat.worker)
        action, reason = decide_action(turn, beat, row, out)
        options = self._options
        interval_s = options.heartbeat_s if row.anchor else self._attendance.heartbeat_s(options)
        return service_pb2.HeartbeatReply(
            action=action,
            reason=reason,
            server_time_ms=to_ms(turn.now_s),
            next_heartbeat_ms=to_ms(interval_s),
            challenges=open_challenges(turn, beat.worker) if is_asked else [],
            retain_from_round=self._retain_from_round(),
        )

    def _watch_for_lost_rounds(self, beat: wire.Heartbeat, number: int) -> None:
        """A device may know rounds that a restore lost and did not skip. Said once: it may lie."""
        if beat.round > number and not self._told_of_lost_rounds:
            self._told_of_lost_rounds = True
            _log.warning(
                "device_ahead",
                worker=beat.worker,
                its_round=beat.round,
                round=number,
                advice="after a restore: restore again with a larger --skip-rounds",
            )
