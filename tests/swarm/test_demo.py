"""The demonstration, whole: what a newcomer runs first must hold on every commit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.swarm
@pytest.mark.timeout(600)
def test_the_demonstration_holds(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "barnraise", "demo", "--dir", "demo", "--codec", "int4", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    outcome = json.loads(result.stdout)
    assert outcome["held"] is True
    assert len(outcome["checks"]) == 10
    assert all(check["held"] for check in outcome["checks"])
    assert len(outcome["text"]) > 20


def test_the_demonstration_takes_over_no_strange_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not delete")
    result = subprocess.run(
        [sys.executable, "-m", "barnraise", "demo", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "holds something else" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "do not delete"
