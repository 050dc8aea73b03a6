"""The coordinator's clock, by which the deadlines of the run are.

It is followed by a clock that nobody sets and that goes on while the machine sleeps: one Hello or
heartbeat is enough, whatever this machine's own clock is set to afterwards.
"""

from __future__ import annotations

import time

from worker.clock import steady_s


class RunClock:
    """Until :meth:`learn` was called, this machine's own clock."""

    def __init__(self) -> None:
        self.offset_s = time.time() - steady_s()
        self.error_s = 0.0
        """How far this machine's clock is ahead of the coordinator's."""

    def now_s(self) -> float:
        return steady_s() + self.offset_s

    def learn(self, server_time_ms: int, sent_s: float) -> None:
        """Take over what the server said.

        Args:
            server_time_ms: as its reply has it.
            sent_s: when the request was sent, as :func:`worker.clock.steady_s` tells it.
        """
        # The server read its clock somewhere between our sending and now: take the middle.
        middle_s = (sent_s + steady_s()) / 2
        self.offset_s = server_time_ms / 1000 - middle_s
        self.error_s = time.time() - self.now_s()
