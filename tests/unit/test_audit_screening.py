"""Screening: who stands out, and what reducers may say of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.audit.schema import ScreeningRow
from coordinator.audit.screening import Measured, outliers, stand_out
from coordinator.schema import EvidenceRow
from protocol.errors import BadRecord, Conflict, TooLate
from protocol.wire import records_pb2 as wire


def measured(members: int = 6, chunks: int = 8, *, spread: float = 0.0) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    sizes = np.exp(random.normal(size=(chunks, 1)))  # chunks differ in size
    norms = sizes * np.exp(spread * random.normal(size=(chunks, members)))
    cosines = 0.6 + spread * 0.1 * random.normal(size=(chunks, members))
    return norms.astype(np.float32), cosines.astype(np.float32)


def odd(norms: Any, cosines: Any) -> list[int]:
    half = len(norms) // 2 or 1
    parts = [Measured(norms[:half], cosines[:half])]
    if len(norms) > half:
        parts.append(Measured(norms[half:], cosines[half:]))
    return [int(member) for member in np.flatnonzero(stand_out(parts))]


def test_members_that_are_all_alike_do_not_stand_out() -> None:
    assert odd(*measured()) == []
    norms, cosines = measured()
    norms[:, 2] *= 1.01  # the spread of the others is nothing at all
    assert odd(norms, cosines) == []


@pytest.mark.parametrize("members", [4, 12, 200])
def test_honest_spread_does_not_stand_out(members: int) -> None:
    assert odd(*measured(members, spread=0.1)) == []


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, 10.0, -1.0])
def test_scaled_zero_and_flipped_updates_stand_out(factor: float) -> None:
    norms, cosines = measured(spread=0.05)
    norms[:, 3] *= abs(factor)
    cosines[:, 3] *= np.sign(factor)
    assert odd(norms, cosines) == [3]


def test_one_falsified_chunk_and_random_directions_stand_out() -> None:
    norms, cosines = measured(spread=0.05)
    norms[5, 1] *= 1000
    cosines[:, 4] = 0.0
    assert odd(norms, cosines) == [1, 4]


def test_a_minority_can_neither_hide_nor_make_others_stand_out() -> None:
    norms, cosines = measured(members=9, spread=0.05)
    norms[:, :4] *= 10
    assert odd(norms, cosines) == [0, 1, 2, 3]


# ---- what reducers send ----


async def in_broadcast(boot: Any, members: int = 4) -> Any:
    rig = await boot(round={"min_members": members})
    rig.anchor = rig.enrol(1, anchor=True)
    workers = [rig.enrol(2 + number) for number in range(members)]
    for worker in workers:
        await worker.lease()
    for worker in workers:
        await worker.commit()
    await rig.gather()
    return rig


def screening(rig: Any, **changes: Any) -> wire.Screening:
    roster, group_id = rig.roster()
    members = len(roster.members)
    first, end = changes.get("first_chunk", 0), changes.get("end_chunk", rig.layout.count)
    norms, cosines = measured(members, max(0, end - first))
    norms[:, 1] *= 5
    fields = {
        "run_id": rig.run_id,
        "group_id": group_id,
        "attempt": 1,
        "reducer": rig.anchor.name,
        "first_chunk": first,
        "end_chunk": end,
        "members": members,
        "norms": norms.astype("<f4").tobytes(),
        "cosines": cosines.astype("<f4").tobytes(),
    }
    return wire.Screening(**{**fields, **changes})


async def test_a_screening_is_kept_once_and_names_who_stands_out(boot: Any) -> None:
    rig = await in_broadcast(boot)
    roster, group_id = rig.roster()
    record = screening(rig)
    for _ in range(2):
        await rig.engine.submit_screening(rig.anchor.sign(record))
    with rig.database.session() as session:
        assert session.query(ScreeningRow).count() == 1
        assert outliers(session, rig.engine.context, group_id) == {roster.members[1].worker}
    other = screening(rig, cosines=bytes(len(record.cosines)))
    with pytest.raises(Conflict):
        await rig.engine.submit_screening(rig.anchor.sign(other))
    with pytest.raises(BadRecord, match="another one is about"):
        overlapping = screening(rig, first_chunk=1)
        await rig.engine.submit_screening(rig.anchor.sign(overlapping))
    with rig.database.session() as session:
        assert [row.kind for row in session.query(EvidenceRow)] == ["screening"]


async def test_fewer_than_four_members_tell_nothing(boot: Any) -> None:
    rig = await in_broadcast(boot, members=3)
    await rig.engine.submit_screening(rig.anchor.sign(screening(rig)))
    with rig.database.session() as session:
        assert outliers(session, rig.engine.context, rig.roster()[1]) == set()


async def test_ranges_of_one_reducer_add_up(boot: Any) -> None:
    rig = await in_broadcast(boot)
    for first, end in ((0, 3), (3, rig.layout.count)):
        record = screening(rig, first_chunk=first, end_chunk=end)
        await rig.engine.submit_screening(rig.anchor.sign(record))
    with rig.database.session() as session:
        assert len(outliers(session, rig.engine.context, rig.roster()[1])) == 1


def floats(*values: float, times: int) -> bytes:
    return np.resize(np.array(values, "<f4"), times).tobytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norms", lambda size: floats(-1.0, times=size)),
        ("norms", lambda size: floats(np.nan, times=size)),
        ("norms", lambda size: floats(np.inf, times=size)),
        ("norms", lambda size: floats(1.0, times=size + 1)),
        ("cosines", lambda size: floats(1.01, times=size)),
        ("cosines", lambda size: floats(np.nan, times=size)),
        ("cosines", lambda _: b""),
        ("members", lambda _: 5),
        ("attempt", lambda _: 2),
        ("first_chunk", lambda _: 9999),
        ("end_chunk", lambda _: 9999),
        ("end_chunk", lambda _: 0),
    ],
)
async def test_what_is_not_exactly_measured_is_refused(boot: Any, field: str, value: Any) -> None:
    rig = await in_broadcast(boot)
    size = 4 * rig.layout.count
    whole = screening(rig)
    fields = {name.name: got for name, got in whole.ListFields()}
    record = wire.Screening(**{**fields, field: value(size)})
    with pytest.raises(BadRecord):
        await rig.engine.submit_screening(rig.anchor.sign(record))
    with rig.database.session() as session:
        assert session.query(ScreeningRow).count() == 0


async def test_only_reducers_of_the_running_reduce_are_heard(boot: Any) -> None:
    rig = await in_broadcast(boot)
    stranger = next(member for member in rig.members.values() if member is not rig.anchor)
    with pytest.raises(BadRecord):
        record = screening(rig, reducer=stranger.name)
        await rig.engine.submit_screening(stranger.sign(record))
    with pytest.raises(TooLate):
        record = screening(rig, group_id=bytes(20))
        await rig.engine.submit_screening(rig.anchor.sign(record))
