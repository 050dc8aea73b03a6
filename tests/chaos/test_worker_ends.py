"""However a worker or an anchor ends, and whenever: nothing of it is left.

Ends in the middle of a unit, and starts after ``kill -9``, are in :mod:`test_worker_journal`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chaos_worker import FIRED, Peer, Rig, fault, open_rig, worker_rig

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

TRAINING = '"event": "training"'


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with open_rig(tmp_path) as opened:
        anchors = opened.anchor_keys("anchor")
        toml = worker_rig.RUN_TOML + f"anchors = {anchors}\n".replace("'", '"')
        monkeypatch.setattr(worker_rig, "RUN_TOML", toml)
        opened.init(max_steps=50, min_members=1, max_rounds=500, duration_s=3.0, grace_s=3.0)
        opened.serve().wait_for("Serving")
        for name in ("ada", "bob"):
            opened.join(name)
        yield opened


class Sequence:
    """One home folder; each time the process stands still at a point and is told to end there."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig, self.name = rig, name
        self.fired = 0

    def start(self, *faults: str) -> Peer:
        start = self.rig.anchor if self.name == "anchor" else self.rig.work
        return start(self.name, faults=faults)

    def stopped_at(self, point: str) -> Peer:
        peer = self.start(fault(point, "stop"))
        self.fired += 1
        peer.wait_for(FIRED, count=self.fired)
        return peer

    def end(self, peer: Peer, *signals: int) -> None:
        peer.signal(*signals)
        assert peer.wait() == 0
        assert peer.leftovers() == []

    def killed_at(self, point: str) -> None:
        peer = self.start(fault(point, "kill"))
        self.fired += 1
        assert peer.wait() == -9
        # Files and sockets may lie about until the next start, but nothing runs.
        assert not [item for item in peer.leftovers() if item.startswith("process")]


def ends_of_a_worker(rig: Rig) -> None:
    worker = Sequence(rig, "ada")
    worker.end(worker.stopped_at("p2pd spawned"), signal.SIGINT, signal.SIGCONT)
    worker.end(worker.stopped_at("trainer warms up"), signal.SIGTERM, signal.SIGCONT)
    worker.end(worker.stopped_at("reduce begins"), signal.SIGTERM, signal.SIGCONT)


def ends_of_an_anchor(rig: Rig) -> None:
    anchor = Sequence(rig, "anchor")
    anchor.end(anchor.stopped_at("p2pd spawned"), signal.SIGTERM, signal.SIGCONT)
    anchor.killed_at("chunk kept")
    anchor.end(anchor.stopped_at("chunk kept"), signal.SIGINT, signal.SIGCONT)


def test_nothing_is_left(rig: Rig) -> None:
    bob = rig.work("bob")  # so that there are rounds all the time
    bob.wait_for(TRAINING)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(ends_of_a_worker, rig), pool.submit(ends_of_an_anchor, rig)]
        for each in both:
            each.result()
