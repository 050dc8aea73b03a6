"""The log against whoever makes a worker say more than a disk holds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import structlog

from worker import logs

_PROGRAM = """
import structlog
from worker.logs import log_to_stderr
log_to_stderr(as_json=True)
log = structlog.get_logger()
log.info("event refused", error="x" * 5_000_000, first="y" * 20_000)
for number in range(9000):
    log.warning("flood", number=number)
"""


def test_a_flood_of_lines_and_a_long_one_are_cut() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=100, check=True
    )
    lines = done.stderr.splitlines()
    assert logs.MOST_LINES_AT_ONCE <= len(lines) < 8000
    assert len(lines[0]) < 20_000 + 2 * logs.MOST_VALUE_CHARS
    assert "y" * 20_000 in lines[0]  # evidence is of use only when it is whole


def test_what_was_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(logs, "steady_s", lambda: now_s[0])
    pace = logs.Pace()
    kept = 0
    for _ in range(int(logs.MOST_LINES_AT_ONCE) + 7):
        try:
            pace(None, "info", {"event": "x"})
            kept += 1
        except structlog.DropEvent:
            continue
    assert kept == logs.MOST_LINES_AT_ONCE
    now_s[0] += 1.0
    assert pace(None, "info", {"event": "x"}) == {"event": "x", "lines_left_out": 7}
    assert pace(None, "info", {"event": "x"}) == {"event": "x"}
