"""A run with its own auditor: audits end in verdicts, and anybody can do them again."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from coordinator.audit.cli import replay
from protocol.errors import UsageError

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

AUDITING = 'true\nauditor_arguments = ["--poll-s", "0.3", "--no-calibrate"]'


PASSED = r'"round": 0, "worker": "(\w+)", "verdict": "passed", "reason": "replay_agrees"'


@pytest.fixture(scope="module")
def audited(worker_rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A run of which a contribution has passed its audit; the server and its children still run."""
    with worker_rig.open_rig(tmp_path_factory.mktemp("audited")) as rig:
        rig.init(auditor=AUDITING, max_rounds=3, max_steps=5, duration_s=3.0)
        rig.server = rig.serve()
        rig.server.wait_for("Join link")
        rig.join("ada", "--micro-batch", "4")  # whole batches, as the auditor: bits are equal
        rig.work("ada")
        rig.server.wait_for(PASSED, 240.0)
        yield rig


def auditor_log(rig: Any) -> str:
    return str((rig.run / "logs" / "auditor.log").read_text())


def test_the_servers_own_auditor_replays_and_honest_work_passes(audited: Any) -> None:
    log = auditor_log(audited)
    assert re.search(r'"failed": ""[^\n]*"event": "job_done"', log), log
    assert "Traceback" not in log
    assert '"verdict": "failed"' not in audited.server.text()


def test_an_auditor_that_is_killed_comes_back_with_its_key(audited: Any) -> None:
    (child,) = children(audited, "audit")
    audited_before = auditor_log(audited).count("auditor_ready")
    child.send_signal(signal.SIGKILL)
    audited.server.wait_for(r'"child": "auditor"[^\n]*"event": "child_ended"', 60.0)
    audited.server.wait_for(r'"child": "auditor"[^\n]*"event": "child_started"', 60.0, count=2)
    ready = Waiting(audited.run / "logs" / "auditor.log")
    ready.wait_for("auditor_ready", audited_before + 1)
    assert len(set(re.findall(r'"auditor": "(\w+)"', auditor_log(audited)))) == 1


def test_anybody_can_do_the_audit_again(audited: Any, worker_rig: ModuleType) -> None:
    (worker,) = re.findall(PASSED, audited.server.text())
    tiles = str(audited.folder / "tiles")
    database = f"sqlite:///{audited.run}/coordinator.db"
    worker_rig.barnraise("ledger", "export-tiles", "--db", database, "--out", tiles)
    link = ("--link", audited.link, "--home", str(audited.folder / "checks"))
    done = redo("0", worker, *link, "--record", tiles)
    report = json.loads(done.stdout)
    assert (done.exit_code, report["verdict"]) == (0, "passed"), done.output
    steps = {line["step"] for line in report["findings"] if line["found"] == "agrees"}
    assert steps == {"records", "draw", "replay", "verdict"}  # opened chunks are not kept
    own = redo("0", worker, "--run-dir", str(audited.run))
    assert (own.exit_code, json.loads(own.stdout)["verdict"]) == (0, "passed"), own.output
    unknown = redo("7", worker, *link)
    assert isinstance(unknown.exception, UsageError)  # exit code 2
    assert "cannot be checked: no contribution" in str(unknown.exception)


def test_the_auditor_ends_with_the_server(audited: Any) -> None:
    (child,) = children(audited, "audit")
    audited.server.popen.send_signal(signal.SIGKILL)
    audited.server.wait()
    assert psutil.wait_procs([child], timeout=30)[1] == []


# ---- helpers ----


def redo(*arguments: str) -> Any:
    """``barnraise coordinator replay``, in this process: torch is loaded once."""
    return CliRunner().invoke(replay, [*arguments, "--device", "cpu", "--json"])


class Waiting:
    """A log file of somebody else's child."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait_for(self, word: str, count: int, timeout_s: float = 100.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while self.path.read_text().count(word) < count:
            assert time.monotonic() < deadline_s, self.path.read_text()[-3000:]
            time.sleep(0.05)


def children(rig: Any, command: str) -> list[psutil.Process]:
    found = psutil.Process(rig.server.popen.pid).children(recursive=True)
    return [process for process in found if command in process.cmdline()]
