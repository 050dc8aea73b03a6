"""A new key's way into a run: invitation or approval, first unit, audit, work. Real processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(400)]


@pytest.fixture
def rig(worker_rig: ModuleType, tmp_path: Path) -> Iterator[Any]:
    with worker_rig.open_rig(tmp_path) as opened:
        opened.init(max_rounds=1000, probation_steps=5, auditor="true", duration_s=4.0)
        toml = opened.run / "run.toml"
        toml.write_text(toml.read_text() + 'enrolment = "approval"\n')
        yield opened


def kill(process: Any) -> None:
    os.kill(process.popen.pid, signal.SIGKILL)
    process.wait()


def events(text: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


def test_a_new_key_works_once_its_first_unit_has_passed(rig: Any, worker_rig: ModuleType) -> None:
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    organise = ("--run-dir", str(rig.run))
    made = worker_rig.barnraise("coordinator", "invite", "create", "--json", *organise)
    rig.join("ada", "--client-mode", "--invite", json.loads(made.stdout)["token"])
    rig.join("bob", "--client-mode")

    # Killed while it trains its first unit, and again when that is delivered.
    ada, bob = rig.work("ada"), rig.work("bob")
    ada.wait_for('"event": "training on probation"')
    kill(ada)
    ada = rig.work("ada")
    ada.wait_for('"event": "committed on probation"')
    kill(ada)
    ada = rig.work("ada")
    ada.wait_for("the first unit passed its audit")
    ada.wait_for('"event": "committed"')

    # Bob has been waiting for the organiser all the while.
    bob.wait_for("approve this device")
    assert events(bob.text(), "enrolled") == []
    waiting = json.loads(worker_rig.barnraise("coordinator", "pending", "--json", *organise).stdout)
    worker_rig.barnraise("coordinator", "approve", waiting[0]["worker"], *organise)
    bob.wait_for("the first unit passed its audit")
    bob.wait_for('"event": "committed"')

    # What was done on probation is among what it has given since its start.
    asked = ("worker", "status", "--home", str(rig.home("bob")), "--json")
    given = json.loads(worker_rig.barnraise(*asked).stdout)
    assert given["units_committed"] == 1 + len(events(bob.text(), "committed"))
    for process in (ada, bob):
        process.interrupt_group()
    assert (ada.wait(), bob.wait()) == (0, 0)
    text = coordinator.text()
    committed = [event["worker"] for event in events(text, "probation_committed")]
    assert len(committed) == len(set(committed)) == 2
    # Nobody had a lease before its unit was in, and checked.
    for worker in committed:
        leased = [event for event in events(text, "leased") if event["worker"] == worker]
        unit = next(e for e in events(text, "probation_committed") if e["worker"] == worker)
        assert unit["timestamp"] < min(event["timestamp"] for event in leased)
    for name in ("ada", "bob"):
        listed = worker_rig.barnraise("worker", "receipts", "--home", str(rig.home(name)), "--json")
        receipts = json.loads(listed.stdout)
        assert any(receipt["state"] == "verified" for receipt in receipts)
        assert not [r for r in receipts if r["state"].startswith("refused")]
