"""Disks that are really full, under a real run: first the database's, then the blobs'."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import worker_rig

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

ROUNDS = 4


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own; a machine that refuses to mount one fails the test."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chaos", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, f"this test mounts small disks, as root: {made.stderr}"
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Any]:
    """A run whose database and blobs lie on small disks of their own."""
    with (
        small_disk(tmp_path / "rows", 8) as rows,
        small_disk(tmp_path / "files", 8) as files,
        worker_rig.open_rig(tmp_path) as opened,
    ):
        opened.init(max_steps=200, max_rounds=ROUNDS, duration_s=3.0, grace_s=20.0)
        shutil.move(opened.run / "coordinator.db", rows / "coordinator.db")
        with (opened.run / "run.toml").open("a") as settings:
            settings.write(f'database = "sqlite:///{rows}/coordinator.db"\nblobs = "{files}"\n')
        if (opened.run / "blobs").exists():
            shutil.copytree(opened.run / "blobs", files, dirs_exist_ok=True)
        yield opened


def status(rig: Any) -> dict[str, Any]:
    answer = worker_rig.barnraise("coordinator", "status", "--run-dir", str(rig.run), "--json")
    return dict(json.loads(answer.stdout))


def told(log: str, event: str) -> list[str]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line["doing"] for line in lines if line["event"] == event]


def check_it_waits(rig: Any, coordinator: Any, doing: str) -> None:
    """The organiser is told, and whoever only reads is answered."""
    coordinator.wait_for(f'"doing": "{doing}".*"event": "trouble"')
    now = status(rig)
    assert now["serving"]
    (sentence,) = [t["sentence"] for t in now["troubles"] if t["doing"] == doing]
    assert "space" in sentence
    rig.join(f"to-{doing}")  # a Hello, and public files of the run


def test_full_disks_are_waited_out(rig: Any) -> None:
    coordinator = rig.serve()
    coordinator.wait_for("Serving")
    rig.join("ada")
    ada = rig.work("ada", "--until-finished")
    coordinator.wait_for("round_settled")
    with ExitStack() as files_full:
        with full(rig.folder / "rows"):
            check_it_waits(rig, coordinator, "database")
            # At once, for a round that goes on is soon over: the next disk.
            files_full.enter_context(full(rig.folder / "files"))
        check_it_waits(rig, coordinator, "settle")
        coordinator.wait_for('"doing": "database".*"event": "trouble_over"')
    coordinator.wait_for('"doing": "settle".*"event": "trouble_over"')
    assert status(rig)["troubles"] == []
    assert ada.wait(200) == 0
    log = coordinator.text()
    assert sorted(told(log, "trouble")) == ["database", "settle"], "each is told once"
    assert sorted(told(log, "trouble_over")) == ["database", "settle"]
    assert "call_failed" not in log and "Traceback" not in log
    coordinator.popen.send_signal(signal.SIGTERM)
    assert coordinator.wait(60) == 0
    assert [p for p in (rig.folder / "files").rglob("*") if ".part" in p.name] == []
    url = rig.folder / "rows" / "coordinator.db"
    with closing(sqlite3.connect(url)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        ended = database.execute("SELECT phase FROM rounds WHERE ended_at_s IS NOT NULL").fetchall()
        assert ended == [("SETTLED",)] * ROUNDS, "no round was given up"
        lost = "SELECT count(*) FROM assignments WHERE status != 'merged'"
        assert database.execute(lost).fetchone() == (0,)
    root = rig.link.rsplit("root=", 1)[1]
    worker_rig.barnraise("ledger", "verify", "--db", f"sqlite:///{url}", "--root", root)
