"""Every way of cheating that the suite tries, and what each does to an update.

Invariants:

* Nothing here is imported by the programs of a run: a faulty process patches itself, at one seam.
* A cheat does its best: it encodes with its own noise and commits to exactly what it sends, unless
  the point of the fault is that it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from protocol.codec import Codec, decode_chunk, encode_chunk, noise_key
from protocol.update import ChunkLayout, EncodedUpdate, decode_update, encode_update

Vector = NDArray[np.float32]


class Fault(StrEnum):
    """One dishonest or broken behaviour of a process."""

    # The vector that is trained, or what is committed to.
    RANDOM_UPDATE = "random-update"
    ZERO_UPDATE = "zero-update"
    SIGN_FLIP = "sign-flip"
    SCALED = "scaled-x10"
    HALF_STEPS = "half-the-steps"
    MOST_STEPS = "90-percent-of-the-steps"
    HIDDEN_STEPS = "90-percent-scaled-up"  # the same, and the missing length made up for
    OTHER_DATA = "other-data"
    STALE_BASE = "stale-base"
    COPIED_UPDATE = "copied-update"  # another's commitment, with its bytes
    COPIED_ROOT = "copied-root"  # another's commitment, without them
    REPLAYED_UPDATE = "replayed-update"
    FALSIFIED_CHUNK = "one-falsified-chunk"
    NOT_FINITE = "not-finite"

    # What is said of it.
    LOSS_NOT_FINITE = "loss-not-finite"
    FORGED_TOKENS = "forged-tokens"
    FORGED_STEPS = "forged-steps"
    IMPOSTOR = "impostor"
    REPLAYED_RECORD = "replayed-record"

    # What is sent.
    OTHER_BYTES = "other-bytes-in-the-reduce"
    SOME_REDUCERS = "right-bytes-to-some-reducers"

    # What a reducer makes of it.
    WRONG_MEAN = "wrong-mean"
    EQUIVOCATION = "equivocation"
    CENSOR = "censor"
    FRAME = "frame"
    FALSE_PROJECTION = "false-projection"

    # Who is gone, and when.
    DROP_TRAINING = "drop-in-training"
    DROP_TRAINED = "drop-before-the-commit"
    DROP_COMMITTED = "drop-before-the-reduce"
    DROP_GATHER = "drop-in-the-gather"
    DROP_BROADCAST = "drop-in-the-broadcast"
    DROP_AUDIT = "silent-when-asked"

    # Who helps whom.
    YES_AUDITOR = "auditor-that-says-yes"
    PARTNER_SENDS = "pair-sender"  # falsifies a chunk that the partner reduces
    PARTNER_REDUCES = "pair-reducer"  # and the partner projects what it should have been


@dataclass(frozen=True)
class When:
    """Which of a worker's units it cheats in."""

    after_units: int = 0  # honest ones first
    share: float = 1.0  # then so many of them

    def cheats(self, unit: int, assignment_id: bytes) -> bool:
        """Whether the ``unit``-th unit, counted from 0, is one of them."""
        chance = int.from_bytes(hashlib.sha256(assignment_id).digest()[:8], "big") / 2**64
        return unit >= self.after_units and chance < self.share


@dataclass(frozen=True)
class Unit:
    """What a change of the update needs to know."""

    run_id: bytes
    round: int
    worker: str
    codec: Codec
    layout: ChunkLayout

    def seed(self) -> int:
        """Other for every unit, so that a random update is not the same twice."""
        text = f"{self.round}/{self.worker}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _random_like(vector: Vector, unit: Unit) -> Vector:
    """Gaussian noise with the honest update's norm."""
    noise = np.random.default_rng(unit.seed()).standard_normal(vector.size, dtype=np.float32)
    return noise * np.float32(np.linalg.norm(vector) / np.linalg.norm(noise))


VECTOR_CHANGES: dict[Fault, Callable[[Vector, Unit], Vector]] = {
    Fault.RANDOM_UPDATE: _random_like,
    Fault.ZERO_UPDATE: lambda vector, _: np.zeros_like(vector),
    Fault.SIGN_FLIP: lambda vector, _: -vector,
    Fault.SCALED: lambda vector, _: vector * np.float32(10),
    Fault.HIDDEN_STEPS: lambda vector, _: vector * np.float32(10 / 9),
}


def changed_update(fault: Fault, chunks: tuple[bytes, ...], unit: Unit) -> EncodedUpdate | None:
    """The dishonest update for an honest one; None when this fault leaves it alone."""
    if fault in VECTOR_CHANGES:
        vector = decode_update(chunks, unit.layout, unit.codec)
        return _encode(VECTOR_CHANGES[fault](vector, unit), unit)
    if fault is Fault.FALSIFIED_CHUNK:
        chunk = unit.seed() % unit.layout.count
        return falsify(chunks, [chunk], unit)
    if fault is Fault.NOT_FINITE:
        return EncodedUpdate.of((with_infinity(chunks[0], unit.codec), *chunks[1:]))
    return None


def falsify(chunks: tuple[bytes, ...], which: list[int], unit: Unit) -> EncodedUpdate:
    """The signs of these chunks flipped; every other byte as it was."""
    changed = list(chunks)
    for chunk in which:
        values = decode_chunk(unit.codec, chunks[chunk], unit.layout.chunk_size(chunk))
        key = noise_key(unit.run_id, unit.round, chunk, unit.worker)
        changed[chunk] = encode_chunk(unit.codec, -values, key)
    return EncodedUpdate.of(tuple(changed))


def split(data: bytes, layout: ChunkLayout, codec: Codec) -> tuple[bytes, ...]:
    """Encoded chunks out of an update file."""
    chunks, start = [], 0
    for chunk in range(layout.count):
        size = layout.encoded_bytes(codec, chunk)
        chunks.append(data[start : start + size])
        start += size
    return tuple(chunks)


def with_infinity(encoded: bytes, codec: Codec) -> bytes:
    """An encoded chunk whose first scale, or value, is infinite."""
    infinity = np.array([np.inf], "<f4" if codec == "fp32" else "<f2").tobytes()
    return infinity + encoded[len(infinity) :]


def _encode(vector: Vector, unit: Unit) -> EncodedUpdate:
    return encode_update(
        vector, unit.layout, unit.codec, run_id=unit.run_id, round_=unit.round, worker=unit.worker
    )
