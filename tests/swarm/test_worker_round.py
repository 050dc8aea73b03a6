"""A real run on loopback, by the command line: coordinator, anchor and two workers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

OPEN = '"event": "training"'


@pytest.fixture
def rig(worker_rig: ModuleType, tmp_path: Path) -> Iterator[Any]:
    with worker_rig.open_rig(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def long_run(worker_rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A run that is served for as long as the tests of this file want it."""
    with worker_rig.open_rig(tmp_path_factory.mktemp("long")) as opened:
        opened.init(max_rounds=1000, max_steps=4000, duration_s=6.0)
        opened.serve().wait_for("Serving")
        yield opened


def events(text: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


def left_behind(home: Path) -> list[str]:
    """Processes, sockets and temporary files that mention a home folder."""
    found = [str(path) for path in home.rglob("*") if path.is_socket()]
    found += [str(path) for path in (home / "scratch").iterdir()]
    for process in psutil.process_iter(["cmdline"]):
        if str(home) in " ".join(process.info["cmdline"] or ()):
            found.append(str(process))
    return found


@pytest.mark.parametrize(
    ("codec", "combine"), [("fp32", "mean"), ("int8", "mean"), ("int4", "clipped_mean")]
)
def test_rounds_end_with_one_digest_and_receipts_that_verify(
    rig: Any, worker_rig: ModuleType, codec: str, combine: str
) -> None:
    barnraise: Callable[..., Any] = worker_rig.barnraise
    sizes = {"max_steps": 30, "duration_s": 10.0, "min_members": 2}
    rig.init(max_rounds=2, codec=codec, combine=combine, **sizes)
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    rig.join("ada")
    rig.join("bob", "--client-mode")
    ada, bob = (rig.work(name, "--until-finished") for name in ("ada", "bob"))
    assert (ada.wait(200), bob.wait(60)) == (0, 0)

    settled = [event["state"] for event in events(coordinator.text(), "round_settled")]
    anchor = (rig.run / "logs" / "anchor.log").read_text()
    assert len(settled) == 2
    for text in (ada.text(), bob.text(), anchor):
        assert [event["state"] for event in events(text, "outer step made")] == settled
    # Nothing is downloaded again: the state of each round is one's own outer step.
    assert len(events(ada.text(), "state fetched")) <= 2
    assert any(event["source"] != "coordinator" for event in events(ada.text(), "state fetched"))

    for name in ("ada", "bob"):
        listed = barnraise("worker", "receipts", "--home", str(rig.home(name)), "--json")
        receipts = json.loads(listed.stdout)
        assert [receipt["state"] for receipt in receipts] == ["verified"] * 2
        assert left_behind(rig.home(name)) == []


def test_killed_worker_commits_what_it_trained_and_ctrl_c_leaves_nothing(
    long_run: Any, worker_rig: ModuleType
) -> None:
    barnraise: Callable[..., Any] = worker_rig.barnraise
    rig = long_run
    rig.join("ada")
    home = rig.home("ada")
    ada = rig.work("ada")
    ada.wait_for(OPEN)

    # A second one in the same home is refused, and says who is there.
    second = barnraise("worker", "run", "--home", str(home), check=False)
    assert second.returncode == 2
    assert f"process {ada.popen.pid}" in second.stderr

    # The control socket is its owner's alone.
    assert (home / "control.sock").stat().st_mode & 0o777 == 0o600
    status = json.loads(barnraise("worker", "status", "--home", str(home), "--json").stdout)
    assert status["phase"] in ("training", "committing", "reducing", "waiting")

    # kill -9 in mid-unit: the next start takes the same lease up, or the next round's. A pause
    # stays until it is taken back.
    barnraise("worker", "pause", "--home", str(home))
    children = psutil.Process(ada.popen.pid).children(recursive=True)
    os.kill(ada.popen.pid, signal.SIGKILL)
    ada.wait()
    assert len(children) >= 2  # trainer and p2pd, which end by themselves
    assert psutil.wait_procs(children, timeout=30)[1] == []
    before = len(events(ada.text(), "committed"))
    ada = rig.work("ada")
    ada.wait_for("still paused")
    barnraise("worker", "resume", "--home", str(home))
    ada.wait_for('"event": "committed"', count=before + 1)

    # The coordinator draws chunks of what was merged and is shown them.
    coordinator = rig.processes[0]
    shown = coordinator.wait_for('{.*"event": "challenge_answered".*}')
    assert json.loads(shown)["valid"] is True

    # Ctrl-C once: the unit under way is committed and reduced, then it ends.
    ada.wait_for(OPEN, count=len(events(ada.text(), "training")) + 1)
    ada.interrupt_group()
    assert ada.wait(120) == 0
    assert events(ada.text(), "work ended")
    assert left_behind(home) == []

    # Ctrl-C twice: it ends now.
    ada = rig.work("ada")
    ada.wait_for(OPEN, count=len(events(ada.text(), "training")) + 1)
    ada.interrupt_group()
    ada.wait_for("Ctrl-C again stops now", count=2)
    ada.interrupt_group()
    assert ada.wait(60) == 0
    assert left_behind(home) == []


def test_the_doctor_finds_nothing_in_a_live_run_and_a_cure_in_a_dead_one(
    long_run: Any, worker_rig: ModuleType
) -> None:
    rig = long_run
    rig.processes[0].wait_for('"anchor": true')
    rig.join("doe")
    home = rig.home("doe")

    def findings() -> dict[str, dict[str, Any]]:
        done = worker_rig.barnraise("worker", "doctor", "--home", str(home), "--json", check=False)
        found = {check["name"]: check for check in json.loads(done.stdout)}
        assert done.returncode == (0 if all(check["ok"] for check in found.values()) else 1)
        return found

    well = findings()
    assert [name for name, check in well.items() if not check["ok"]] == []
    assert {"key", "certificate", "clock", "p2pd", "anchor", "disk", "device"} <= set(well)
    assert "/tcp/" in well["anchor"]["detail"]

    config, key = home / "worker.toml", home / "worker.key"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        config.write_text(config.read_text().replace(f":{rig.port}/", f":{port}/"))
        key.write_bytes(b"damaged")
        ill = findings()
    assert {name for name, check in ill.items() if not check["ok"]} == {"key", "coordinator"}
    assert "worker join" in ill["key"]["fix"]
    assert "firewall" in ill["coordinator"]["fix"]


def test_wrong_links_say_what_to_do(long_run: Any, worker_rig: ModuleType) -> None:
    rig = long_run

    def refusal(link: str) -> str:
        home = str(rig.home("eve"))
        done = worker_rig.barnraise("worker", "join", link, "--home", home, "--yes", check=False)
        assert done.returncode == 2
        assert not (rig.home("eve") / "worker.toml").exists()
        return str(done.stderr)

    other_root = worker_rig.Identity.generate().peer_id
    assert "not vouched for" in refusal(re.sub(r"root=.*", f"root={other_root}", rig.link))
    assert "barnraise:" in refusal(re.sub(r"/[0-9a-f]{64}#", f"/{'0' * 64}#", rig.link))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        nobody = rig.link.replace(f":{rig.port}/", f":{silent.getsockname()[1]}/")
        assert "does not answer" in refusal(nobody)
