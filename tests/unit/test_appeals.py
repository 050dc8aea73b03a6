"""An appeal from end to end: real training, real replays, the desk that decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.audit.schema import AuditRow
from coordinator.context import AuditOptions, EngineOptions
from coordinator.schema import ContributionRow
from protocol.wire import records_pb2 as wire

OPTIONS = AuditOptions(answer_s=10.0, patience_s=1000.0, appeal_s=5000.0)


@pytest.fixture
async def convicted(case_rig: ModuleType, make_manifest: Callable[..., Any], tmp_path: Path) -> Any:
    """A run whose two auditors, of one class, convicted an honest worker by one false replay."""
    manifest = make_manifest(
        inner={"max_steps": 4}, verification={**case_rig.VERIFICATION, "audited_results": 0}
    )
    options = replace(EngineOptions(), audit=OPTIONS)
    rig = case_rig.AuditRig(tmp_path, manifest, options=options)
    await rig.boot()
    rig.enrol(1, anchor=True)
    rig.ada = rig.enrol(2)
    for seed in range(2):
        rig.hire(seed, lie=case_rig.other_vector)
    await rig.play_round(rig.ada)
    await rig.audit()
    assert rig.verdicts() == {rig.ada.name: "failed"}
    assert rig.blocked() == {rig.ada.name}
    yield rig
    rig.database.close()


async def appeal(rig: Any) -> None:
    record = wire.Appeal(
        run_id=rig.run_id,
        worker=rig.ada.name,
        assignment_id=rig.ada.assignment.assignment_id,
    )
    await rig.engine.appeal(rig.ada.sign(record))
    await rig.audit()


def newest(rig: Any) -> str | None:
    with rig.database.session() as session:
        return session.scalar(select(AuditRow.verdict).order_by(AuditRow.appeal.desc()).limit(1))


async def test_an_honest_worker_is_acquitted_on_another_device(convicted: Any) -> None:
    rig = convicted
    await appeal(rig)
    assert newest(rig) is None  # it waits for an auditor of another class
    rig.ada.silent = True  # nobody has to show anything again
    rig.hire(7, execution="cuda")
    await rig.audit()
    assert newest(rig) == "overturned"
    assert not rig.blocked()
    with rig.database.session() as session:
        assert set(session.scalars(select(ContributionRow.credit))) == {"pending"}
    assert (await rig.ada.request()).HasField("assignment")
    rig.board()


async def test_an_appeal_that_nobody_can_judge_leaves_the_verdict(convicted: Any) -> None:
    rig = convicted
    await appeal(rig)
    await rig.wait(OPTIONS.patience_s + 1)
    assert newest(rig) == "inconclusive"
    assert rig.blocked() == {rig.ada.name}
    await appeal(rig)  # it may be tried again, while the evidence is kept
    rig.hire(7, execution="cuda")
    await rig.audit()
    assert newest(rig) == "overturned"
    rig.board()
