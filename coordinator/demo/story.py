"""The demonstration's story: who starts when, who is killed, and how far the run has come.

Everything is decided by what the run has reached, never by the clock: the late worker joins
when round 2 opens, the victim is killed in mid-training of a round of its own, and the
end is when the coordinator says that the run is finished, every worker has left, and every audit
is decided: the anchor still has the bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.database import Database
from coordinator.demo.config import DemoScale
from coordinator.demo.observer import Snapshot, observe
from coordinator.demo.processes import Child, ChildError, Children

LATE_ROUND = 2
KILL_ROUND = 4
_POLL_S = 0.25

Say = Callable[[str], None]


@dataclass
class Neighbour:
    """One volunteer of the demonstration."""

    name: str
    home: Path
    options: tuple[str, ...] = ()
    child: Child | None = None


@dataclass
class Story:
    """Drives the workers of one run to its end."""

    children: Children
    scale: DemoScale
    link: str
    database: Database
    say: Say
    on_snapshot: Callable[[Snapshot], None]
    coordinator: Child
    killed_in_round: int | None = None
    back_in_round: int | None = None
    late_from_round: int | None = None
    _neighbours: list[Neighbour] = field(default_factory=list)
    _waits_for_audits: bool = False

    def run(self, timeout_s: float) -> Snapshot:
        """Play it.

        Returns:
            The last view of the run.

        Raises:
            ChildError: a process died that should not have, or time ran out.
        """
        folder = self.children.folder
        desktop = Neighbour("desktop", folder / "desktop")
        laptop = Neighbour("laptop", folder / "laptop", ("--client-mode",))
        late = Neighbour("latecomer", folder / "latecomer")
        for neighbour in (desktop, laptop):
            self._start(neighbour)
        end_s = time.monotonic() + timeout_s
        while True:
            snapshot = self._look()
            current = snapshot.current
            self._insist_on_life()
            if late.child is None and current and current.number >= LATE_ROUND:
                self.say("a neighbour comes late, in mid-run: the round goes on")
                self._start(late)
                self.late_from_round = current.number
            if self.killed_in_round is None and self._in_mid_round(snapshot, desktop):
                self._kill(desktop, snapshot)
            if snapshot.finished and not any(n.child and n.child.running for n in self._neighbours):
                if not snapshot.audits.open:
                    self._judge_exits()
                    return self._note_return(snapshot, desktop)
                self._tell_of_last_audits(snapshot)
            if time.monotonic() > end_s:
                raise ChildError(
                    f"the run did not end within {timeout_s:.0f} s; this is where it stands:\n"
                    f"{self._last_lines()}"
                )
            time.sleep(_POLL_S)

    def _last_lines(self) -> str:
        return "\n".join(f"{child.name}:\n{child.last_lines()}" for child in self._started())

    def _started(self) -> tuple[Child, ...]:
        return (self.coordinator, *(n.child for n in self._neighbours if n.child))

    def _tell_of_last_audits(self, snapshot: Snapshot) -> None:
        if not self._waits_for_audits:
            self._waits_for_audits = True
            self.say(f"everybody has gone home; {snapshot.audits.open} audits are still open")

    def _look(self) -> Snapshot:
        with self.database.session() as session:
            snapshot = observe(session)
        self.on_snapshot(snapshot)
        return snapshot

    def _start(self, neighbour: Neighbour) -> None:
        if not neighbour.home.exists():
            self.children.call(
                f"join-{neighbour.name}",
                *("worker", "join", self.link, "--home", str(neighbour.home), "--yes"),
                *("--dedicated", "--name", neighbour.name, "--threads", "1"),
                *("--micro-batch", str(self.scale.sequences_per_batch), *neighbour.options),
            )
        neighbour.child = self.children.start(
            neighbour.name, "worker", "run", "--home", str(neighbour.home), "--until-finished"
        )
        if neighbour not in self._neighbours:
            self._neighbours.append(neighbour)

    def _in_mid_round(self, snapshot: Snapshot, neighbour: Neighbour) -> bool:
        view = snapshot.workers.get(neighbour.name)
        current = snapshot.current
        if view is None or current is None or current.number < KILL_ROUND:
            return False
        return current.phase == "TRAINING" and view.steps_done > 0

    def _kill(self, victim: Neighbour, snapshot: Snapshot) -> None:
        assert victim.child is not None and snapshot.current is not None
        self.children.remember_families()
        steps = snapshot.workers[victim.name].steps_done
        victim.child.kill_hard()
        self.killed_in_round = snapshot.current.number
        self.say(
            f"kill -9 of {victim.name} after {steps} steps of round {snapshot.current.number}; "
            "it starts again"
        )
        self._start(victim)

    def _insist_on_life(self) -> None:
        self.children.remember_families()
        for child in self._started():
            if not child.running and child.process.returncode != 0:
                raise ChildError(
                    f"{child.name} ended with exit code {child.process.returncode}:\n"
                    f"{child.last_lines()}"
                )
        if not self.coordinator.running:
            raise ChildError(f"the coordinator left early:\n{self.coordinator.last_lines()}")

    def _judge_exits(self) -> None:
        for neighbour in self._neighbours:
            assert neighbour.child is not None
            if neighbour.child.process.wait() != 0:
                raise ChildError(f"{neighbour.name} failed:\n{neighbour.child.last_lines()}")

    def _note_return(self, snapshot: Snapshot, victim: Neighbour) -> Snapshot:
        rounds = snapshot.workers[victim.name].merged_rounds
        if self.killed_in_round is not None:
            self.back_in_round = next((n for n in rounds if n >= self.killed_in_round), None)
        return snapshot
