"""A reducer cannot ruin the model in one reduce: results have a plausible length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from coordinator.plausible import bound_of
from protocol.errors import BadRecord
from protocol.update import decode_update


def test_who_claims_a_huge_length_does_not_stretch_the_bound() -> None:
    assert bound_of([1.0, 1.2, 0.9, 1e30], [5, 5, 5, 5]) == pytest.approx(2.4)


def test_who_claims_none_does_not_shrink_it() -> None:
    assert bound_of([1.0, 1.2, 0.0], [5, 5, 5]) == pytest.approx(2.4)


def test_sybils_of_little_weight_do_not_shrink_it() -> None:
    assert bound_of([1.0, 1.2, *[0.0] * 8], [50, 50, *[1] * 8]) == pytest.approx(2.4)


async def test_a_result_too_long_for_clipped_members_is_refused(
    engine_rig: ModuleType, make_manifest: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = make_manifest(
        round={"min_members": 2},
        update={"combine": "clipped_mean", "codec": "fp32"},
        verification=engine_rig.QUIET,
    )
    rig = engine_rig.Rig(tmp_path, manifest)
    await rig.boot()
    members = [rig.enrol(2), rig.enrol(3)]
    rig.enrol(1, anchor=True)
    for member in members:
        await member.lease()
        member.train()
    for member in members:
        vector = decode_update(member.update.chunks, rig.layout, "fp32")
        await member.commit(update_norm=float(np.linalg.norm(vector)))
    await rig.gather(complete=members)
    assert rig.phase() == "BROADCAST"
    with pytest.raises(BadRecord, match="has length"):
        await rig.submit(rig.results(bend=1e3))
    assert rig.phase() == "BROADCAST"
    assert not (await rig.submit(rig.results())).missing
    assert await rig.engine.settle()
    rig.database.close()
