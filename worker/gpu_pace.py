"""A GPU that may draw so much power: pauses between steps, where the card itself cannot be told.

To set a card's power limit takes root (:mod:`worker.gpu_caps`). Without it the trainer holds the
owner's number on average: after each second or more of steps it waits until what was drawn, pauses
included, is at most what the limit allows. Within a step the card draws what it will.

Invariant: a pause ends. A card that draws nearly the limit while it idles cannot be brought under
it: then at least a tenth of the time is for work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.sensors.gpu import Gpu

WINDOW_S = 1.0
"""Steps are judged together for at least so long: NVML's counter moves ten times a second."""

_LOOK_S = 0.1
_MOST_PAUSE = 9.0  # times the work before it


@dataclass
class PowerPace:
    """Slows one trainer down; :meth:`begin`, then :meth:`after_step` after each step."""

    gpu: Gpu
    most_w: float
    clock: Callable[[], float] = time.monotonic
    _since_s: float = 0.0
    _since_j: float | None = None

    def begin(self) -> None:
        self._since_s, self._since_j = self.clock(), self.gpu.energy_j()

    def after_step(self, wait: Callable[[float], bool]) -> None:
        """Pause as long as it takes.

        Args:
            wait: for so many seconds; True if the wait is over because the unit is to end.
        """
        worked_s = self.clock() - self._since_s
        if worked_s < WINDOW_S:
            return
        power_w = self.gpu.read().power_w  # for a card that does not count
        ends_s = self._since_s + worked_s * (1 + _MOST_PAUSE)
        while self._drawn_j(worked_s, power_w) > self.most_w * (self.clock() - self._since_s):
            if self.clock() >= ends_s or wait(_LOOK_S):
                break
        self.begin()

    def _drawn_j(self, worked_s: float, power_w: float | None) -> float:
        now_j = self.gpu.energy_j()
        if now_j is None or self._since_j is None:
            return (power_w or 0.0) * worked_s
        return now_j - self._since_j
