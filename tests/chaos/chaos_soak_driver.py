"""Plays a plan over a live run: who died comes back, who stands still goes on.

Invariant: everything here follows from facts: a line of a log (a fault has fired), the end of a
process, the round in the coordinator's database. Only the least length of the whole is a time.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos_soak_checks import weights_agree
from chaos_soak_facts import NOT_BEGUN, Now, look, rows
from chaos_soak_meter import Meter
from chaos_soak_plan import Do, Fired, Planned, of
from chaos_soak_points import FIRED
from chaos_soak_run import Member, Run, call

_POLL_S = 0.2
_SLOW_PART = 5  # a slow trainer runs in one of so many polls
_START_S = 300.0
_RECOVERY_S = 240.0


class Stuck(AssertionError):
    """The run did not do in time what it has to."""


class Tail:
    """New lines of a log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._rest = path, 0, b""

    def events(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [parsed for line in lines if line.startswith(b"{") and (parsed := _parse(line))]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None  # cut by a kill
    return parsed if isinstance(parsed, dict) else None


@dataclass
class Driver:
    """One soak from its start to the quiet at its end."""

    run: Run
    plan: Sequence[Planned]
    meter: Meter
    fired: list[Fired] = field(default_factory=list)
    now: Now = NOT_BEGUN
    quiet_since: int = 0  # settled rounds at the end of the faults
    ended_in: dict[str, int] = field(default_factory=dict)  # round in which a dead member ended
    _tails: dict[str, Tail] = field(default_factory=dict)
    _polls: int = 0

    # ---- the whole

    def play(self, minutes: float, faults: int) -> None:
        """Faults for so long, and until so many have fired; then quiet, until all are in a round.

        How many rounds a minute holds depends on the machine; how many faults a round, does not.

        Raises:
            Stuck: the run did not get going, or did not recover.
        """
        self._tails = {name: Tail(member.log) for name, member in self.run.members.items()}
        self._start(self.run.coordinator)
        self._until(
            lambda: "Serving" in self.run.coordinator.log.read_text(), _START_S, "nobody serves"
        )
        for member in self.run.workers:
            self._start(member)
        self._until(lambda: self.now.round >= 1, _START_S, "the first round does not end")
        end_s = time.monotonic() + 60 * minutes
        while time.monotonic() < end_s or len(self.fired) < faults:
            self._step()
        self._recover()

    def _recover(self) -> None:
        """Everybody back and in one round; then no new work, and everybody at the same state."""
        self.run.be_quiet()
        for happened in self.fired:
            self._go_on(happened)
        self.quiet_since = self.now.settled
        self._until(self._all_merged, _RECOVERY_S, "not everybody was merged in one round")
        call("coordinator", "pause", "--run-dir", str(self.run.run))
        self._until(self._at_rest, _RECOVERY_S, "units are still under way")
        self._until(
            lambda: not weights_agree(self.run), _RECOVERY_S, "not everybody has the last state"
        )

    def _at_rest(self) -> bool:
        return not rows(
            self.run.database,
            "SELECT 1 FROM assignments WHERE status IN ('training', 'committed')",
        )

    def _all_merged(self) -> bool:
        """A round that began in the quiet had every worker in it."""
        workers = self.run.shape.workers
        return bool(
            rows(
                self.run.database,
                "SELECT 1 FROM rounds WHERE phase = 'SETTLED' AND settled_rounds >= ? "
                "AND members = ?",
                self.quiet_since,
                workers,
            )
        )

    def _until(self, holds: Callable[[], object], timeout_s: float, problem: str) -> None:
        end_s = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > end_s:
                raise Stuck(f"{problem} after {timeout_s:.0f} s, at {self.now}")
            self._step()

    # ---- a look, and what follows from it

    def _step(self) -> None:
        self._polls += 1
        with suppress(sqlite3.OperationalError):  # being made, or mended after a kill: look again
            self.now = look(self.run.database)
        for name, tail in self._tails.items():
            for event in tail.events():
                if event.get("event") == FIRED:
                    self._note(name, event)
        for happened in self.fired:
            if not happened.over:
                self._see_to(happened)
        for member in self.run.members.values():
            self._see_whether_it_lives(member)
        self.meter.look(self.run)
        time.sleep(_POLL_S)

    def _note(self, who: str, event: dict[str, Any]) -> None:
        for fault in of(self.plan, who):
            if fault.name == event["name"]:
                self.fired.append(Fired(fault, event["round"]))

    def _see_to(self, happened: Fired) -> None:
        fault = happened.fault
        if fault.do is Do.SLOW:
            self._slow(happened)
        elif fault.do not in (Do.STAND, Do.SLEEP, Do.CUT_OFF) or (
            self.now.round >= happened.round + fault.rounds
        ):
            self._go_on(happened)

    def _go_on(self, happened: Fired) -> None:
        if not happened.over:
            happened.over = True
            if happened.fault.do not in (Do.KILL, Do.KILL_ANCHOR):
                self.run.members[happened.fault.who].wake()

    def _slow(self, happened: Fired) -> None:
        """A fifth of the time for its trainer, to the end of the round."""
        if self.now.round > happened.round:
            self._go_on(happened)
            return
        for process in self.run.members[happened.fault.who].tree()[1:]:
            try:
                if "worker.trainer_process" in process.cmdline():
                    (process.suspend if self._polls % _SLOW_PART else process.resume)()
            except psutil.NoSuchProcess:
                continue  # it has ended meanwhile

    def _see_whether_it_lives(self, member: Member) -> None:
        if member.popen is None or member.running:
            return
        if member.popen.returncode != -signal.SIGKILL:
            raise Stuck(f"{member.name} ended by itself with {member.popen.returncode}")
        round_ = self.ended_in.setdefault(member.name, self.now.round)
        if self.now.round >= round_ + self._rounds_away(member):
            del self.ended_in[member.name]
            self._start(member)

    def _rounds_away(self, member: Member) -> int:
        quiet = self.quiet_since > 0
        deaths = [
            happened.fault
            for happened in self.fired
            if happened.fault.who == member.name and happened.fault.do is Do.KILL
        ]
        return 0 if quiet or not deaths else deaths[-1].rounds

    def _start(self, member: Member) -> None:
        done = {happened.fault.name for happened in self.fired}
        member.start([f for f in of(self.plan, member.name) if f.name not in done])
