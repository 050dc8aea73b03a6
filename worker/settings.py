"""Changing ``worker.toml``: one change after another, each from what the one before left.

Invariant: of two commands at once, neither loses what the other changed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.config import Home, WorkerConfig


@contextmanager
def settings_lock(home: Home) -> Iterator[None]:
    """Hold the right to write ``worker.toml``; waits for whoever has it, which is never long."""
    descriptor = os.open(home.path, os.O_RDONLY)  # the folder itself: no lock file is left
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def change_settings(home: Home, change: Callable[[WorkerConfig], WorkerConfig]) -> WorkerConfig:
    """Read, change, write; returns what is in force now.

    Raises:
        UsageError: nothing was joined here, or the change is refused; the file is as it was.
    """
    WorkerConfig.load(home.config)  # a folder that is none says so before anything is opened
    with settings_lock(home):
        before = WorkerConfig.load(home.config)
        after = change(before)
        if after != before:
            after.save(home.config)
    return after
