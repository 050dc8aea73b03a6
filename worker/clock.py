"""A clock for durations, the same for every process of this machine."""

from __future__ import annotations

import time

# Python's monotonic clock stands still while the machine sleeps, on Linux and on macOS.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady_s() -> float:
    """Seconds on a clock that nobody sets, and that neither a suspended machine nor a stopped
    process stops."""
    return time.clock_gettime(_STEADY)
