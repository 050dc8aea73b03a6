"""Reducers: results recomputed byte for byte, false projections, results that contradict."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from protocol.wire import service_pb2

Start = Callable[..., Awaitable[Any]]


@pytest.fixture
def start(start_audits: Start) -> Start:
    return start_audits


async def test_a_reducer_that_lies_about_projections_is_convicted_and_the_worker_passes(
    start: Start, case_rig: ModuleType
) -> None:
    rig = await start()

    def lie(who: Any, challenge: Any) -> Any:
        record, chunks = case_rig.honest(who, challenge)
        if challenge.kind == service_pb2.CHALLENGE_KIND_PROJECT:
            values = np.frombuffer(record.projections, "<f4").copy()
            values[: 64 * 2] *= -3
            record.projections = values.tobytes()
        return record, chunks

    await rig.play_round(*rig.workers)
    rig.anchor.answers = lie
    await rig.audit()
    assert set(rig.verdicts().values()) == {"passed"}
    convicted = [row for row in rig.reducer_audits() if row["verdict"] == "failed"]
    assert [(row["reducer"], row["reason"]) for row in convicted] == [
        (rig.anchor.name, "false_projection")
    ]
    assert rig.blocked() == {rig.anchor.name}
    rig.board()


async def test_a_reducer_with_bad_proofs_does_not_harm_the_worker(
    start: Start, case_rig: ModuleType
) -> None:
    rig = await start()

    def bend(who: Any, challenge: Any) -> Any:
        record, chunks = case_rig.honest(who, challenge)
        for chunk in chunks:
            chunk.proof[0] = bytes(32)
        return record, chunks

    await rig.play_round(*rig.workers)
    rig.anchor.answers = bend
    await rig.audit()
    assert set(rig.verdicts().values()) == {"passed"}
    assert not rig.blocked()


async def test_a_wrong_mean_convicts_its_reducer(start: Start) -> None:
    rig = await start(verification={"audited_results": 64})
    await _reduce_with(rig, bend=1e-2)
    await rig.audit()
    verdicts = {row["verdict"] for row in rig.reducer_audits()}
    assert "failed" in verdicts
    assert {row["reason"] for row in rig.reducer_audits() if row["verdict"] == "failed"} == {
        "wrong_mean"
    }
    assert rig.blocked() == {rig.anchor.name}
    assert set(rig.verdicts().values()) == {"passed"}
    rig.board()


async def test_a_result_whose_inputs_cannot_be_had_costs_nobody_anything(
    start: Start, case_rig: ModuleType
) -> None:
    rig = await start()
    await _reduce_with(rig, bend=1e-2)

    def only_the_worker(who: Any, challenge: Any) -> Any:
        if challenge.kind == service_pb2.CHALLENGE_KIND_INPUTS or not challenge.group_id:
            return case_rig.unavailable(who, challenge)
        return case_rig.honest(who, challenge)

    rig.anchor.answers = only_the_worker
    rig.workers[0].answers = case_rig.unavailable
    await rig.audit()
    assert {row["verdict"] for row in rig.reducer_audits()} == {"unavailable"}
    assert not rig.blocked()


async def _reduce_with(rig: Any, *, bend: float) -> None:
    for worker in rig.workers:
        await worker.lease()
    for worker in rig.workers:
        worker.train()
        await worker.commit()
    await rig.gather()
    await rig.submit(rig.results(bend=bend))
    assert await rig.engine.settle()


async def test_a_second_result_that_turns_up_late_convicts_its_reducer(start: Start) -> None:
    rig = await start()
    for worker in rig.workers:
        await worker.lease()
    for worker in rig.workers:
        worker.train()
        await worker.commit()
    await rig.gather()
    other = rig.results(bend=1e-2)
    await rig.submit(rig.results())
    assert await rig.engine.settle()
    await rig.audit()
    assert not rig.blocked()
    await rig.submit(other[:1])
    await rig.audit()
    assert {row["reason"] for row in rig.reducer_audits() if row["verdict"] == "failed"} == {
        "equivocation"
    }
    assert rig.blocked() == {rig.anchor.name}
    await rig.reboot()
    await rig.audit()
    assert len([row for row in rig.reducer_audits() if row["verdict"] == "failed"]) == 1
    rig.board()
