"""Processor time and memory of the members' processes: Python's and the peer-to-peer daemons'."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from bench.process_cost import own_cpu_s, pss_bytes

DAEMON = "p2pd"


@dataclass(frozen=True)
class Usage:
    """Processor seconds, user and system, of one host process and of its members' daemons."""

    python_s: float
    daemons_s: float

    def __sub__(self, before: Usage) -> Usage:
        return Usage(self.python_s - before.python_s, self.daemons_s - before.daemons_s)

    @property
    def all_s(self) -> float:
        return self.python_s + self.daemons_s


@dataclass(frozen=True)
class Memory:
    """Resident bytes; what processes share is counted in equal parts (PSS)."""

    python_bytes: int
    daemons_bytes: int


class Host:
    """One Python process with its members' daemons."""

    def __init__(self, pid: int) -> None:
        self._python = psutil.Process(pid)
        self._daemons: list[psutil.Process] = []

    def find_daemons(self) -> int:
        """Look for the daemons that were started by now; how many there are."""
        children = self._python.children(recursive=True)
        self._daemons = [child for child in children if child.name().startswith(DAEMON)]
        return len(self._daemons)

    def usage(self) -> Usage:
        """Since the processes were started."""
        return Usage(own_cpu_s(self._python), own_cpu_s(*self._daemons))

    def memory(self) -> Memory:
        """Just now."""
        return Memory(pss_bytes(self._python), pss_bytes(*self._daemons))
