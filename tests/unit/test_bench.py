"""The benchmarks are programs too: the quick ones run, and say what they measured."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_benchmark_of_the_record_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench", "ledger", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for operation in ("append and sign", "make receipt", "verify receipt", "verify log"):
        assert operation in result.stdout


def test_the_benchmark_of_the_boards_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench", "leaderboard", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((ROOT / "bench/results/leaderboard-quick.json").read_text())
    assert [row["record"] for row in report["rows"]] == ["at rest", "while it grows"]
    for row in report["rows"]:
        assert row["errors"] == 0
        assert 0 < row["not_modified"] < row["requests"]
        assert 0 < row["p50_ms"] <= row["p99_ms"]
