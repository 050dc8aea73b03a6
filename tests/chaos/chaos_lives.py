"""A piece of work, done by one process after the other: each dies a little later than the last."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping

from chaos_injector import Install

_BROKEN = 70


def dies_at(nth: int, points: Mapping[str, Install], work: Callable[[], object]) -> bool:
    """Whether a process that does ``work`` was killed at the ``nth`` point that it reached.

    The process is a fork of this one: it has its own files and opens its own connections.
    """
    child = os.fork()
    if child == 0:
        status = _BROKEN
        try:
            _arm(nth, points)
            work()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return False


def _arm(nth: int, points: Mapping[str, Install]) -> None:
    count = itertools.count(1)

    def reached(**_: object) -> None:
        if next(count) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    for install in points.values():
        install(reached)
