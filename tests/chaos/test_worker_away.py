"""Workers without their anchor, without their coordinator, and after a long sleep.

One run for all; each test takes it as a working one and leaves it so.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from chaos_worker import (
    Peer,
    Rig,
    check_receipts,
    check_record,
    events,
    open_rig,
    stand_still,
    wait_for_receipts,
    worker_rig,
)

from protocol.identity import Identity
from worker.status import AWAY

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

TRAINING, COMMITTED = '"event": "training"', '"event": "committed"'
LOST, FOUND = "lost the run's anchors", "in touch with an anchor again"
ANCHORS = ("first", "second")


@dataclass
class Run:
    rig: Rig
    ada: Peer
    bob: Peer

    @property
    def workers(self) -> tuple[Peer, Peer]:
        return (self.ada, self.bob)


def count(peer: Peer, pattern: str) -> int:
    return int(peer.text().count(pattern))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with open_rig(tmp_path_factory.mktemp("away")) as rig, pytest.MonkeyPatch.context() as patch:
        anchors = json.dumps(rig.anchor_keys(*ANCHORS))
        patch.setattr(worker_rig, "RUN_TOML", f"{worker_rig.RUN_TOML}anchors = {anchors}\n")
        rig.init(max_steps=50, min_members=1, max_rounds=500, duration_s=3.0, grace_s=3.0)
        rig.serve(anchor=False).wait_for("Serving")
        rig.anchor("first").wait_for("anchor serves")
        for name in ("ada", "bob"):
            rig.join(name)
        made = Run(rig, rig.work("ada"), rig.work("bob"))
        rig.wait_settled(1)
        yield made


def anchor_of(run: Run) -> Peer:
    return [p for p in run.rig.processes if isinstance(p, Peer) and p.home.name in ANCHORS][-1]


@pytest.mark.parametrize("whose", ["a worker's", "the anchor's"])
def test_a_daemon_dies_under_a_process(run: Run, whose: str) -> None:
    peer = run.ada if whose == "a worker's" else anchor_of(run)
    daemon, settled = peer.daemon(), run.rig.settled()
    daemon.kill()
    peer.wait_for('"event": "swarm_joined_again"')
    assert peer.daemon().pid != daemon.pid
    assert len(events(peer.text(), "swarm_left")) == 1
    assert "killed by signal 9" in events(peer.text(), "swarm_left")[0]["problem"]
    assert run.ada.wait_for_status(swarm_problem="")["connected"]
    for worker in run.workers:
        worker.wait_for(COMMITTED, count=count(worker, COMMITTED) + 1)
    run.rig.wait_settled(settled + 2)


@pytest.mark.parametrize("successor", ANCHORS)
def test_the_anchor_is_lost_and_another_address_or_another_anchor_found(
    run: Run, successor: str
) -> None:
    """First the same one comes back at another port, then one that nobody knew."""
    for worker in run.workers:  # they may still look for it since its daemon died
        if looked := count(worker, LOST):
            worker.wait_for(FOUND, count=looked)
    lost = [count(worker, LOST) for worker in run.workers]
    anchor_of(run).kill()
    for worker, known in zip(run.workers, lost, strict=True):
        worker.wait_for(LOST, count=known + 1)
    found = [count(worker, FOUND) for worker in run.workers]
    # The workers reduce among themselves.
    run.rig.wait_settled(run.rig.settled() + 1)
    assert run.ada.popen.poll() is None
    log = run.rig.folder / f"{successor}.log"
    lives = len(events(log.read_text(), "anchor serves")) if log.exists() else 0
    anchor = run.rig.anchor(successor)
    anchor.wait_for("anchor serves", count=lives + 1)
    for worker, known in zip(run.workers, found, strict=True):
        worker.wait_for(FOUND, count=known + 1)
    identity = Identity.load(run.rig.key(successor)).peer_id
    assert [events(w.text(), FOUND)[-1]["anchors"] for w in run.workers] == [[identity]] * 2


def test_a_sleep_that_outlasts_the_round(run: Run) -> None:
    ada, rig = run.ada, run.rig
    given_up, before = count(ada, "unit given up"), count(ada, TRAINING)
    ada.wait_for(TRAINING, count=before + 1)
    tree = stand_still(ada)
    assert {"p2pd"} < {process.name() for process in tree}
    # The round in which she fell asleep closes without her, and so does another one.
    rig.wait_settled(rig.settled() + 2)
    for process in tree:
        process.send_signal(signal.SIGCONT)
    ada.wait_for("unit given up", count=given_up + 1)
    assert events(ada.text(), "unit given up")[-1]["reason"]
    # A new lease, and merged again.
    ada.wait_for(COMMITTED, count=count(ada, COMMITTED) + 1)
    rig.wait_settled(rig.settled() + 1)
    check_record(rig)


def test_without_the_coordinator_there_is_one_reason(run: Run) -> None:
    rig = run.rig
    (server,) = [p for p in rig.processes if p.log.name == "coordinator.log"]
    waiting = [count(worker, '"event": "waiting"') for worker in run.workers]
    training = [count(worker, TRAINING) for worker in run.workers]
    server.popen.kill()
    server.wait()
    for worker in run.workers:
        status = worker.wait_for_status(phase="waiting", reason=AWAY)
        assert not status["connected"]
    # Still so when each part of it has noticed, tried again, and failed in its own way.
    for worker in run.workers:
        worker.wait_for_status(phase="waiting", reason=AWAY)
    for worker, known in zip(run.workers, waiting, strict=True):
        said = [event["reason"] for event in events(worker.text(), "waiting")[known:]]
        # What it heard in the last moment comes first, if anything does.
        assert set(said[said.index(AWAY) :] if AWAY in said else said[1:]) <= {AWAY}
        assert count(worker, "lost the coordinator") == 1
        assert count(worker, "heartbeat not taken") == 0
    rig.serve(anchor=False)
    for worker, known in zip(run.workers, training, strict=True):
        worker.wait_for(TRAINING, count=known + 1)
        assert worker.wait_for_status(connected=True)["reason"] != AWAY


def test_at_the_end_everything_is_accounted_for(run: Run) -> None:
    due = {name: wait_for_receipts(run.rig, name) for name in ("ada", "bob")}
    for worker in run.workers:
        worker.signal(signal.SIGINT)
    assert [worker.wait() for worker in run.workers] == [0, 0]
    check_record(run.rig)
    for name, units in due.items():
        check_receipts(run.rig, name, units)
