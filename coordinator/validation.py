"""The validation loss of settled states: tried a few times, then done without.

Invariant: the public record never waits for ever for a broken evaluation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from coordinator.settle import ModelState, Vector
from protocol.errors import TransientError

Evaluate = Callable[[Vector], Awaitable[float]]
"""Mean nats per predicted token of held-out data, for flat weights."""

_TRIES = 3

_log = structlog.get_logger()


class Validation:
    """Evaluates states, one at a time."""

    def __init__(self, evaluate: Evaluate | None) -> None:
        """Without a function, every loss is unknown."""
        self._evaluate = evaluate
        self._failures = 0

    @property
    def enabled(self) -> bool:
        return self._evaluate is not None

    async def loss(self, state: ModelState | None) -> float | None:
        """The loss of a state; None when it is not in memory any more, or cannot be had.

        Raises:
            TransientError: the evaluation was killed: try again.
        """
        if state is None or self._evaluate is None:
            return None
        try:
            loss = await self._evaluate(state.weights)
        except TransientError as error:
            self._failures += 1
            if self._failures < _TRIES:
                raise
            _log.warning("no_validation_loss", round=state.descriptor.round, error=str(error))
            loss = None
        self._failures = 0
        return loss
