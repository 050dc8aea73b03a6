"""Keys are rotated, then stolen ones revoked, while workers are in the middle of their rounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_restore import (
    SETTLED,
    check_merged_once,
    kill_without_orphans,
    mid_round,
    rows,
    start_two,
    worker_rig,
)

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Any]:
    with worker_rig().open_rig(tmp_path) as opened:
        yield opened


def rotate(rig: Any, coordinator: Any, *options: str) -> dict[str, Any]:
    """With the root key in the folder for a moment; the server takes the keys up by a restart."""
    done = worker_rig().barnraise(
        "coordinator", "rotate-keys", "--run-dir", str(rig.run), "--json", *options
    )
    kill_without_orphans(coordinator)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_workers_survive_a_rotation_and_a_revocation_in_mid_round(rig: Any) -> None:
    coordinator, ada, bob = start_two(rig)
    with mid_round(coordinator, ada, bob) as first:
        said = rotate(rig, coordinator)
        assert said == {"rotated": ["round", "log", "tls"], "revoked": False, "serving": True}
        coordinator = rig.serve()
        coordinator.wait_for("Serving", count=2)
    coordinator.wait_for(SETTLED, count=first + 1)
    with mid_round(coordinator, ada, bob) as second:
        stolen = ("--round", "--log", "--revoke-old", "--why", "the server was broken into")
        assert rotate(rig, coordinator, *stolen)["rotated"] == ["round", "log"]
        coordinator = rig.serve()
        coordinator.wait_for("signed_anew")
        coordinator.wait_for("Serving", count=3)
    # Neither was started again; the rounds in which it happened were settled with both.
    assert (ada.wait(200), bob.wait(60)) == (0, 0)
    assert rows(rig, f"SELECT phase, members FROM rounds WHERE number IN ({first}, {second})") == [
        ("SETTLED", 2),
        ("SETTLED", 2),
    ]
    assert rows(rig, "SELECT count(*) FROM rounds WHERE phase = 'SKIPPED'") == [(0,)]
    check_merged_once(rig, worker_rig().barnraise, ada, bob)
    receipts = worker_rig().barnraise(
        "worker", "receipts", "--home", str(rig.home("ada")), "--json"
    )
    # Those under a head that the stolen key had signed were fetched anew.
    assert {row["state"] for row in json.loads(receipts.stdout)} == {"verified"}
