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

_BLOCK_ELEMENTS = 1 << 14
"""Large ones are mapped anew each time; these stay in the allocator's hands and in the cache."""

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
    if not weights.shape == momentum.shape == (layout.elements,):
        raise ValueError("a state whose vectors do not fit the layout")
    after = np.empty_like(weights), np.empty_like(momentum)
    roots = [[b""] * layout.count, [b""] * layout.count]
    finite = [False] * layout.count

    def step(chunk: int) -> None:
        start, end = layout.bounds(chunk)
        values = mean(chunk)
        for low in range(start, end, _BLOCK_ELEMENTS):
            where = slice(low, min(low + _BLOCK_ELEMENTS, end))
            mean_update = values[low - start : where.stop - start]
            with np.errstate(over="ignore", invalid="ignore"):  # of this thread
                stepped = outer_step(weights[where], momentum[where], mean_update, spec)
            for out, new in zip(after, stepped, strict=True):
                out[where] = new
        for out, leaves in zip(after, roots, strict=True):
            leaves[chunk] = leaf_of(out[start:end])
        finite[chunk] = all(bool(np.isfinite(out[start:end]).all()) for out in after)

    for_each(step, layout.count)
    if not all(finite):
        return None
    return NextState(*after, *map(merkle.root, roots))
