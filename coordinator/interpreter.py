"""Python's interpreter, set for a service with thousands of clients (ADR 0043)."""

from __future__ import annotations

import gc
import sys

SWITCH_S = 0.0005
"""Checking a signature lets go of the interpreter, and so does each statement of the database: with
Python's 5 ms they would wait so long for each other each time."""

COLLECT_AFTER = (25_000, 10, 5)
"""Objects made, less those let go, until the collector looks for cycles among the newest; how many
such looks until it looks among older ones, and how many of those until it looks at all: what is in
cycles is at most a million objects. By Python's own (700, 10, 10) it went through everything that
is alive, for half a second with ten thousand event streams, several times in a minute: a quarter of
the processor's work."""


def suit_a_service() -> None:
    """For this process, once what it needs is loaded: that is never collected."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
