"""When a condition that comes and goes counts, so that nothing that hangs on it flaps.

Invariants:

* A hold begins once its condition was so for ``on_after_s``; short breaks only slow that down, so
  that a condition which comes and goes every second counts as well.
* A hold that began lasts at least :data:`LEAST_S`, and ends only after its condition was not so
  for ``off_after_s`` without a break. Two beginnings are therefore at least that far apart.
* A hold that comes back sooner than it had waited was ended too early: it waits twice as long.
* Only time that was seen counts: of a gap (a suspended machine) at most :data:`MOST_GAP_S`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

LEAST_S = 120.0
"""Half as many switches as minutes may begin, and half may end: together one a minute."""

MOST_WAIT_S = 16 * 60.0
MOST_GAP_S = 10.0
_RELIEF = 0.5  # a second without the condition takes back so much of a second with it


@dataclass
class Hold:
    """Whether one condition counts now. Times are on a clock that nobody sets."""

    on_after_s: float = 0.0
    off_after_s: float = LEAST_S
    patient: bool = False  # waits longer each time that it was ended too early
    held: bool = False
    wait_s: float = field(init=False)  # how long the condition must be gone this time
    _since_s: float = -math.inf
    _freed_s: float = -math.inf
    _with_s: float = 0.0
    _without_s: float = 0.0
    _last_s: float | None = None
    _changed: bool = False

    def __post_init__(self) -> None:
        self.wait_s = self.off_after_s

    def see(self, so: bool, at_s: float) -> bool:
        """Take one look at the condition; whether it counts from now on."""
        first = self._last_s is None
        passed_s = 0.0 if self._last_s is None else at_s - self._last_s
        passed_s = min(max(passed_s, 0.0), MOST_GAP_S)
        # Times of before a restart of the machine would lie ahead.
        self._since_s, self._freed_s = min(self._since_s, at_s), min(self._freed_s, at_s)
        self._last_s = at_s
        if not self.held:
            self._with_s = max(0.0, self._with_s + passed_s * (1 if so else -_RELIEF))
            if so and self._with_s >= self.on_after_s:
                self._begin(at_s, first=first)
        else:
            self._without_s = 0.0 if so else self._without_s + passed_s
            calm = self._without_s >= self.wait_s and at_s - self._since_s >= LEAST_S
            if not so and (calm or self._changed):
                self._end(at_s)
        self._changed = False
        return self.held

    def rule_changed(self) -> None:
        """What is asked for is another thing now: an owner who relaxes it need not wait."""
        self._changed = True

    @property
    def calm_s(self) -> float:
        """For how long the condition has been gone while it is held."""
        return self._without_s

    def left_s(self, at_s: float) -> float:
        """For how long it lasts at least."""
        calm_s = max(self.wait_s - self._without_s, LEAST_S - (at_s - self._since_s))
        return max(0.0, calm_s) if self.held else 0.0

    def _begin(self, at_s: float, *, first: bool) -> None:
        early = self.patient and at_s - self._freed_s < self.wait_s
        self.wait_s = min(2 * self.wait_s, MOST_WAIT_S) if early else self.off_after_s
        self.held, self._since_s, self._without_s = True, -math.inf if first else at_s, 0.0

    def _end(self, at_s: float) -> None:
        self.held, self._freed_s, self._with_s = False, at_s, 0.0

    def remember(self) -> dict[str, Any]:
        """What a process that takes over goes on from, as JSON."""
        times = (self._since_s, self._freed_s, self._last_s)
        times_s = [None if time_s is None or math.isinf(time_s) else time_s for time_s in times]
        return {
            "held": self.held,
            "wait_s": self.wait_s,
            "with_s": self._with_s,
            "without_s": self._without_s,
            "times_s": times_s,
        }

    def recall(self, kept: dict[str, Any]) -> None:
        """Go on from what another process remembered."""
        self.held, self.wait_s = bool(kept["held"]), float(kept["wait_s"])
        self._with_s, self._without_s = float(kept["with_s"]), float(kept["without_s"])
        since_s, freed_s, self._last_s = kept["times_s"]
        self._since_s = -math.inf if since_s is None else since_s
        self._freed_s = -math.inf if freed_s is None else freed_s
