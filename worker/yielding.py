"""What follows for the training when this machine may not work, and when it may again.

    may not, for a while        frozen: no processor, the unit stays in memory
    for long, or time runs out  let go: the step under way is its last; what was trained is
                                committed and reduced; then the trainer is gone

Invariants:

* Frozen within one turn of the event loop; thawed as soon as it may work.
* What was trained is never thrown away for it: a unit is let go while there is time to commit it.
* While it is let go no other unit begins, unless this machine may work again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from worker.clock import steady_s
from worker.governing import Governing
from worker.hysteresis import LEAST_S
from worker.news import News
from worker.status import Board
from worker.trainer import Trainer

log = structlog.get_logger()

MOST_FROZEN_S = LEAST_S + 30.0
"""A little longer than the shortest time for which something holds it: after that it is not worth
the memory."""

_LOOK_S = 0.5  # while something is frozen, or still has to end
_COMMIT_S = 3.0  # for encoding and sending, before the round's time is over
_STEPS_LEFT = 2  # the one under way, and one more for luck


@dataclass
class Yielding:
    """Keeps the trainer to the verdict; :meth:`run` is a task for ever."""

    governing: Governing
    trainer: Trainer
    board: Board
    finish: asyncio.Event  # the owner wants an end: nothing waits for better times
    news: News  # told of each change of the verdict and of ``finish``
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing may be trained, and will not be soon."""

    _frozen_since_s: float = 0.0

    async def run(self) -> None:
        while True:
            await self._follow()
            at_rest = self.governing.verdict.works or (
                self.leaving.is_set() and self.trainer.pid is None
            )
            await self.news.wait(None if at_rest else _LOOK_S)

    async def _follow(self) -> None:
        verdict = self.governing.verdict
        if verdict.works:
            self._go_on()
        elif self.leaving.is_set():
            await self.trainer.end_soon()  # perhaps its unit is done by now
        elif verdict.lasting or self.finish.is_set() or self._has_waited_enough():
            await self._let_go()
        else:
            self._freeze()

    def _go_on(self) -> None:
        if self.leaving.is_set() or self.board.frozen:
            self.leaving.clear()
            self.board.frozen = False
            self.trainer.go_on()
            self.news.tell()

    def _freeze(self) -> None:
        if not self.board.frozen:
            self._frozen_since_s = steady_s()
            self.board.frozen = True
            self.trainer.freeze()

    def _has_waited_enough(self) -> bool:
        if not self.board.frozen:
            return False
        if steady_s() - self._frozen_since_s >= MOST_FROZEN_S:
            return True
        left_s, speed = self.trainer.unit_left_s, self.board.steps_per_s
        if left_s is None:
            return False
        return left_s < _COMMIT_S + (_STEPS_LEFT / speed if speed > 0 else 0.0)

    async def _let_go(self) -> None:
        if self.trainer.unit_left_s is not None:
            log.info("ending the unit early", steps=self.board.steps_done, of=self.board.steps)
        self.leaving.set()
        self.board.frozen = False
        await self.trainer.end_soon()
        self.news.tell()
