"""The coordinator's machine is lost; a backup goes on in its place, and the workers with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_restore import (
    back_up_in_mid_round,
    check_merged_once,
    check_restored,
    lose,
    start_two,
    worker_rig,
)

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Any]:
    with worker_rig().open_rig(tmp_path) as opened:
        yield opened


def test_workers_go_on_with_a_coordinator_restored_at_the_same_address(rig: Any) -> None:
    barnraise = worker_rig().barnraise
    coordinator, ada, bob = start_two(rig)
    backup = back_up_in_mid_round(rig, barnraise, coordinator, ada, bob)
    lose(rig, coordinator)
    rig.run = rig.folder / "elsewhere"
    arguments = ("--run-dir", str(rig.run), "--data", str(rig.folder / "data"), "--json")
    done = barnraise("coordinator", "restore", str(backup), *arguments)
    restored = json.loads(done.stdout)
    assert restored["join_link"] == rig.link
    rig.serve()
    # Neither was started again, and both followed the run to its end.
    assert (ada.wait(200), bob.wait(60)) == (0, 0)
    check_merged_once(rig, barnraise, ada, bob)
    check_restored(rig, restored)
