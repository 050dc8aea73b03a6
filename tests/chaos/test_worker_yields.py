"""A worker whose machine may not work: it freezes, lets go, sleeps and wakes, in a real run.

One run for all; each test takes the worker as the one before left it. What the sensors read is in
a file (:mod:`chaos_governed`); the owner's words come by the real socket.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos_worker import Peer, Rig, check_record, events, open_rig, stand_still, wait_for_receipts

from worker.config import Home, WorkerConfig
from worker.control import ask, is_held

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

TRAINING, COMMITTED, ASLEEP = '"event": "training"', '"event": "committed"', '"event": "asleep"'
MOST_BYTES_ASLEEP = 150 << 20
_PATIENCE_S = 60.0


@dataclass
class Run:
    rig: Rig
    readings: Path
    ada: Peer

    @property
    def home(self) -> Home:
        return Home(self.rig.home("ada"))

    def sense(self, **readings: Any) -> None:
        """What the sensors read from now on."""
        new = self.readings.with_suffix(".new")
        new.write_text(json.dumps(readings))
        new.replace(self.readings)

    def limit(self, **limits: Any) -> None:
        """Other limits, in the file and at once."""
        WorkerConfig.load(self.home.config).with_limits(**limits).save(self.home.config)
        ask(self.home, "reload")

    def start(self) -> None:
        self.ada = self.rig.work("ada", readings=self.readings)
        while not is_held(self.home):
            assert self.ada.popen.poll() is None
            time.sleep(0.02)

    def count(self, pattern: str) -> int:
        return int(self.ada.text().count(pattern))

    def in_a_unit(self) -> None:
        """Until some of a unit is trained."""
        self.ada.wait_for_status(phase="training")
        self.trained_beyond(0)

    def trained_beyond(self, steps: int) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        while self.ada.status()["steps_done"] <= steps:
            assert time.monotonic() < deadline_s, self.ada.text()[-3000:]
            time.sleep(0.02)

    def merged_steps(self) -> list[int]:
        rows = self.rig.rows(
            "SELECT c.steps FROM assignments a JOIN contributions c USING (assignment_id) "
            "WHERE a.status = 'merged' ORDER BY a.round"
        )
        return [steps for (steps,) in rows]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with open_rig(tmp_path_factory.mktemp("yields")) as rig:
        rig.init(max_steps=5000, min_members=1, max_rounds=500, duration_s=20.0, grace_s=5.0)
        rig.serve().wait_for("Serving")
        rig.join("ada")
        readings = rig.folder / "readings.json"
        readings.write_text("{}")
        yield Run(rig, readings, rig.work("ada", readings=readings))


def trainers(peer: Peer) -> list[psutil.Process]:
    return [p for p in peer.tree() if "worker.trainer_process" in p.cmdline()]


def test_others_get_the_processor_at_once_and_the_unit_goes_on(run: Run) -> None:
    ada = run.ada
    ada.wait_for(TRAINING)
    run.limit(busy_cpu_percent=25)
    run.in_a_unit()
    run.sense(foreign_cpu_percent=62.0)
    frozen = ada.wait_for_status(frozen=True)
    assert (frozen["phase"], frozen["because"]) == ("paused", "busy")
    assert frozen["reason"].startswith("other programs use 60 % of the processors")
    assert frozen["eta_s"] is None and not frozen["asleep"]
    (trainer,) = trainers(ada)
    assert trainer.status() == psutil.STATUS_STOPPED
    told, deadline_s = "SELECT phase_reason FROM workers WHERE NOT anchor", time.monotonic() + 15
    while run.rig.rows(told) != [(frozen["reason"],)]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    done = ada.status()["steps_done"]
    assert done >= frozen["steps_done"] > 0
    # The owner thinks better of it: the same unit goes on.
    run.limit(busy_cpu_percent=70)
    status = ada.wait_for_status(frozen=False)
    assert (status["because"], status["reason"]) == ("", "")
    run.trained_beyond(done)
    assert run.count(TRAINING) == 1


def test_before_its_time_is_over_a_frozen_unit_is_committed(run: Run) -> None:
    ada = run.ada
    run.limit(busy_cpu_percent=25)
    before = ada.wait_for_status(frozen=True)
    ada.wait_for('"event": "ending the unit early"')
    ada.wait_for(COMMITTED)
    ada.wait_for(ASLEEP)
    (steps,) = run.merged_steps()
    assert before["steps_done"] <= steps < before["steps"]
    assert len(events(ada.text(), "may not work")) == 2  # once each time
    status = ada.status()
    assert (status["phase"], status["because"], status["asleep"]) == ("paused", "busy", True)
    assert status["units_committed"] == 1
    run.limit(busy_cpu_percent=0)
    ada.wait_for('"event": "awake"')


def test_a_pause_in_a_unit_ends_it_short_and_nothing_is_lost(run: Run) -> None:
    ada = run.ada
    run.in_a_unit()
    told = ask(run.home, "pause")["status"]
    assert told["paused"] and told["paused_until_s"] is None
    ada.wait_for(ASLEEP, count=2)
    assert len(run.merged_steps()) == 2
    assert not events(ada.text(), "unit given up")
    status = ada.status()
    assert (status["phase"], status["because"]) == ("paused", "paused")
    assert status["reason"] == "paused by you: 'barnraise worker resume'"
    until_s = ask(run.home, "pause", for_s=3600)["status"]["paused_until_s"]
    assert ada.wait_for_status(until_s=until_s)["paused_until_s"] == until_s


def test_asleep_it_takes_next_to_nothing_and_is_still_there(run: Run) -> None:
    ada = run.ada
    status = ada.status()
    (process,) = ada.tree()
    assert process.pid == ada.popen.pid
    assert process.memory_info().rss < MOST_BYTES_ASLEEP
    mapped = {Path(region.path).name for region in process.memory_maps()}
    assert not [name for name in mapped if "torch" in name or "hivemind" in name]
    # An audit asks once more for what it has been shown, as after a restore.
    merged = wait_for_receipts(run.rig, "ada")
    assert len(merged) == 2
    me = status["worker"]
    ask_again(run.rig, me)
    asked = f"SELECT count(*) FROM challenges WHERE asked = '{me}' AND status = 'asked'"
    deadline_s = time.monotonic() + _PATIENCE_S
    while run.rig.rows(asked) != [(0,)]:
        assert time.monotonic() < deadline_s, ada.text()[-3000:]
        time.sleep(0.05)
    found = run.rig.rows(f"SELECT DISTINCT status FROM challenges WHERE asked = '{me}'")
    assert found == [("answered",)]


def ask_again(rig: Rig, worker: str) -> None:
    names = (
        "audit_id, kind, asked, members, group_id, assignment_id, first_chunk, end_chunk, chunks"
    )
    names += ", projection_seed, asked_at_s"
    with closing(sqlite3.connect(rig.run / "coordinator.db", timeout=60)) as database, database:
        done = database.execute(
            f"INSERT INTO challenges (challenge_id, status, {names}) "
            f"SELECT randomblob(16), 'asked', {names} FROM challenges "
            "WHERE status = 'answered' AND asked = ?",
            (worker,),
        )
        assert done.rowcount > 0


def test_killed_asleep_it_stays_paused_and_loads_nothing(run: Run) -> None:
    until_s = run.ada.status()["paused_until_s"]
    run.ada.kill()
    started = run.count("trainer started")
    run.start()
    run.ada.wait_for(ASLEEP, count=3)
    assert run.ada.status()["paused_until_s"] == until_s
    (process,) = run.ada.tree()
    assert process.memory_info().rss < MOST_BYTES_ASLEEP
    assert run.count("trainer started") == started
    ask(run.home, "resume")
    run.in_a_unit()
    assert run.ada.status()["because"] == ""


def test_killed_while_frozen_nothing_runs_on_and_the_unit_does(run: Run) -> None:
    ada, unit = run.ada, run.ada.status()["assignment_id"]
    run.limit(busy_cpu_percent=25)
    ada.wait_for_status(frozen=True)
    ada.kill()  # and all that it had started ends, also what stood still
    run.sense()
    run.start()
    run.in_a_unit()
    assert run.ada.status()["assignment_id"] == unit


def test_on_a_low_battery_it_goes_to_sleep_and_comes_back(run: Run) -> None:
    ada, asleep, committed = run.ada, run.count(ASLEEP), run.count(COMMITTED)
    run.sense(on_battery=True, battery_percent=9.0)
    ada.wait_for(ASLEEP, count=asleep + 1)
    assert ada.status()["because"] == "battery"
    # What was under way is not lost.
    assert run.count(COMMITTED) > committed
    assert len(run.merged_steps()) == run.count(COMMITTED)
    # What has to wait for it: a stop in its sleep, by a signal that comes while it stands still.
    stand_still(ada)
    ada.signal(signal.SIGTERM, signal.SIGCONT)
    assert ada.wait() == 0
    assert ada.leftovers() == []


def test_finish_does_not_wait_for_better_times(run: Run) -> None:
    run.sense(foreign_cpu_percent=0.0)
    run.start()
    run.in_a_unit()
    run.sense(foreign_cpu_percent=90.0)
    run.ada.wait_for_status(frozen=True)
    run.ada.signal(signal.SIGINT)
    assert run.ada.wait() == 0
    assert run.ada.leftovers() == []
    assert len(run.merged_steps()) == run.count(COMMITTED)
    check_record(run.rig)
