"""The state that members and coordinator of the wide-area benchmark step, each for itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.manifest import OuterSpec
from protocol.outer import outer_step
from protocol.state import describe
from protocol.update import ChunkLayout


class State:
    """Weights and momentum, zeros at first."""

    def __init__(self, layout: ChunkLayout) -> None:
        self._chunk_elements = layout.chunk_elements
        self._weights = np.zeros(layout.elements, np.float32)
        self._momentum = np.zeros(layout.elements, np.float32)

    def step(self, number: int, mean: NDArray[np.float32]) -> bytes:
        """Apply a round's mean; the digest of what it leads to."""
        self._weights, self._momentum = outer_step(self._weights, self._momentum, mean, OuterSpec())
        return describe(
            self._weights,
            self._momentum,
            round_=number,
            merged_tokens=number,
            chunk_elements=self._chunk_elements,
        ).digest
