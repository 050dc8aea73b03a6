"""The server as a process of its own, and the processes that it looks after."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from coordinator.evaluation import Evaluator, validation_loss
from coordinator.supervise import Child
from protocol.errors import TransientError
from protocol.manifest import RunManifest
from protocol.model import initial_weights
from protocol.training import evaluate

COMMAND = (sys.executable, "-m", "barnraise", "coordinator")


def coordinator(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def server(run_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """``coordinator serve`` that has printed its link."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--run-dir", str(run_folder), "--no-anchor"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Join link:"):
            break
    yield process
    process.kill()
    process.wait()
    process.stderr.close()


def test_serve_pause_status_and_a_graceful_end(
    run_folder: Path, server: subprocess.Popen[str]
) -> None:
    at = ("--run-dir", str(run_folder))
    status = json.loads(coordinator("status", *at, "--json").stdout)
    assert status["serving"] and status["round"]["phase"] == "OPEN" and not status["paused"]
    assert json.loads(coordinator("pause", *at, "--json").stdout) == {
        "paused": True,
        "serving": True,
    }
    second = coordinator("serve", *at, "--no-anchor")
    assert second.returncode == 2
    assert "another coordinator serves" in second.stderr
    children = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
    down = json.loads(coordinator("status", *at, "--json").stdout)
    assert not down["serving"] and down["paused"]
    assert "once the coordinator runs" in coordinator("resume", *at).stdout
    assert json.loads(coordinator("rounds", *at, "--json").stdout)[0]["round"] == 0
    assert json.loads(coordinator("workers", *at, "--json").stdout) == []


def test_what_a_person_did_wrong_ends_with_a_sentence(run_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        busy = coordinator("serve", "--run-dir", str(run_folder), "--listen", listen, "--no-anchor")
        page = coordinator("serve", "--run-dir", str(run_folder), "--leaderboard", listen)
    assert page.returncode == 2
    assert "is in use" in page.stderr and "--leaderboard" in page.stderr
    assert busy.returncode == 2
    assert "is in use" in busy.stderr and "Traceback" not in busy.stderr
    nothing = coordinator("status", "--run-dir", str(tmp_path / "nothing"))
    assert nothing.returncode == 2
    assert "not a run folder" in nothing.stderr


def test_the_child_s_loss_is_the_model_s(manifest: RunManifest, tmp_path: Path) -> None:
    sequences = np.random.default_rng(1).integers(0, 256, (4, 32))
    weights = initial_weights(manifest)
    folder = tmp_path / "evaluation"
    with Evaluator(manifest, sequences, folder) as evaluator:
        first = evaluator.loss(weights)
        process = evaluator._process
        assert process is not None
        assert evaluator.loss(np.full_like(weights, np.nan)) == float("inf")
        assert evaluator._process is process  # warm
        process.kill()
        process.wait()
        assert evaluator.loss(weights) == first
    assert not folder.exists()
    assert validation_loss(manifest, weights, sequences) == first
    assert abs(first - evaluate(manifest, weights, sequences)) < 1e-4


def test_an_evaluation_that_dies_is_a_passing_failure(
    manifest: RunManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Evaluator(manifest, np.zeros((1, 32), np.int64), tmp_path / "evaluation") as evaluator,
        pytest.raises(TransientError, match="exit code 1"),
    ):
        evaluator.loss(np.zeros(1, np.float32))


def _family() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


async def test_a_child_is_restarted_and_reaped(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    os.mkfifo(log)
    before = _family()
    # Both ends: the child's may be closed in between without an end of file.
    with os.fdopen(os.open(log, os.O_RDWR), "rb") as output:
        child = Child("child", ("no-such-command",), log)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(child.run())
            complaints = 0
            while complaints < 2:
                complaints += b"No such command" in await asyncio.to_thread(output.readline)
            task.cancel()
    assert _family() <= before


def test_a_leashed_process_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "from protocol.leash import leashed\n"
        "subprocess.Popen(leashed([sys.executable, '-c',"
        " 'import time; print(1, flush=True); time.sleep(600)']))\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"1\n"
    (grandchild,) = psutil.Process(parent.pid).children()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert grandchild.wait(10) is None
    parent.stdout.close()
