"""What a second lossy encoding costs: the error of the mean, by the real codecs.

Members' updates are a common direction and a noise of their own, as independent data make it. The
error is that of the decoded mean against the exact one, L2, relative to the exact one's length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.codec import decode_chunk, encode_chunk
from protocol.combine import combine_chunk
from protocol.manifest import Codec

ELEMENTS = 1 << 12
OWN_NOISE = 2.0
"""Length of a member's own noise, in lengths of the common direction: cosine 0.2 between two."""

FloatVector = NDArray[np.float32]


@dataclass(frozen=True)
class EncodingError:
    """Relative L2 errors of the mean."""

    members_only: float  # members' encodings alone: averaged away
    one_level: float
    two_levels: float
    two_levels_int8: float  # the groups' sums in int8


def encoding_error(members: int, groups: int, seed: int) -> EncodingError:
    """Measure with int4 for members and results.

    Args:
        groups: that the members are dealt into, one after the other.
    """
    dice = np.random.default_rng(seed)
    common = dice.standard_normal(ELEMENTS)
    encoder = _Encoder(dice)
    exact = np.zeros(ELEMENTS)
    inputs: list[FloatVector] = []
    for _ in range(members):
        update = (common + OWN_NOISE * dice.standard_normal(ELEMENTS)).astype(np.float32)
        exact += update / members
        inputs.append(encoder.through("int4", update))
    whole = combine_chunk("mean", inputs, [1] * members)

    def error(values: FloatVector) -> float:
        return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))

    def two_levels(codec: Codec) -> float:
        dealt = [inputs[group::groups] for group in range(groups)]
        sums = [encoder.through(codec, combine_chunk("mean", g, [1] * len(g))) for g in dealt]
        top = combine_chunk("mean", sums, [len(g) for g in dealt])
        return error(encoder.through("int4", top))

    return EncodingError(
        error(whole), error(encoder.through("int4", whole)), two_levels("int4"), two_levels("int8")
    )


class _Encoder:
    def __init__(self, dice: np.random.Generator) -> None:
        self._dice = dice

    def through(self, codec: Codec, values: FloatVector) -> FloatVector:
        """Encoded with a key of its own, and decoded."""
        return decode_chunk(codec, encode_chunk(codec, values, self._dice.bytes(16)), len(values))
