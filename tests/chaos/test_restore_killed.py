"""``backup`` and ``restore`` are killed at named points: no half backup, no half run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos_restore import worker_rig

from coordinator.backup import make_backup
from coordinator.backup_format import list_backups, open_backup
from coordinator.restore import restore

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rig: Any = worker_rig().Rig(tmp_path_factory.mktemp("killed"))
    rig.init()
    run: Path = rig.run
    return run


def killed_at(point: str, *arguments: str, nth: int = 1) -> None:
    """Run a real command that is killed at a point."""
    fault = json.dumps({"point": point, "do": "kill", "nth": nth})
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).with_name("chaos_process.py"))),
            *("--points", "chaos_points_backup", "--fault", fault, "--", "coordinator"),
            *arguments,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "fault_fired" in done.stderr, done.stderr
    assert done.returncode == -signal.SIGKILL


def backing_up(run: Path, out: Path) -> tuple[str, ...]:
    return ("backup", "--run-dir", str(run), "--out", str(out))


@pytest.mark.parametrize(
    ("point", "nth", "whole"),
    [
        ("backup.picture", 1, 0),
        ("backup.folder.file", 3, 0),
        ("backup.folder.list", 1, 0),
        ("backup.folder.forget", 1, 1),
    ],
)
def test_a_folder_shows_whole_backups_only(
    run: Path, tmp_path: Path, point: str, nth: int, whole: int
) -> None:
    out = tmp_path / "backups"
    killed_at(point, *backing_up(run, out), nth=nth)
    assert len(list_backups(out)) == whole
    made = make_backup(run, out)
    assert len(list_backups(out)) == whole + 1
    with open_backup(out) as found:
        found.verify()
    # What the killed one left is gone: only files that a backup names are there.
    named = {entry.sha256 for entry in made.list.files}
    if not whole:
        assert {path.name for path in (out / "blobs").iterdir()} == named
    assert sorted(path.name for path in out.iterdir()) == ["backups", "blobs"]


@pytest.mark.parametrize(("point", "nth"), [("backup.archive.file", 2), ("backup.archive.list", 1)])
def test_an_archive_is_whole_or_not_there(run: Path, tmp_path: Path, point: str, nth: int) -> None:
    out = tmp_path / "all.tar"
    killed_at(point, *backing_up(run, out), nth=nth)
    assert not out.exists()
    make_backup(run, out)
    with open_backup(out) as found:
        found.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["all.tar"]


@pytest.mark.parametrize("point", ["restore.placed", "restore.went_on"])
def test_a_killed_restore_leaves_no_run_folder(run: Path, tmp_path: Path, point: str) -> None:
    make_backup(run, tmp_path / "backups")
    target = tmp_path / "again"
    arguments = ("--run-dir", str(target), "--data", str(run / "data"))
    killed_at(point, "restore", str(tmp_path / "backups"), *arguments)
    assert not target.exists()
    made = restore(tmp_path / "backups", target, data=run / "data")
    assert made.folder.join_link.read_text() == (run / "join-link.txt").read_text()
