"""Projections: exact, unbiased, and proof against what is no projection."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.codec import encode_chunk
from protocol.errors import BadRecord
from protocol.manifest import Codec
from protocol.projection import (
    PROJECTION_BYTES,
    PROJECTIONS,
    pack_projections,
    project_chunk,
    project_encoded,
    project_update,
    projection_contradicts,
    unpack_projections,
)
from protocol.update import ChunkLayout

SEED = bytes(range(32))
LAYOUT = ChunkLayout(elements=2500, chunk_elements=1024)


def normal(count: int, salt: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(salt).standard_normal(count).astype(np.float32)


def encoded(codec: Codec = "int8") -> list[bytes]:
    values = normal(LAYOUT.elements)
    return [
        encode_chunk(codec, values[slice(*LAYOUT.bounds(chunk))], bytes(16))
        for chunk in range(LAYOUT.count)
    ]


def test_squared_lengths_are_unbiased_with_the_variance_of_sign_projections() -> None:
    values = normal(4096)
    length = float(np.square(values, dtype=np.float64).sum())
    estimates = np.array(
        [
            np.square(project_chunk(values, seed.to_bytes(32, "big"), 0), dtype=np.float64).sum()
            for seed in range(400)
        ]
    )
    assert estimates.mean() == pytest.approx(length, rel=0.04)
    assert estimates.std() / length == pytest.approx((2 / PROJECTIONS) ** 0.5, rel=0.15)


def test_it_is_linear() -> None:
    one, other = np.round(normal(700, 1) * 64), np.round(normal(700, 2) * 64)
    total = project_chunk(one + other, SEED, 5)
    assert np.array_equal(total, project_chunk(one, SEED, 5) + project_chunk(other, SEED, 5))


def test_seed_and_chunk_both_matter() -> None:
    values = normal(100)
    first = project_chunk(values, SEED, 0)
    assert not np.array_equal(first, project_chunk(values, SEED, 1))
    assert not np.array_equal(first, project_chunk(values, bytes(32), 0))


def test_one_changed_element_shows() -> None:
    values = normal(1000)
    changed = values.copy()
    changed[123] += np.float32(0.5)
    assert not np.array_equal(project_chunk(values, SEED, 0), project_chunk(changed, SEED, 0))


def test_a_single_element_lands_in_one_sum() -> None:
    projected = project_chunk(np.array([3.0], np.float32), SEED, 0)
    assert sorted(np.abs(projected))[-2:] == [0.0, 3.0]


def test_the_largest_numbers_stay_finite() -> None:
    values = np.full(100_000, np.finfo(np.float32).max)
    projected = project_chunk(values, SEED, 0)
    assert np.isfinite(projected).all()
    assert unpack_projections(pack_projections([projected]), 1).tobytes() == projected.tobytes()


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4"])
def test_an_update_is_projected_chunk_by_chunk(codec: Codec) -> None:
    chunks = encoded(codec)
    rows = unpack_projections(project_update(chunks, codec, LAYOUT, SEED), LAYOUT.count)
    for chunk, row in enumerate(rows):
        assert np.array_equal(row, project_encoded(chunks[chunk], codec, LAYOUT, SEED, chunk))
    later = project_update(chunks[1:], codec, LAYOUT, SEED, first=1)
    assert later == pack_projections(list(rows[1:]))


def test_only_the_projection_of_these_bytes_does_not_contradict_them() -> None:
    chunks = encoded()
    honest = project_encoded(chunks[1], "int8", LAYOUT, SEED, 1)
    assert not projection_contradicts(honest, chunks[1], "int8", LAYOUT, SEED, 1)
    forged = honest.copy()
    forged[7] = np.nextafter(forged[7], np.float32(np.inf))
    assert projection_contradicts(forged, chunks[1], "int8", LAYOUT, SEED, 1)
    assert projection_contradicts(honest, chunks[0], "int8", LAYOUT, SEED, 1)


@pytest.mark.parametrize("size", [0, PROJECTION_BYTES - 1, 2 * PROJECTION_BYTES])
def test_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(BadRecord, match="256 bytes"):
        unpack_projections(bytes(size), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    row = np.zeros(PROJECTIONS, np.float32)
    row[63] = value
    with pytest.raises(BadRecord, match="not finite"):
        unpack_projections(row.tobytes(), 1)


def test_malformed_chunks_are_refused() -> None:
    with pytest.raises(BadRecord, match="bytes"):
        project_update([b"short"], "int8", LAYOUT, SEED)


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        project_chunk(normal(4), b"short", 0)
