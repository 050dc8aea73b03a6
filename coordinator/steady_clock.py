"""The time that the service lives by: seconds since the epoch, steady whatever the wall clock does.

Invariants:

* It never goes back, and it never jumps: it counts elapsed time, and drifts towards the wall
  clock by at most :data:`MOST_DRIFT` of it. Somebody who sets the machine's clock moves no
  deadline, makes no lease expire and no honest request stale.
* Elapsed time includes a suspended machine's, where the system can tell (Linux).
* A restart goes on from the time that was last written down, unless that is more than
  :data:`BELIEVED_AHEAD_S` ahead of the wall clock: then it was wrong, and the wall is believed.

Workers follow this clock: Hello and every heartbeat tell it. All deadlines are on it (ADR 0020).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

MOST_DRIFT = 0.01
"""An hour is caught up with in four days; a round of ten minutes is six seconds off at most."""

BELIEVED_AHEAD_S = 24 * 3600.0
_TOLD_BEYOND_S = 60.0
"""A machine's clock that is so far away is told of, once."""

_log = structlog.get_logger()


def elapsed_s() -> float:
    """Seconds since some moment, a suspended machine's included; nobody can set them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class SteadyClock:
    """Call it for the time. Thread-safe."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = elapsed_s,
    ) -> None:
        """Begin with the wall clock's time.

        Args:
            wall: seconds since the epoch; anybody may set it.
            elapsed: seconds since some moment.
        """
        self._wall, self._elapsed = wall, elapsed
        self._lock = threading.Lock()
        self._now_s, self._counted_s = wall(), elapsed()
        self._told = False

    def __call__(self) -> float:
        """Seconds since the epoch."""
        with self._lock:
            counted_s = self._elapsed()
            passed_s = max(0.0, counted_s - self._counted_s)
            self._counted_s = counted_s
            off_s = self._wall() - (self._now_s + passed_s)
            most_s = passed_s * MOST_DRIFT
            self._now_s += passed_s + min(most_s, max(-most_s, off_s))
            self._tell(off_s)
            return self._now_s

    def go_on_from(self, last_s: float) -> None:
        """Do not begin before the time that an earlier process wrote down.

        Args:
            last_s: seconds since the epoch, by that process's clock.
        """
        with self._lock:
            ahead_s = last_s - self._now_s
            if 0 < ahead_s <= BELIEVED_AHEAD_S:
                self._now_s = last_s
            elif ahead_s > BELIEVED_AHEAD_S:
                _log.error(
                    "clock_went_back",
                    by_s=round(ahead_s),
                    advice="the run was served with a clock that was ahead; this machine's is "
                    "believed from now on: check that it is right",
                )

    def _tell(self, off_s: float) -> None:
        far = abs(off_s) > _TOLD_BEYOND_S
        if far and not self._told:
            _log.warning(
                "clock_was_set",
                by_s=round(off_s),
                advice="the run goes on by its own clock, and follows slowly",
            )
        self._told = far
