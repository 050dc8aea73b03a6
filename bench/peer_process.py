"""A peer of a benchmark: a process on a member of a link, JSON lines in and out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from protocol.leash import leashed

if TYPE_CHECKING:  # links need what only benchmarks with namespaces have
    from bench.links import Member

_END_S = 60
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of a process that shares a machine with others of its kind."""


class PeerProcess:
    """Tell several, and then hear each, so that they work at the same time.

    Args:
        member: where it runs.
        module: what ``python -m`` runs.
        arguments: of the module.
        environment: variables of its own.
    """

    def __init__(self, member: Member, module: str, *arguments: str, **environment: str) -> None:
        self.member, self._module = member, module
        self._child = subprocess.Popen(
            leashed(member.command(sys.executable, "-m", module, *arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **ONE_THREAD, **environment},
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    def tell(self, message: object) -> None:
        """One line to its stdin."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message) + "\n")
        self._child.stdin.flush()

    def hear(self, word: str = "ANSWER ") -> dict[str, Any]:
        """What follows the next such word at the start of a line of its stdout."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith(word):
                heard: dict[str, Any] = json.loads(line.removeprefix(word))
                return heard
        raise RuntimeError(f"a process of the benchmark ended: run python -m {self._module}")

    def wait(self) -> None:
        """Until it has ended, which it does by itself; its stdin is closed."""
        self._child.communicate(timeout=_END_S)
