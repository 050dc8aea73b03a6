"""Comparing an update with its replay: what agrees, what differs, and what is neither."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.codec import encode_chunk
from protocol.errors import BadRecord
from protocol.manifest import Codec
from protocol.projection import project_update, unpack_projections
from protocol.tolerance import (
    FARTHEST,
    MAX_TABLE_BYTES,
    Bounds,
    Comparison,
    Entry,
    Measured,
    Outcome,
    ToleranceTable,
    compare_chunks,
    differing_chunks,
    projection_distances,
)
from protocol.update import ChunkLayout

LAYOUT = ChunkLayout(elements=4 * 1024 + 100, chunk_elements=1024)
BOUNDS = Bounds(pooled_pass=0.05, pooled_fail=0.1, chunk_pass=0.2, chunk_fail=0.4, projection=0.3)
CODECS: tuple[Codec, ...] = ("fp32", "int8", "int4")
Vector = NDArray[np.float32]


@pytest.fixture
def update() -> Vector:
    return np.random.default_rng(1).standard_normal(LAYOUT.elements).astype(np.float32)


def encode(update: Vector, codec: Codec = "fp32") -> dict[int, bytes]:
    return {
        chunk: encode_chunk(codec, update[slice(*LAYOUT.bounds(chunk))], bytes([chunk]) * 16)
        for chunk in range(LAYOUT.count)
    }


def compare(
    theirs: Vector, replay: Vector, bounds: Bounds | None = BOUNDS, codec: Codec = "fp32"
) -> Comparison:
    return compare_chunks(codec, LAYOUT, encode(theirs, codec), encode(replay, codec), bounds)


@pytest.mark.parametrize("codec", CODECS)
def test_equal_bytes_agree_even_uncalibrated(codec: Codec, update: Vector) -> None:
    assert compare(update, update, None, codec).outcome is Outcome.AGREES
    assert compare(np.zeros_like(update), np.zeros_like(update), None).outcome is Outcome.AGREES


def test_uncalibrated_is_between_whatever_the_distance(update: Vector) -> None:
    found = compare(-update, update, None)
    assert found.outcome is Outcome.BETWEEN
    assert found.pooled == pytest.approx(2)


@pytest.mark.parametrize(
    ("distance", "outcome"),
    [(0.049, Outcome.AGREES), (0.051, Outcome.BETWEEN), (0.099, "between"), (0.101, "differs")],
)
def test_the_pooled_bounds(update: Vector, distance: float, outcome: str) -> None:
    found = compare(update * np.float32(1 + distance), update)
    assert found.outcome == outcome
    assert found.pooled == pytest.approx(distance, rel=1e-3)


@pytest.mark.parametrize(
    ("distance", "outcome"),
    [(0.19, "agrees"), (0.21, "between"), (0.39, "between"), (0.41, "differs")],
)
def test_every_chunk_must_pass_too(update: Vector, distance: float, outcome: str) -> None:
    """The short last chunk hardly moves the pooled distance."""
    theirs = update.copy()
    last = slice(*LAYOUT.bounds(LAYOUT.count - 1))
    theirs[last] *= np.float32(1 + distance)
    found = compare(theirs, update)
    assert found.pooled < BOUNDS.pooled_pass
    assert found.outcome == outcome
    worst = max(found.findings, key=lambda finding: finding.distance)
    assert (worst.what, worst.chunk) == ("chunk", LAYOUT.count - 1)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("theirs", "pooled"),
    [(lambda u: -u, 2), (lambda u: u * 10, 9), (np.zeros_like, 1), (lambda u: u / 2, 0.5)],
)
def test_gross_cheats_differ_in_every_codec(
    codec: Codec, theirs: Any, pooled: float, update: Vector
) -> None:
    found = compare(theirs(update), update, BOUNDS, codec)
    assert found.outcome is Outcome.DIFFERS
    assert found.pooled == pytest.approx(pooled, rel=0.1)


def test_the_same_noise_keeps_l1_small_under_int4(update: Vector) -> None:
    """A hundredth of an int4 step moves few codes: most elements stay equal to the bit."""
    near = update + np.float32(0.01) * np.random.default_rng(2).standard_normal(len(update)).astype(
        np.float32
    )
    exact = compare(near, update).pooled
    assert exact == pytest.approx(0.01, rel=0.05)
    assert compare(near, update, BOUNDS, "int4").pooled < 2 * exact


def test_a_chunk_of_almost_nothing_is_measured_against_the_others(update: Vector) -> None:
    replay, theirs = update.copy(), update.copy()
    unused = slice(*LAYOUT.bounds(2))
    replay[unused] *= np.float32(1e-6)
    theirs[unused] = -replay[unused]
    assert compare(theirs, replay).outcome is Outcome.AGREES
    replay[unused] = 0
    assert compare(theirs, replay).outcome is Outcome.AGREES
    theirs[unused] = update[unused]
    assert compare(theirs, replay).outcome is Outcome.DIFFERS


def test_a_replay_of_nothing_at_all(update: Vector) -> None:
    found = compare(update, np.zeros_like(update))
    assert found.outcome is Outcome.DIFFERS
    assert found.pooled == FARTHEST


def test_only_what_was_opened_is_compared(update: Vector) -> None:
    theirs, replay = encode(-update), encode(update)
    theirs[1] = replay[1]
    assert compare_chunks("fp32", LAYOUT, {1: theirs[1]}, replay, BOUNDS).outcome is Outcome.AGREES
    with pytest.raises(ValueError, match="nothing was opened"):
        compare_chunks("fp32", LAYOUT, {}, replay, BOUNDS)
    with pytest.raises(ValueError, match="not everything"):
        compare_chunks("fp32", LAYOUT, theirs, {1: replay[1]}, BOUNDS)


def test_only_drawn_chunks_are_pooled_and_every_opened_one_must_pass(update: Vector) -> None:
    """A chunk opened on suspicion would weigh more in the pool than where bounds were measured."""
    theirs = update.copy()
    theirs[slice(*LAYOUT.bounds(2))] *= np.float32(1.15)  # within the bounds of one chunk
    opened = {chunk: encode(theirs)[chunk] for chunk in (1, 2)}
    replay = encode(update)
    assert compare_chunks("fp32", LAYOUT, opened, replay, BOUNDS).outcome is Outcome.BETWEEN
    found = compare_chunks("fp32", LAYOUT, opened, replay, BOUNDS, pooled=[1])
    assert (found.outcome, found.pooled) == (Outcome.AGREES, 0.0)
    theirs[slice(*LAYOUT.bounds(2))] = -update[slice(*LAYOUT.bounds(2))]
    opened[2] = encode(theirs)[2]
    found = compare_chunks("fp32", LAYOUT, opened, replay, BOUNDS, pooled=[1])
    assert (found.outcome, found.pooled) == (Outcome.DIFFERS, 0.0)
    with pytest.raises(ValueError, match="nothing to pool"):
        compare_chunks("fp32", LAYOUT, opened, replay, BOUNDS, pooled=[3])


def test_malformed_chunks_are_refused(update: Vector) -> None:
    with pytest.raises(BadRecord):
        compare_chunks("int8", LAYOUT, {0: b"rubbish"}, encode(update, "int8"), BOUNDS)


def projections(update: Vector) -> NDArray[np.float32]:
    packed = project_update(list(encode(update).values()), "fp32", LAYOUT, bytes(32))
    return unpack_projections(packed, LAYOUT.count)


def test_projections_point_to_the_falsified_chunks(update: Vector) -> None:
    theirs = update.copy()
    theirs[slice(*LAYOUT.bounds(3))] *= 3
    theirs[slice(*LAYOUT.bounds(1))] *= np.float32(1.5)
    theirs[slice(*LAYOUT.bounds(0))] *= np.float32(1.1)  # within the bound
    ours, replay = projections(theirs), projections(update)
    assert differing_chunks(ours, replay, BOUNDS, 8) == [3, 1]
    assert differing_chunks(ours, replay, BOUNDS, 1) == [3]
    assert differing_chunks(ours, replay, None, 8) == [3, 1, 0]
    assert differing_chunks(replay, replay, None, 8) == []
    assert projection_distances(ours, replay)[3] == pytest.approx(2, rel=1e-4)


def test_projections_of_a_chunk_of_almost_nothing(update: Vector) -> None:
    replay, theirs = update.copy(), update.copy()
    replay[slice(*LAYOUT.bounds(2))] = 0
    theirs[slice(*LAYOUT.bounds(2))] = 1e-6
    assert differing_chunks(projections(theirs), projections(replay), BOUNDS, 8) == []
    assert differing_chunks(projections(update), projections(replay), BOUNDS, 8) == [2]


def entry(steps: int, bounds: Bounds | None, first: str = "cpu", second: str = "cpu-bf16") -> Entry:
    measured = Measured(comparisons=3, honest_pooled=0.02, cheats={"half": 0.5})
    return Entry(first=first, second=second, steps=steps, measured=measured, bounds=bounds)


def table(*entries: Entry) -> ToleranceTable:
    return ToleranceTable(
        run_id="ab" * 32, settled_rounds=3, steps=20, samples=1, made_at_s=5, entries=entries
    )


def scaled(factor: float) -> Bounds:
    names = ("pooled_pass", "pooled_fail", "chunk_pass", "chunk_fail", "projection")
    return Bounds(**{name: getattr(BOUNDS, name) * factor for name in names})


def test_a_pair_is_found_in_either_order_and_no_other() -> None:
    made = table(entry(20, BOUNDS))
    assert made.bounds("cpu", "cpu-bf16") == BOUNDS
    assert made.bounds("cpu-bf16", "cpu") == BOUNDS
    assert made.bounds("cpu", "cpu") is None
    assert made.bounds("cuda", "cpu") is None


def test_bounds_between_two_lengths_are_interpolated() -> None:
    made = table(entry(5, scaled(4)), entry(20, BOUNDS))
    assert made.bounds("cpu", "cpu-bf16", 5) == scaled(4)
    assert made.bounds("cpu", "cpu-bf16", 1) == scaled(4)
    assert made.bounds("cpu", "cpu-bf16", 20) == BOUNDS
    assert made.bounds("cpu", "cpu-bf16", 500) == BOUNDS
    assert made.bounds("cpu", "cpu-bf16") == BOUNDS
    between = made.bounds("cpu", "cpu-bf16", 10)
    assert between is not None
    assert between.pooled_fail == pytest.approx(0.2)
    assert between.near_zero == pytest.approx(BOUNDS.near_zero)


def test_no_bounds_at_one_end_decide_nothing_in_between() -> None:
    made = table(entry(5, BOUNDS), entry(20, None))
    assert made.bounds("cpu", "cpu-bf16", 5) == BOUNDS
    assert made.bounds("cpu", "cpu-bf16", 6) is None
    assert made.bounds("cpu", "cpu-bf16", 20) is None


def test_a_table_survives_its_json() -> None:
    made = table(entry(5, None), entry(20, BOUNDS))
    assert ToleranceTable.parse(made.to_json()) == made


@pytest.mark.parametrize(
    "change",
    [
        {"format": "barnraise-tolerance/2"},
        {"run_id": "short"},
        {"surprise": 1},
        {"entries": [{"first": "tpu"}]},
        {"steps": "20"},
    ],
)
def test_other_tables_are_refused(change: dict[str, Any]) -> None:
    document = json.loads(table(entry(20, BOUNDS)).to_json()) | change
    with pytest.raises(BadRecord):
        ToleranceTable.parse(json.dumps(document))


@pytest.mark.parametrize("document", ["", "[", "[" * 10_000, " " * (MAX_TABLE_BYTES + 1), "NaN"])
def test_what_is_no_table_at_all(document: str) -> None:
    with pytest.raises(BadRecord):
        ToleranceTable.parse(document)


def test_bounds_are_in_order() -> None:
    with pytest.raises(ValueError, match="above the bound to fail"):
        Bounds(pooled_pass=0.2, pooled_fail=0.1, chunk_pass=0.2, chunk_fail=0.4, projection=0.3)
