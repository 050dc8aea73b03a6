"""What a reducer measures of its members' inputs while it combines them.

Invariants:

* For each chunk and each included member, in the inclusion set's order: the L2 norm of the decoded
  input, and its cosine to the combined chunk, 0 where either is zero. Computed in float64, written
  as float32.
* It pays and punishes nobody: it only says where an audit is worth more (verification.md, layer 3).
* Records begin at fixed chunks of the range, and only whole ones are signed: a reducer that was
  restarted in between signs the same ones again, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocol.envelope import seal
from protocol.identity import Identity
from protocol.limits import MAX_RECORD_BYTES
from protocol.wire import records_pb2 as wire
from worker.group import Group

FloatVector = NDArray[np.float32]

_SLICE_ELEMENTS = 1 << 13
"""Stays in the processor's cache as float64; a longer dot product wakes the library's threads."""

_BYTES_OF_MEMBER = 8
"""In a record, for each chunk: a norm and a cosine."""


Measured = tuple[FloatVector, FloatVector]
"""Norms and cosines of one chunk, one of each for each member."""


def measure(inputs: Sequence[FloatVector], combined: FloatVector) -> Measured:
    """Compare the inputs of one chunk with what they were combined to.

    Args:
        inputs: decoded, finite, equal in size.
        combined: before it is encoded.

    Returns:
        L2 norms and cosines, one for each input.
    """
    squares, products = np.zeros(len(inputs)), np.zeros(len(inputs))
    target_square = 0.0
    wide, target = np.empty((2, _SLICE_ELEMENTS))
    for start in range(0, len(combined), _SLICE_ELEMENTS):
        part = slice(start, min(start + _SLICE_ELEMENTS, len(combined)))
        values, goal = wide[: part.stop - start], target[: part.stop - start]
        np.copyto(goal, combined[part])
        target_square += np.dot(goal, goal)
        for i, whole in enumerate(inputs):
            np.copyto(values, whole[part])
            squares[i] += np.dot(values, values)
            products[i] += np.dot(values, goal)
    norms, target_norm = np.sqrt(squares), np.sqrt(target_square)
    lengths = norms * target_norm
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    largest = np.finfo(np.float32).max
    return np.minimum(norms, largest).astype(np.float32), np.clip(cosines, -1, 1).astype(np.float32)


def chunks_in_record(members: int) -> int:
    """How many chunks one record is about: half of what a record may take."""
    return max(1, (MAX_RECORD_BYTES // 2 - 1024) // (_BYTES_OF_MEMBER * members))


@dataclass
class Screener:
    """Collects the measurements of one reducer's range."""

    group: Group
    first: int
    end: int
    _measured: dict[int, Measured] = field(default_factory=dict)

    def note(self, chunk: int, inputs: Sequence[FloatVector], combined: FloatVector) -> None:
        """Measure one chunk; blocking."""
        self._measured[chunk] = measure(inputs, combined)

    def records(self, members: int, identity: Identity) -> list[wire.Envelope]:
        """Signed Screenings of the range; blocking. Empty of chunks that were not measured.

        Args:
            members: of the inclusion set.
        """
        size = chunks_in_record(members)
        starts = range(self.first, self.end, size)
        ranges = [range(start, min(start + size, self.end)) for start in starts]
        return [
            seal(self._record(chunks, members, identity.peer_id), identity)
            for chunks in ranges
            if all(chunk in self._measured for chunk in chunks)
        ]

    def _record(self, chunks: range, members: int, reducer: str) -> wire.Screening:
        measured = [self._measured[chunk] for chunk in chunks]
        return wire.Screening(
            run_id=self.group.record.run_id,
            group_id=self.group.group_id,
            attempt=self.group.record.attempt,
            reducer=reducer,
            first_chunk=chunks.start,
            end_chunk=chunks.stop,
            members=members,
            norms=b"".join(norms.astype("<f4").tobytes() for norms, _ in measured),
            cosines=b"".join(cosines.astype("<f4").tobytes() for _, cosines in measured),
        )
