"""What a worker is doing, in one place: for ``worker status``, the log and the heartbeat.

Invariant: whenever nothing is being trained or reduced there is exactly one reason. What keeps this
machine from working comes first (:mod:`worker.governor`), then a coordinator that is away, whatever
it is that waits for it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from worker.verdict import Verdict


class Phase(StrEnum):
    WAITING = "waiting"
    FETCHING = "fetching"
    TRAINING = "training"
    COMMITTING = "committing"
    REDUCING = "reducing"
    PAUSED = "paused"
    FINISHING = "finishing"

    @property
    def wire(self) -> str:
        """Name of the value in records.proto; protobuf takes it for the number."""
        return f"WORKER_PHASE_{self.name}"


AWAY = (
    "the coordinator does not answer: it may be restarting, or this machine may be offline. What"
    " was trained is kept, and work goes on by itself when it answers"
)

_WITHOUT_COORDINATOR = (Phase.TRAINING, Phase.REDUCING, Phase.PAUSED)


@dataclass
class Board:
    """Written by the daemon, read by everybody who asks."""

    worker: str
    run: str
    phase: Phase = Phase.WAITING
    reason: str = "starting"
    finishing: bool = False
    paused: bool = False  # by the owner
    paused_until_s: float | None = None  # Unix time; None: until 'resume', if paused
    because: str = ""  # what keeps this machine from working (worker.verdict); empty: nothing
    because_reason: str = ""  # that, for a person
    until_s: float | None = (
        None  # Unix time at which that ends; None: nobody knows, or nothing does
    )
    frozen: bool = False  # the trainer stands still, the unit is kept in memory
    asleep: bool = False  # trainer, swarm and all that is large are gone
    round: int = 0
    settled_rounds: int = 0
    assignment_id: str = ""
    given_up: str = ""  # the last assignment that will not be committed
    steps_done: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0
    deadline_in_s: float = 0.0
    peers: int = 0
    reachability: str = ""
    reachability_reason: str = ""
    ports: list[int] = field(default_factory=list)  # of the peer-to-peer daemon
    connected: bool = False
    away: bool = False  # it did answer, and does not now
    swarm_problem: str = ""  # why no other peer can be reached; empty while they can
    units_committed: int = 0
    tokens_committed: int = 0
    receipts_pending: int = 0
    receipts_held: int = 0
    state_digest: str = ""
    public_url: str = ""
    donor: str = ""  # whom the credit is for
    delegated_until_s: int = 0  # until when the donor vouches for this device; 0: its own key
    bad_sources: list[str] = field(default_factory=list)  # PeerIDs that served other bytes
    started_at_s: float = field(default_factory=time.time)
    #: Blocks of other parts of the worker, by name: ``network``, ``energy``, ``tuning``, ``cache``.
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def at_work(self, phase: Phase) -> None:
        """Something is being done: no reason needed."""
        self.phase, self.reason = phase, ""

    def waiting(self, reason: str, phase: Phase = Phase.WAITING) -> None:
        """Nothing is being done, for exactly this reason."""
        self.phase, self.reason = phase, reason

    def take_up(self, assignment_id: str) -> None:
        """Begin with a unit, perhaps with one that was given up and has been given out again."""
        self.assignment_id = assignment_id
        if self.given_up == assignment_id:
            self.given_up = ""

    def put_down(self, assignment_id: str) -> None:
        """A unit is over, unless the next one is under way already."""
        if self.assignment_id == assignment_id:
            self.assignment_id, self.steps, self.steps_done = "", 0, 0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the unit is trained; None when none is or its speed is not known yet."""
        if self.phase != Phase.TRAINING or not self.steps_done or not self.steps_per_s:
            return None
        return (self.steps - self.steps_done) / self.steps_per_s

    #: Measured by the daemon from the trainer's progress.
    steps_per_s: float = 0.0

    def committed(self, tokens: int) -> None:
        """One more unit of work is with the coordinator."""
        self.units_committed += 1
        self.tokens_committed += tokens

    def heard_of_coordinator(self, answers: bool) -> None:
        """Whether it has answered just now."""
        self.connected, self.away = answers, not answers

    def governed(self, verdict: Verdict, *, paused: bool, paused_until_s: float | None) -> None:
        """What the owner's limits say now."""
        self.because, self.because_reason = str(verdict.because or ""), verdict.reason
        self.until_s = verdict.until_s
        self.paused, self.paused_until_s = paused, paused_until_s

    def told(self) -> tuple[Phase, str]:
        """What is so, and the one reason if nothing is done."""
        phase, reason = self.phase, self.reason
        stands = (self.frozen and phase == Phase.TRAINING) or self.asleep
        if stands or (self.because and phase == Phase.WAITING):
            return Phase.PAUSED, self.because_reason or reason
        if self.away and phase not in _WITHOUT_COORDINATOR:
            return Phase.WAITING, AWAY
        return phase, reason

    def snapshot(self) -> dict[str, Any]:
        phase, reason = self.told()
        eta_s = None if self.frozen else self.eta_s
        values = {name: value for name, value in asdict(self).items() if name != "because_reason"}
        return {**values, "phase": str(phase), "reason": reason, "eta_s": eta_s}
