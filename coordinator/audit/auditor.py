"""The auditor: a process that takes replays from the queue and does them, one at a time.

Invariants:

* It reads assignments, weights and data, and writes replays and signed results. What workers and
  reducers showed (challenges, openings) it never reads.
* A failure of its own is never a worker's: it says so in its result, or gives the job back.
* SIGTERM ends it within seconds, wherever it is; the job goes back to the queue. After kill -9 the
  next process with its key gives the job back, or else its lease ends.
* The training runs in a thread; the main thread keeps the lease and hears signals.
* Bounds of its execution class that are missing or outgrown it measures itself, before a job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from coordinator.audit import base_weights, jobs
from coordinator.audit.replay import execution_class
from coordinator.audit.tolerances import store_table
from coordinator.audit.upkeep import StoppedError, measure, wanted
from coordinator.audit.workplace import Workplace
from protocol.envelope import seal
from protocol.errors import NotFound, ProtocolError, TransientError
from protocol.identity import Identity
from protocol.tolerance import ToleranceTable
from protocol.training import Execution
from protocol.wire import records_pb2 as wire

_LOOK_S = 0.1
_RENEW_S = 20.0
_STOP_GRACE_S = 5.0
"""An inner step that takes longer than this after SIGTERM is abandoned."""

_LONGEST_BACKOFF_S = 60.0
_BOUNDS_EVERY_S = 600.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class Settings:
    """How an auditor works."""

    execution: Execution
    poll_s: float = 2.0  # longest wait between two looks into an empty queue
    lease_s: float = 120.0  # renewed while a job is under way
    once: bool = False  # end when the queue holds nothing for us
    calibrate: bool = True  # measure bounds where the run has none for our class


@dataclass
class _Attempt:
    """One piece of work, in a thread that dies with the process."""

    ended: threading.Event = field(default_factory=threading.Event)
    result: wire.AuditResult | ToleranceTable | None = None
    problem: ProtocolError | FileNotFoundError | None = None
    stopped: bool = False  # by us, between two inner steps
    lost: bool = False  # the lease went to another auditor

    def start(self, work: Callable[[_Attempt], wire.AuditResult | ToleranceTable | None]) -> None:
        def run() -> None:
            try:
                self.result = work(self)
            except (ProtocolError, FileNotFoundError) as error:
                self.problem = error
            except StoppedError:
                self.stopped = True
            finally:
                self.ended.set()

        threading.Thread(target=run, name="replay", daemon=True).start()


class Auditor:
    """Takes jobs until it is stopped."""

    def __init__(
        self, place: Workplace, identity: Identity, settings: Settings, stop: threading.Event
    ) -> None:
        """Prepare; touches nothing yet.

        Args:
            place: of the run.
            identity: signs the results.
            settings: how to work.
            stop: set it, from a signal handler for example, and :meth:`run` ends.
        """
        self.abandoned = False
        """Whether a thread is still training after :meth:`run`: end the process, do not wait."""
        self._place = place
        self._identity = identity
        self._name = identity.peer_id
        self._settings = settings
        self._class = execution_class(settings.execution)
        self._stop = stop
        self._look_at_bounds_s = 0.0

    def run(self) -> int:
        """Work until stopped, or, with ``once``, until nothing is left.

        Returns:
            How many results were accepted.

        Raises:
            UsageError, BadDigest: this machine cannot do the work: memory, damaged data.
        """
        self._take_up()
        done, failures, idle_s = 0, 0, 0.0
        while not self._stop.is_set():
            try:
                self._keep_bounds()
                work = self._claim()
                if work is not None:
                    done += self._do(*work)
                elif self._settings.once:
                    break
                # Jobs come in bursts, when a round has settled: look often after work.
                idle_s = 0.0 if work else min(idle_s + self._settings.poll_s / 8, self._poll_s)
                failures = 0
            except TransientError as error:
                failures += 1
                idle_s = min(self._poll_s * 2.0**failures, _LONGEST_BACKOFF_S)
                _log.warning("will_try_again", error=str(error), in_s=idle_s)
            self._stop.wait(idle_s)
        return done

    @property
    def _poll_s(self) -> float:
        return self._settings.poll_s

    def _take_up(self) -> None:
        with self._place.database.session() as session:
            jobs.note_alive(session, self._name, self._class, time.time())
            left = jobs.give_back(session, self._name, counted=True)
        _log.info("auditor_ready", auditor=self._name, execution=self._class, taken_up=left)

    def _claim(self) -> tuple[jobs.JobSpec, base_weights.Plan | None] | None:
        with self._place.database.session() as session:
            spec = jobs.claim(session, self._name, self._class, time.time(), self._settings.lease_s)
            if spec is None:
                return None
            try:
                return spec, base_weights.plan(session, spec.state_digest)
            except NotFound:
                return spec, None

    # ---- bounds ----

    def _keep_bounds(self) -> None:
        """Measure bounds once there is something to compare by them; tried now and then."""
        now_s = time.monotonic()
        if not self._settings.calibrate or now_s < self._look_at_bounds_s:
            return
        with self._place.database.session() as session:
            start = wanted(session, self._place.manifest, self._class)
        if start is None:
            return
        _log.info("calibrating", execution=self._class, steps=start.steps)
        attempt = _Attempt()
        attempt.start(lambda _: measure(self._place, start, lambda: not self._stop.is_set()))
        self._look_after(attempt, self._note_alive)
        self._look_at_bounds_s = time.monotonic() + _BOUNDS_EVERY_S
        if isinstance(attempt.result, ToleranceTable):
            with self._place.database.session() as session:
                store_table(session, attempt.result, time.time())
            _log.info("calibrated", entries=len(attempt.result.entries))
        elif not attempt.stopped:
            _log.error("not_calibrated", why=str(attempt.problem))

    def _note_alive(self) -> bool:
        with self._place.database.session() as session:
            jobs.note_alive(session, self._name, self._class, time.time())
        return True

    # ---- one job ----

    def _do(self, spec: jobs.JobSpec, plan: base_weights.Plan | None) -> bool:
        """Do a job, and keep its lease meanwhile.

        Returns:
            Whether a result was accepted.
        """
        _log.info("job_started", job=spec.job_id.hex(), round=spec.round, attempt=spec.attempt)
        attempt = _Attempt()
        attempt.start(lambda attempt: self._replay(attempt, spec, plan))
        self._look_after(attempt, lambda: self._renew(spec))
        if attempt.lost:
            _log.info("job_dropped", job=spec.job_id.hex(), why="another auditor has it now")
            return False
        if isinstance(attempt.result, wire.AuditResult):
            return self._finish(spec, attempt.result)
        self._give_back(spec, attempt)
        return False

    def _replay(
        self, attempt: _Attempt, spec: jobs.JobSpec, plan: base_weights.Plan | None
    ) -> wire.AuditResult | None:
        def go_on() -> bool:
            attempt.stopped = attempt.lost or self._stop.is_set()
            return not attempt.stopped

        return self._place.do(spec, plan, self._name, self._settings.execution, go_on)

    def _look_after(self, attempt: _Attempt, renew: Callable[[], bool]) -> None:
        """Until the attempt has ended, or it is time to go.

        Args:
            attempt: under way.
            renew: says that we live; whether the work is still ours.
        """
        renewed_s, leave_s = time.monotonic(), None
        while not attempt.ended.wait(_LOOK_S):
            now_s = time.monotonic()
            if self._stop.is_set():
                leave_s = leave_s or now_s + _STOP_GRACE_S
                if now_s > leave_s:
                    self.abandoned = attempt.stopped = True
                    return
            elif not attempt.lost and now_s - renewed_s > min(_RENEW_S, self._settings.lease_s / 4):
                renewed_s, attempt.lost = now_s, not renew()

    def _renew(self, spec: jobs.JobSpec) -> bool:
        try:
            with self._place.database.session() as session:
                return jobs.renew(
                    session,
                    spec.job_id,
                    self._name,
                    self._class,
                    time.time(),
                    self._settings.lease_s,
                )
        except TransientError as error:
            _log.warning("lease_not_renewed", job=spec.job_id.hex(), error=str(error))
            return True  # whose it is then, the database says when there is a result

    def _finish(self, spec: jobs.JobSpec, result: wire.AuditResult) -> bool:
        envelope = seal(result, self._identity)
        with self._place.database.session() as session:
            counts = jobs.finish(session, spec.job_id, self._name, envelope, time.time())
            gone = jobs.is_gone(session, spec.job_id)
        if gone:
            self._place.replays.delete(spec.job_id)
        _log.info(
            "job_done",
            job=spec.job_id.hex(),
            failed=result.failed,
            compute_s=round(result.compute_s, 2),
            counts=counts,
        )
        return counts

    def _give_back(self, spec: jobs.JobSpec, attempt: _Attempt) -> None:
        """Put an unfinished job back.

        Raises:
            ProtocolError: what ended it.
            RuntimeError: it ended without a result; the thread has printed why.
        """
        ours = not attempt.stopped and not isinstance(attempt.problem, TransientError)
        with self._place.database.session() as session:
            jobs.give_back(session, self._name, counted=ours)
        _log.info("job_given_back", job=spec.job_id.hex(), why=str(attempt.problem or ""))
        if attempt.problem is not None:
            raise attempt.problem
        if not attempt.stopped:
            raise RuntimeError("the replay ended without a result: see above")
