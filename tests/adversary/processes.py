"""Processes of a scenario: real commands, each in a session of its own, on a leash to this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from protocol.leash import leashed

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

_FAULTY = Path(__file__).with_name("faulty_worker.py")
_GRACE_S = 20.0


class Timeout(AssertionError):
    """A fact did not come true in time; the message ends with what the logs say."""


class Process:
    """One command, its output in a file."""

    def __init__(self, log: Path, command: list[str]) -> None:
        self.log, self.name = log, log.stem
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                leashed(command),
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """SIGTERM, then SIGKILL to what is left of its session."""
        if self.running:
            self.popen.terminate()
            try:
                self.popen.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def call(*arguments: str, timeout_s: float = 300.0) -> str:
    """Run a ``barnraise`` command to its end; its output."""
    done = subprocess.run(
        command(*arguments),
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def command(*arguments: str, faulty: tuple[str, ...] = ()) -> list[str]:
    """A ``barnraise`` command; with faulty options, of a process that cheats."""
    if faulty:
        return [sys.executable, str(_FAULTY), *faulty, "--", *arguments]
    return [sys.executable, "-m", "barnraise", *arguments]
