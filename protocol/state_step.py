"""From one state to the next, chunk by chunk: the mean, the outer step and both roots in one pass.

Invariants:

* The same bits as the whole vectors would give: the outer step is taken element by element, and a
  leaf is hashed by itself. How many threads take the chunks, and in which order, cannot be seen.
* What is in between fits into a processor's cache: no vector is read or written more often than it
  has to be.
* The state before the step stays as it was, for retries and replays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import merkle
from protocol.manifest import Codec, OuterSpec
from protocol.outer import outer_step
from protocol.state import leaf_of
from protocol.threads import for_each
from protocol.update import ChunkLayout, decode_chunk

FloatVector = NDArray[np.float32]

MeanOfChunk = Callable[[int], FloatVector]
"""The decoded mean of a chunk, by its number; called from several threads."""


def decoding(chunks: Sequence[bytes], layout: ChunkLayout, codec: Codec) -> MeanOfChunk:
    """Of encoded chunks, each decoded when it is wanted; raises BadRecord for a malformed one."""
    if len(chunks) != layout.count:
        raise ValueError(f"{len(chunks)} chunks where the layout has {layout.count}")
    return lambda chunk: decode_chunk(codec, chunks[chunk], layout.chunk_size(chunk))


def slicing(vector: FloatVector, layout: ChunkLayout) -> MeanOfChunk:
    """Of a decoded vector."""
    if vector.shape != (layout.elements,):
        raise ValueError(f"a vector of shape {vector.shape} does not fit the layout")
    return lambda chunk: vector[slice(*layout.bounds(chunk))]


@dataclass(frozen=True)
class NextState:
    """``weights`` and ``momentum``: new flat float32 vectors; the roots are over their chunks."""

    weights: FloatVector
    momentum: FloatVector
    weights_root: bytes
    momentum_root: bytes


def step_state(
    weights: FloatVector,
    momentum: FloatVector,
    mean: MeanOfChunk,
    layout: ChunkLayout,
    spec: OuterSpec,
) -> NextState | None:
    """Take the outer step.

    Args:
        weights: flat float32 of ``layout.elements``, the state before.
        momentum: the same shape.
        mean: gives the mean of the members' updates, before minus after.
        layout: how vectors split into chunks.
        spec: the outer optimizer.

    Returns:
        None if the step leaves the finite numbers: no machine could train from such a state, nor
        load it again.

    Raises:
        BadRecord: what ``mean`` raises.
    """
    next_weights, next_momentum = np.empty_like(weights), np.empty_like(momentum)
    roots = [[b""] * layout.count, [b""] * layout.count]
    finite = [False] * layout.count

    def step(chunk: int) -> None:
        where = slice(*layout.bounds(chunk))
        with np.errstate(over="ignore", invalid="ignore"):  # of this thread
            stepped = outer_step(weights[where], momentum[where], mean(chunk), spec)
        for new, out, leaves in zip(stepped, (next_weights, next_momentum), roots, strict=True):
            out[where] = new
            leaves[chunk] = leaf_of(new)
        finite[chunk] = all(bool(np.isfinite(new).all()) for new in stepped)

    for_each(step, layout.count)
    if not all(finite):
        return None
    return NextState(next_weights, next_momentum, *map(merkle.root, roots))
