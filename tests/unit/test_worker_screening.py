"""What a reducer measures of its inputs: right, bounded, and the same each time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from protocol.combine import combine_chunk
from protocol.envelope import Signed, open_envelope, seal
from protocol.identity import Identity
from protocol.limits import MAX_RECORD_BYTES, MAX_ROSTER_MEMBERS
from protocol.wire import records_pb2 as wire
from worker.group import Group
from worker.screening import Screener, chunks_in_record, measure

REDUCER = Identity.from_seed(bytes(32))


def floats(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")


def test_norms_and_cosines_are_those_of_the_inputs() -> None:
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal(1000).astype(np.float32) for _ in range(5)]
    inputs.append(-inputs[0] * 10)
    combined = combine_chunk("mean", inputs, [1] * 6)
    norms, cosines = measure(inputs, combined)
    for values, norm, cosine in zip(inputs, norms, cosines, strict=True):
        wide, target = values.astype(np.float64), combined.astype(np.float64)
        length = np.linalg.norm(wide)
        assert norm == pytest.approx(length, rel=1e-6)
        assert cosine == pytest.approx(wide @ target / length / np.linalg.norm(target), abs=1e-6)
    assert cosines.dtype == norms.dtype == np.float32


def test_zero_vectors_have_no_direction() -> None:
    zero, one = np.zeros(8, np.float32), np.ones(8, np.float32)
    norms, cosines = measure([zero, one], one)
    assert list(cosines) == [0, 1]
    assert norms[0] == 0
    assert list(measure([zero, one], zero)[1]) == [0, 0]


def test_the_largest_values_stay_finite() -> None:
    huge = np.full(1 << 10, np.finfo(np.float32).max, np.float32)
    norms, cosines = measure([huge, -huge], huge)
    assert np.isfinite(norms).all()
    assert list(cosines) == [1, -1]


def test_a_record_stays_within_half_of_what_one_may_take() -> None:
    for members in (1, 7, 100, MAX_ROSTER_MEMBERS):
        size = chunks_in_record(members)
        assert size >= 1
        assert size * members * 8 + 1024 <= MAX_RECORD_BYTES // 2


def test_records_cover_the_range_once_and_are_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.screening.chunks_in_record", lambda members: 2)
    first = [record(screener(range(2, 7)), i) for i in range(3)]
    assert [(r.first_chunk, r.end_chunk) for r in first] == [(2, 4), (4, 6), (6, 7)]
    assert first == [record(screener(range(2, 7)), i) for i in range(3)]
    assert list(floats(first[0].norms)) == [2, 4, 3, 6]  # of each chunk, of each member
    assert list(floats(first[0].cosines)) == [1, 1, 1, 1]
    # A restart in between: what was not measured here is not spoken of.
    kept = [record(screener([2, 3, 4, 6]), i) for i in range(2)]
    assert kept == [first[0], first[2]]


def screener(chunks: Iterable[int]) -> Screener:
    """Of a reducer of chunks 2 to 6, two members: chunk i holds (i, 0) and (2i, 0)."""
    made = Screener(GROUP, 2, 7)
    for chunk in chunks:
        inputs = [np.array([scale * chunk, 0], np.float32) for scale in (1, 2)]
        made.note(chunk, inputs, inputs[0])
    return made


def record(made: Screener, number: int) -> wire.Screening:
    envelope = made.records(2, REDUCER)[number]
    return open_envelope(envelope, wire.Screening, signer=REDUCER.peer_id).record


def roster() -> Signed[wire.Roster]:
    made = wire.Roster(
        run_id=b"r" * 32,
        round=1,
        attempt=1,
        members=[
            wire.RosterMember(worker=REDUCER.peer_id, weight=1, commitment_root=bytes(32)),
        ],
        reducers=[wire.ReducerRange(reducer=REDUCER.peer_id, first_chunk=0, end_chunk=8)],
        codec="int8",
        combine="mean",
        vector_elements=16,
        chunk_elements=2,
        chunk_count=8,
        gather_deadline_ms=1,
        broadcast_deadline_ms=2,
    )
    return open_envelope(seal(made, REDUCER), wire.Roster)


GROUP = Group.of(roster())
