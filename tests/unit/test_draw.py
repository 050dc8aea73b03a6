"""The hash chain of draws: what the organiser holds, and what anybody can check."""

from __future__ import annotations

import hashlib

import pytest

from protocol.draw import (
    CHAIN_ROUNDS,
    DrawChain,
    check_preimage,
    draw,
    opened_chunks,
    projection_seed,
)
from protocol.errors import BadDigest

SEED = bytes(range(32))
ROUNDS = 3000  # more than two strides of stored links


@pytest.fixture(scope="module")
def chain() -> DrawChain:
    return DrawChain.of(SEED, ROUNDS)


def test_the_chain_is_the_seed_hashed_over_and_over(chain: DrawChain) -> None:
    value = SEED
    for round_ in range(ROUNDS - 1, -1, -1):
        assert chain.preimage(round_) == value
        value = hashlib.sha256(value).digest()
    assert chain.tip == value


def test_preimages_lead_to_the_tip(chain: DrawChain) -> None:
    for round_ in (0, 1, 1023, 1024, ROUNDS - 1):
        check_preimage(chain.preimage(round_), round_, chain.tip)


@pytest.mark.parametrize("round_", [0, 7])
def test_another_preimage_is_refused(chain: DrawChain, round_: int) -> None:
    with pytest.raises(BadDigest, match="does not lead"):
        check_preimage(chain.preimage(round_ + 1), round_, chain.tip)
    with pytest.raises(BadDigest, match="does not lead"):
        check_preimage(bytes(32), round_, chain.tip)


@pytest.mark.parametrize(("preimage", "round_"), [(b"", 0), (bytes(31), 0), (bytes(32), -1)])
def test_what_is_no_preimage_is_refused_before_any_hashing(preimage: bytes, round_: int) -> None:
    with pytest.raises(BadDigest, match="32 bytes"):
        check_preimage(preimage, round_, bytes(32))


def test_a_round_beyond_the_chain_costs_nothing_to_refuse() -> None:
    with pytest.raises(BadDigest, match="32 bytes"):
        check_preimage(bytes(32), CHAIN_ROUNDS, bytes(32))
    with pytest.raises(BadDigest, match="32 bytes"):
        check_preimage(bytes(32), 1 << 62, bytes(32))


@pytest.mark.parametrize("round_", [-1, ROUNDS])
def test_the_organiser_has_no_preimage_beyond_its_chain(chain: DrawChain, round_: int) -> None:
    with pytest.raises(ValueError, match="not one of"):
        chain.preimage(round_)


@pytest.mark.parametrize(("seed", "rounds"), [(b"short", 5), (SEED, 0)])
def test_what_makes_no_chain(seed: bytes, rounds: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        DrawChain.of(seed, rounds)


def test_the_secret_is_not_shown(chain: DrawChain) -> None:
    """A chain that lands in a log must not give the draws away."""
    assert repr(SEED)[2:20] not in repr(chain)
    assert "_links" not in repr(chain)


def test_a_draw_depends_on_preimage_and_inclusion_set(chain: DrawChain) -> None:
    included = hashlib.sha256(b"set").digest()
    drawn = draw(chain.preimage(3), included)
    assert drawn == draw(chain.preimage(3), included)
    assert drawn != draw(chain.preimage(4), included)
    assert drawn != draw(chain.preimage(3), hashlib.sha256(b"another set").digest())


def test_contributions_are_drawn_apart() -> None:
    one, other = bytes(16), bytes(15) + b"\1"
    assert projection_seed(bytes(32), one) != projection_seed(bytes(32), other)
    assert opened_chunks(bytes(32), one, 1000, 8) != opened_chunks(bytes(32), other, 1000, 8)


def test_a_small_update_is_opened_whole() -> None:
    assert opened_chunks(bytes(32), bytes(16), 3, 8) == [0, 1, 2]
