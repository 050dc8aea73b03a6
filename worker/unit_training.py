"""One unit of training, over trainers that die and memory that runs out.

Invariants:

* A trainer that dies is started again and goes on from the unit's snapshot, a few times.
* One that ran out of memory is started again with less to keep in it, as often as there is less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from worker.clock import steady_s
from worker.trainer import Job, Progress, Trained, Trainer, TrainerDied
from worker.trainer_memory import OutOfMemory
from worker.tuning import Tuner

log = structlog.get_logger()

_TRAINERS = 3  # that may die of one unit


async def train_unit(
    trainer: Trainer, tuner: Tuner, job: Job, on_progress: Callable[[Progress], None]
) -> Trained:
    """Train; the time that a job has is for all attempts together.

    Raises:
        OutOfMemory: there is no way to train with less.
        TrainerDied: again and again, so it will die of this unit the next time, too.
        ProtocolError: what the job reads is damaged, or it was stopped before one step.
    """
    ends_s = steady_s() + job.stop_after_s
    deaths, tokens_per_s = 0, 0.0
    await tuner.unit_begins()
    try:
        while True:
            now = replace(job, stop_after_s=ends_s - steady_s(), **tuner.choice.dump())
            try:
                trained = await trainer.train(now, on_progress)
            except (TrainerDied, OutOfMemory) as error:
                if await tuner.unit_failed(error):
                    continue
                log.warning("trainer died", problem=str(error))
                deaths += 1
                if deaths == _TRAINERS:
                    raise
            else:
                tokens_per_s = trained.tokens_per_s
                return trained
    finally:
        await tuner.unit_ends(tokens_per_s)
