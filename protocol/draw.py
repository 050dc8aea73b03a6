"""Draws that nobody can choose and anybody can check (docs/verification.md, layer 4).

The run's first leaf publishes the tip of a hash chain; round r uses up the chain's r-th preimage.

    tip = H(preimage_0),  preimage_r = H(preimage_(r+1)),  H = SHA-256
    draw(r) = SHA-256(preimage_r || SHA-256 of the signed InclusionSet)

Invariants:

* The coordinator cannot choose a preimage: the tip fixed all of them before the first round.
* Members cannot foresee a draw: it takes a preimage that is published only after it was used.
* Everything that is drawn is a pure function of the draw and of public identifiers, each use with a
  label of its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from protocol.audit_policy import PPM
from protocol.errors import BadDigest

SEED_BYTES = 32
CHAIN_ROUNDS = 1 << 18
"""Rounds of a chain: five years of ten-minute rounds; the whole chain is hashed in 0.2 s."""

_STRIDE = 1 << 10


@dataclass(frozen=True)
class DrawChain:
    """The organiser's secret end of the chain.

    Holds every 1,024th link, so that any preimage costs at most as many hashes.
    """

    tip: bytes
    rounds: int
    _links: tuple[bytes, ...] = field(repr=False)  # seed hashed 0, 1024, 2048 ... times

    @classmethod
    def of(cls, seed: bytes, rounds: int = CHAIN_ROUNDS) -> DrawChain:
        """Build the chain of a seed of 32 random bytes."""
        if len(seed) != SEED_BYTES or rounds < 1:
            raise ValueError("a chain has a seed of 32 bytes and at least one round")
        links, value = [], seed
        for count in range(rounds):
            if count % _STRIDE == 0:
                links.append(value)
            value = hashlib.sha256(value).digest()
        return cls(value, rounds, tuple(links))

    def preimage(self, round_: int) -> bytes:
        """The preimage that round ``round_`` uses up.

        Raises:
            ValueError: the chain is not that long.
        """
        if not 0 <= round_ < self.rounds:
            raise ValueError(f"round {round_} is not one of the chain's {self.rounds}")
        count = self.rounds - 1 - round_
        return _hashed(self._links[count // _STRIDE], count % _STRIDE)


def check_preimage(preimage: bytes, round_: int, tip: bytes) -> None:
    """Insist that a preimage is the one that the tip fixed for its round.

    Raises:
        BadDigest: it is not.
    """
    if len(preimage) != SEED_BYTES or not 0 <= round_ < CHAIN_ROUNDS:
        raise BadDigest("a preimage is 32 bytes, of a round that the chain has")
    if _hashed(preimage, round_ + 1) != tip:
        raise BadDigest(f"the preimage of round {round_} does not lead to the run's tip")


def draw(preimage: bytes, inclusion_digest: bytes) -> bytes:
    """The draw of a round, 32 bytes.

    Args:
        preimage: of the round.
        inclusion_digest: SHA-256 of the signed InclusionSet's payload.
    """
    return hashlib.sha256(preimage + inclusion_digest).digest()


def is_selected(draw_: bytes, assignment_id: bytes, chance_ppm: int) -> bool:
    """Whether a contribution is audited."""
    return _uniform_ppm(_derive("select", draw_, assignment_id)) < chance_ppm


def wants_second_auditor(draw_: bytes, assignment_id: bytes, chance_ppm: int) -> bool:
    """Whether a second auditor replays it, whatever the first one finds."""
    return _uniform_ppm(_derive("second", draw_, assignment_id)) < chance_ppm


def projection_seed(draw_: bytes, assignment_id: bytes) -> bytes:
    """Seed of the random projection; tells nothing of the chunks that will be opened."""
    return _derive("project", draw_, assignment_id)


def opened_chunks(draw_: bytes, assignment_id: bytes, chunk_count: int, most: int) -> list[int]:
    """Chunks to open, ascending; told to nobody before the projections are in."""
    return _sample(_derive("open", draw_, assignment_id), chunk_count, most)


def audited_results(draw_: bytes, chunk_count: int, most: int) -> list[int]:
    """Result chunks whose combination is recomputed, ascending."""
    return _sample(_derive("results", draw_, b""), chunk_count, most)


def _hashed(value: bytes, times: int) -> bytes:
    for _ in range(times):
        value = hashlib.sha256(value).digest()
    return value


def _derive(label: str, draw_: bytes, subject: bytes) -> bytes:
    return hashlib.sha256(f"barnraise-{label}\0".encode() + draw_ + subject).digest()


def _uniform_ppm(value: bytes) -> int:
    return int.from_bytes(value[:8], "big") * PPM >> 64


def _sample(seed: bytes, count: int, most: int) -> list[int]:
    """The ``most`` numbers below ``count`` whose hashes are the least: no shuffle to agree on."""
    ranked = sorted(
        range(count),
        key=lambda number: hashlib.sha256(seed + number.to_bytes(8, "big")).digest(),
    )
    return sorted(ranked[:most])
