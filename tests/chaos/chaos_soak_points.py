"""The places of a soak's plan in the real programs, and what happens there.

Invariants:

* A fault fires once, says so on stderr before it does (``fault_fired``), and not at all once the
  soak has asked for quiet: then a file of that name lies beside the plan.
* Every inner step that a trainer tells its daemon of is on stderr too (``step``): what was trained
  is counted there, also what is lost afterwards.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos_injector import before
from chaos_soak_plan import Do, Place, Planned

FIRED, STEP = "fault_fired", "step"
QUIET = "quiet"


@dataclass
class Armed:
    """The faults that this process has before it."""

    faults: list[Planned]
    quiet: Path
    fired: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, path: Path) -> Armed:
        raw = json.loads(path.read_text())
        faults = [
            Planned(**{**fault, "place": Place(fault["place"]), "do": Do(fault["do"])})
            for fault in raw
        ]
        return cls(faults, path.with_name(QUIET))

    def reached(self, place: Place, *, round_: int, part: float = 1.0) -> None:
        """This process is at a place now; a fault that is overdue does not wait for its part."""
        for fault in self.faults:
            due = fault.round == round_ and part >= fault.part
            if (
                fault.place is place
                and (due or fault.round < round_)
                and fault.name not in self.fired
                and not self.quiet.exists()
            ):
                self.fired.add(fault.name)
                say(FIRED, name=fault.name, place=place, do=fault.do, round=round_)
                _DO[fault.do]()


def say(event: str, **facts: Any) -> None:
    """One line among the log's."""
    os.write(2, json.dumps({"event": event, **facts}).encode() + b"\n")


# ---- what happens


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stand() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _sleep() -> None:
    for child in psutil.Process().children(recursive=True):
        child.suspend()
    _stand()


def _children(what: str) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if what in " ".join(child.cmdline())]


def p2pd_of(process: psutil.Process) -> list[psutil.Process]:
    """The libp2p daemons of a process."""
    return [child for child in process.children(recursive=True) if child.name() == "p2pd"]


def _kill_children(what: str) -> Callable[[], None]:
    def kill() -> None:
        for child in _children(what):
            child.kill()

    return kill


def _kill_p2pd() -> None:
    for child in p2pd_of(psutil.Process()):
        child.kill()


def _cut_off() -> None:
    for child in p2pd_of(psutil.Process()):
        child.suspend()


def _nothing() -> None:
    """The driver of the soak does it: it takes more than a moment."""


_DO: dict[Do, Callable[[], None]] = {
    Do.KILL: _kill,
    Do.STAND: _stand,
    Do.SLEEP: _sleep,
    Do.KILL_TRAINER: _kill_children("worker.trainer_process"),
    Do.KILL_P2PD: _kill_p2pd,
    Do.CUT_OFF: _cut_off,
    Do.SLOW: _nothing,
    Do.KILL_ANCHOR: _kill_children("worker anchor"),
}


# ---- where it happens


def install_worker(armed: Armed) -> None:
    """The places of a worker."""
    from worker.round_runner import RoundRunner
    from worker.taking_part import Reduction

    def trained(runner: RoundRunner, progress: Any) -> dict[str, Any]:
        board = runner.board
        if progress.steps_done:
            say(STEP, round=board.round, unit=board.assignment_id, steps=progress.steps_done)
            part = progress.steps_done / progress.steps
            armed.reached(Place.TRAIN, round_=board.round, part=part)
        return {}

    before(RoundRunner, "on_progress", trained)(_ignore)

    def at(place: Place, round_of: Callable[..., int | None]) -> Callable[..., dict[str, Any]]:
        def reached(*args: Any, **kwargs: Any) -> dict[str, Any]:
            round_ = round_of(*args, **kwargs)
            if round_ is not None:
                armed.reached(place, round_=round_)
            return {}

        return reached

    for owner, name, place, round_of in (
        (RoundRunner, "_deliver", Place.COMMIT, lambda _, lease: lease.round),
        (
            Reduction,
            "follow",
            Place.WAIT,
            lambda _, round_, update, **__: round_ if update else None,
        ),
        (Reduction, "_gather", Place.GATHER, lambda _, __, roster: roster.record.round),
        (Reduction, "_finish", Place.BROADCAST, lambda _, __, head, *___: head.record.round),
        (Reduction, "_report", Place.REPORT, lambda _, roster, __: roster.record.round),
    ):
        before(owner, name, at(place, round_of))(_ignore)


def install_coordinator(armed: Armed) -> None:
    """The places of a coordinator."""
    from coordinator import commits, settle, work
    from coordinator.turn import Turn

    def at(place: Place, round_of: Callable[..., int]) -> Callable[..., dict[str, Any]]:
        def reached(*args: Any, **kwargs: Any) -> dict[str, Any]:
            armed.reached(place, round_=round_of(*args, **kwargs))
            return {}

        return reached

    for owner, name, place, round_of in (
        (work, "_assign", Place.LEASE, lambda turn, *_: turn.machine.number),
        (commits, "_keep", Place.TAKE, lambda turn, *_, **__: turn.machine.number),
        (Turn, "_sign_roster", Place.ROSTER, lambda turn, _: turn.machine.number),
        (Turn, "_sign_inclusion", Place.INCLUDE, lambda turn, _: turn.machine.number),
        (settle, "compute", Place.SETTLE, lambda _, __, inputs: inputs.round),
        (settle, "record_settled", Place.SETTLED, lambda _, inputs, *__, **___: inputs.round),
    ):
        before(owner, name, at(place, round_of))(_ignore)


def _ignore(**_: Any) -> None:
    """The facts were looked at already."""
