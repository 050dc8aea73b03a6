"""Who is there: whoever watches the run or was heard of lately.

A reduce does not wait for whoever is gone. A process that ends closes its event stream: that is
known at once, and within ``gone_after_s`` it could have come back. A machine that loses its power
or its network closes nothing: its heartbeats stop.

Heartbeats change memory only; the next tick takes what changed on the event loop and writes it in
one transaction, so that a thousand workers cost one disk flush and not a thousand. After a restart
everybody counts as heard of at the start: nobody loses a lease because the coordinator was away.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import structlog
from sqlalchemy import bindparam, update
from sqlalchemy.orm import Session

from coordinator.audit.schema import ISSUED, LAPSED, ProbationRow
from coordinator.context import EngineOptions
from coordinator.lookups import find
from coordinator.schema import COMMITTED, MERGED, TRAINING, AssignmentRow, ControlRow, WorkerRow
from coordinator.turn import Turn
from coordinator.versions import too_old
from ledger.schema import Base
from protocol.errors import ProtocolError
from protocol.identity import PublicKey
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_WORKERS = Base.metadata.tables[WorkerRow.__tablename__]
_MAX_REASON_CHARS = 200
_MISSED = 3  # heartbeats, until a worker counts as silent
_ASSIGNMENT_ID_BYTES = 16
_MAX_BAD_SOURCES = 16
_MAX_REPORTED = 64  # by one worker: or it would fill the log

_SPREAD = 0.5  # of an interval, to both sides
_CALLS_A_GATHERING, _LONGEST_GATHERING_S = 400, 0.1

MAX_HEARTBEAT_S = 60.0
"""The longest interval that workers agree to."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Presence:
    """What a worker last said, and when."""

    seen_at_s: float
    heartbeat: wire.Heartbeat


class Attendance:
    """Presence of every worker since the start."""

    def __init__(self, started_at_s: float) -> None:
        self._started_at_s = started_at_s
        self._seen: dict[str, float] = {}
        self._told_s: dict[str, float] = {}  # interval of its heartbeats, as it was told last
        self._unwritten: dict[str, Presence] = {}
        self._streams: Counter[str] = Counter()
        self._left_at_s: dict[str, float] = {}  # who watched, and does not now
        self._given_up: dict[str, bytes] = {}  # the last assignment that a worker will not commit
        self._random = random.Random()
        self._reported: defaultdict[str, set[str]] = defaultdict(set)  # reporter -> bad sources

    def begin_anew(self, now_s: float) -> None:
        """We were away: whoever was silent meanwhile counts as heard of now."""
        self._started_at_s = now_s
        self._seen.clear()
        self._left_at_s.clear()

    def crowd_s(self, options: EngineOptions) -> float:
        """How long each is to wait before it calls again without news: longer the more there are,
        so that all of them together call no more than so many times a second."""
        return min(len(self._streams) / options.heartbeats_per_s, MAX_HEARTBEAT_S)

    def gather_s(self, options: EngineOptions) -> float:
        """How long a request waits for others to share its transaction with: where few call, none
        of that counts; where the most do that we ask for, some dozens come meanwhile."""
        return min(self.crowd_s(options) / _CALLS_A_GATHERING, _LONGEST_GATHERING_S)

    def heartbeat_s(self, options: EngineOptions) -> float:
        """The interval of heartbeats to tell: in a crowd another one each time, about what it is to
        be, or all that were told at once would come back at once."""
        return self._interval_s(options, self._random.uniform(1 - _SPREAD, 1 + _SPREAD))

    def _interval_s(self, options: EngineOptions, share: float) -> float:
        crowd_s = self.crowd_s(options)
        if crowd_s <= options.heartbeat_s:
            return options.heartbeat_s
        return min(max(options.heartbeat_s, crowd_s * share), MAX_HEARTBEAT_S)

    def note(self, heartbeat: wire.Heartbeat, now_s: float, told_s: float = 0.0) -> None:
        """A worker was heard of, and told after how long to be heard of again."""
        self._seen[heartbeat.worker] = now_s
        self._told_s[heartbeat.worker] = told_s
        self._unwritten[heartbeat.worker] = Presence(now_s, heartbeat)
        if len(heartbeat.given_up) == _ASSIGNMENT_ID_BYTES:
            self._given_up[heartbeat.worker] = heartbeat.given_up
        else:  # or it has taken the unit up again
            self._given_up.pop(heartbeat.worker, None)
        for source in heartbeat.bad_sources[:_MAX_BAD_SOURCES]:
            self._note_bad_source(heartbeat.worker, source)

    def _note_bad_source(self, reporter: str, source: str) -> None:
        """Somebody says that a peer served wrong bytes: nobody can check it, so it is only told."""
        known = self._reported[reporter]
        if source in known or len(known) == _MAX_REPORTED or not _is_peer_id(source):
            return
        known.add(source)
        _log.warning("bad_source_reported", reporter=reporter, source=source, proven=False)

    def came(self, worker: str) -> None:
        """It opened an event stream."""
        self._streams[worker] += 1
        self._left_at_s.pop(worker, None)

    def left(self, worker: str, now_s: float) -> None:
        """One of its event streams ended."""
        self._streams[worker] -= 1
        if not self._streams[worker]:
            del self._streams[worker]
            self._left_at_s[worker] = now_s

    def is_absent(self, worker: str, now_s: float, options: EngineOptions) -> bool:
        """Whether a reduce should not wait for it."""
        seen_at_s, left_at_s = self._seen.get(worker, 0.0), self._left_at_s.get(worker, 0.0)
        if left_at_s > seen_at_s:
            return now_s - left_at_s > options.gone_after_s
        if seen_at_s:
            unheard_s = max(options.unheard_after_s, _MISSED * self._told_s.get(worker, 0.0))
            return now_s - seen_at_s > unheard_s
        # Not heard of since our start: it may still be trying to reach us.
        return not self._streams[worker] and now_s - self._started_at_s > options.silent_after_s

    def is_silent(
        self, worker: str, leased_at_s: float, now_s: float, options: EngineOptions
    ) -> bool:
        """Whether a worker was not heard of since it got its lease, for several heartbeats."""
        since_s = max(self._seen.get(worker, 0.0), leased_at_s, self._started_at_s)
        # By us, or before a restart: the longest that it may have been told.
        told_s = self._told_s.get(worker) or self._interval_s(options, 1 + _SPREAD)
        patience_s = max(options.silent_after_s, _MISSED * told_s)
        return now_s - since_s > patience_s

    def doubtful(self, workers: Collection[str], now_s: float, options: EngineOptions) -> list[str]:
        """Those of some workers with leases that could be silent, or have given one up."""
        return [
            worker
            for worker in workers
            if worker in self._given_up or self.is_silent(worker, 0.0, now_s, options)
        ]

    def has_given_up(self, worker: str, assignment_id: bytes) -> bool:
        """Whether it said that it will not commit this one."""
        return self._given_up.get(worker) == assignment_id

    def take(self) -> dict[str, Presence]:
        """What changed since the last time, for :func:`write_presence`."""
        unwritten, self._unwritten = self._unwritten, {}
        return unwritten

    def put_back(self, unwritten: Mapping[str, Presence]) -> None:
        """It could not be stored: it is taken again, but for whom there is news of."""
        self._unwritten = {**unwritten, **self._unwritten}


def write_presence(session: Session, unwritten: Mapping[str, Presence]) -> None:
    """Store what :meth:`Attendance.take` gave, in one statement for all."""
    if unwritten:
        # On the table itself: the session holds none of these rows yet.
        session.connection().execute(
            update(_WORKERS).where(_WORKERS.c.worker == bindparam("who")),
            [_columns(worker, presence) for worker, presence in unwritten.items()],
        )


def _columns(worker: str, presence: Presence) -> dict[str, object]:
    beat = presence.heartbeat
    return {
        "who": worker,
        "last_seen_s": presence.seen_at_s,
        "phase": beat.phase,
        "phase_reason": beat.reason[:_MAX_REASON_CHARS].replace("\0", ""),
        "steps_done": beat.steps_done,
        "reported_tokens_per_s": finite_speed(beat.tokens_per_s),
        "client_mode": beat.client_mode,
        "multiaddrs": json.dumps(list(beat.multiaddrs)),
    }


def _is_peer_id(text: str) -> bool:
    try:
        PublicKey.from_peer_id(text)
    except ProtocolError:
        return False
    return True


def finite_speed(tokens_per_s: float) -> float:
    """A speed as somebody claims it; 0 (unknown) when it is none."""
    return tokens_per_s if math.isfinite(tokens_per_s) and tokens_per_s > 0 else 0.0


def gives_lease_up(turn: Turn, heartbeat: wire.Heartbeat) -> bool:
    """Whether a worker says that it does nothing, and will not soon, about a lease that it has: the
    round need not wait for it. While the organiser has paused the run everybody does nothing."""
    return (
        heartbeat.phase == wire.WORKER_PHASE_PAUSED
        and not heartbeat.assignment_id
        and heartbeat.worker in turn.machine.training
        and not turn.machine.paused
    )


def decide_action(
    turn: Turn, heartbeat: wire.Heartbeat, known: WorkerRow, kept_out: str | None
) -> tuple[service_pb2.Action, str]:
    """What a worker should do about what it says it is doing, and why.

    Args:
        turn: of the round in training.
        heartbeat: what it says.
        known: the device.
        kept_out: why the device takes no part, if so.
    """
    if kept_out is not None:
        return service_pb2.ACTION_PAUSE, kept_out
    if heartbeat.assignment_id:
        unit = find(turn.session, ProbationRow, heartbeat.assignment_id)
        if unit is not None and unit.worker == heartbeat.worker:
            return _about_probation(unit, turn.now_s)
        row = find(turn.session, AssignmentRow, heartbeat.assignment_id)
        if row is None or row.worker != heartbeat.worker:
            return service_pb2.ACTION_ABANDON, "this assignment is not yours"
        if row.status == MERGED:
            return service_pb2.ACTION_KEEP, "merged: report your state when you have it"
        if row.round not in [running.machine.number for running in turn.running]:
            return service_pb2.ACTION_ABANDON, f"round {row.round} is over"
        if row.status not in (TRAINING, COMMITTED):
            return service_pb2.ACTION_ABANDON, "the lease was given up after a long silence"
        return service_pb2.ACTION_KEEP, ""
    if turn.session.get_one(ControlRow, 1).paused:
        return service_pb2.ACTION_PAUSE, "the organiser has paused the run"
    upgrade = too_old(turn, known)
    if upgrade is not None:
        return service_pb2.ACTION_UPGRADE, upgrade
    return service_pb2.ACTION_KEEP, ""


def _about_probation(unit: ProbationRow, now_s: float) -> tuple[service_pb2.Action, str]:
    over = unit.status == LAPSED or (unit.status == ISSUED and now_s > unit.deadline_s)
    if over:
        return service_pb2.ACTION_ABANDON, "the time for this unit is over: ask for another"
    return service_pb2.ACTION_KEEP, ""
