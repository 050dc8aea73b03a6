"""The desk at which new states of the model are made and evaluated.

Invariants:

* A state is stored before the turn that names it, and is computed again from the same results if
  that turn fails: a coordinator that is killed at any instruction goes on from its rows.
* Only the newest few states are in memory: a slow evaluation skips states, it never piles them up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from coordinator import settle
from coordinator.audit import base_weights
from coordinator.checkpoints import CheckpointStore
from coordinator.context import RunContext
from coordinator.database import Database
from coordinator.record import keep_loss, log_ended_rounds, state_to_evaluate
from coordinator.settle import ModelState
from coordinator.turn import Turn
from coordinator.validation import Validation

_KEPT_STATES = 2

_log = structlog.get_logger()


class StateDesk:
    """Settles rounds, and evaluates what they settled on."""

    def __init__(
        self,
        context: RunContext,
        database: Database,
        checkpoints: CheckpointStore,
        turn: Callable[[Callable[[Turn], Any]], Awaitable[Any]],
        clock: Callable[[], float],
        validation: Validation,
    ) -> None:
        """Touches nothing yet; :meth:`begin` gives the first state.

        Args:
            context: of the run.
            database: of the run.
            checkpoints: where states are kept.
            turn: runs work in a transaction of the engine.
            clock: seconds since the epoch.
            validation: of states.
        """
        self.evaluation_due = asyncio.Event()  # set when a loss may be missing
        self._context = context
        self._database = database
        self._checkpoints = checkpoints
        self._turn = turn
        self._clock = clock
        self._validation = validation
        self._states: dict[int, ModelState] = {}  # by settled rounds, newest last

    @property
    def states(self) -> tuple[ModelState, ...]:
        """In memory, the newest last; none before :meth:`begin`."""
        return tuple(self._states.values())

    def begin(self, state: ModelState) -> None:
        """Go on from this state."""
        self._states = {state.descriptor.round: state}

    async def settle(self) -> bool:
        """Settle the running round if all its results are held; see :mod:`coordinator.settle`.

        Returns:
            Whether it did.

        Raises:
            TransientError: the checkpoint store refused; nothing was changed.
        """
        inputs = await self._turn(settle.read_inputs)
        if inputs is None:
            self.evaluation_due.set()  # it may have been done by a turn that seemed to fail
            return False
        before = self._states[inputs.settled_rounds]
        after = await asyncio.to_thread(settle.compute, self._context, before, inputs)
        if after is None:
            await self._turn(settle.refuse)
            return False
        manifest = self._context.manifest
        saved, _ = await asyncio.gather(
            asyncio.to_thread(
                self._checkpoints.save, after.weights, after.momentum, after.descriptor
            ),
            asyncio.to_thread(base_weights.keep_mean, self._checkpoints, manifest, inputs.chunks),
        )
        self._states[after.descriptor.round] = after
        while len(self._states) > _KEPT_STATES:
            del self._states[min(self._states)]
        evaluated = not self._validation.enabled
        await self._turn(
            lambda turn: settle.record_settled(
                turn, inputs, after.descriptor, saved, evaluated=evaluated
            )
        )
        self.evaluation_due.set()
        kept = await self._database.run(
            lambda session: base_weights.kept(session, self._context, self._clock())
        )
        await asyncio.to_thread(base_weights.prune, self._checkpoints, manifest, kept)
        return True

    async def evaluate(self) -> bool:
        """Compute the oldest validation loss that is missing, and log its round.

        Returns:
            Whether there was one.

        Raises:
            TransientError: the evaluation was killed; it is tried again, a few times.
        """
        settled_rounds = await self._database.run(state_to_evaluate)
        if settled_rounds is None:
            return False
        loss = await self._validation.loss(self._states.get(settled_rounds))

        def keep(turn: Turn) -> None:
            keep_loss(turn.session, settled_rounds, loss)
            turn.then.leaves_added |= log_ended_rounds(self._context, turn.session, turn.now_s)

        await self._turn(keep)
        _log.info("validated", settled_rounds=settled_rounds, loss=loss)
        return True
