"""The benchmarks are programs too: the quick one of the record runs, and says what it measured."""

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
    assert "sqlite" in result.stdout and "postgresql" in result.stdout
