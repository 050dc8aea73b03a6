"""Whole runs in which the coordinator has lost its files, or a worker's files rot."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_rig import Rig, open_rig

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as opened:
        yield opened


def events(text: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


def wait_for_file(path: Path, text: str, count: int, timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while path.read_text().count(text) < count:
        assert time.monotonic() < deadline_s, path.read_text()[-3000:]
        time.sleep(0.05)


def test_a_late_joiner_gets_everything_from_peers_when_the_coordinator_lost_its_files(
    rig: Rig,
) -> None:
    # Two members are needed, so the round waits for the second one.
    rig.init(max_rounds=1000, max_steps=400, duration_s=250.0, min_members=2)
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    rig.join("ada")
    rig.work("ada").wait_for('"event": "training"')
    # The anchor has the manifest, both shards and the weights.
    anchor = rig.run / "logs" / "anchor.log"
    wait_for_file(anchor, '"event": "data fetched"', 3)
    wait_for_file(anchor, '"event": "state fetched"', 1)

    lost = [path for path in (rig.folder / "data").rglob("*") if path.is_file()]
    lost += [path for path in (rig.run / "blobs").rglob("*") if path.is_file()]
    assert len(lost) >= 6
    for path in lost:
        path.unlink()

    rig.join("bob")
    bob = rig.work("bob")
    bob.wait_for('"event": "training"')
    data, state = (events(bob.text(), name) for name in ("data fetched", "state fetched"))
    assert len(data) >= 2 and len(state) == 1
    assert not any("coordinator" in event["source"] for event in (*data, *state))
    assert "dataset_file_lost" not in coordinator.text()


def test_every_file_of_a_worker_rots_and_the_run_goes_on_with_equal_digests(rig: Rig) -> None:
    rig.init(max_rounds=3, max_steps=30, duration_s=8.0, min_members=1)
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    rig.join("ada")
    ada = rig.work("ada", "--until-finished")
    ada.wait_for('"event": "committed"')
    for path in (rig.home("ada") / "blobs").iterdir():
        status = path.stat()
        with path.open("r+b") as file:
            file.seek(status.st_size // 2)
            byte = file.read(1)
            file.seek(status.st_size // 2)
            file.write(bytes([byte[0] ^ 1]))
        # Nothing tells, but the bytes.
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ada.wait(200) == 0
    settled = [event["state"] for event in events(coordinator.text(), "round_settled")]
    assert len(settled) == 3
    assert [event["state"] for event in events(ada.text(), "outer step made")] == settled
    assert len(events(ada.text(), "cached file damaged, dropped")) >= 2
