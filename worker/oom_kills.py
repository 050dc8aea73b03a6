"""Whether the kernel has ended processes for want of memory: a trainer that was killed may be one.

Invariant: a death counts as one of these only if the kernel has counted one more meanwhile; being
killed by a person says nothing about memory.
"""

from __future__ import annotations

from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_MAX_BYTES = 64 << 10


def oom_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """How many there were since the machine started, or this container's; 0 where nobody counts.

    A number to compare with a later one.
    """
    kills = _count(proc / "vmstat", "oom_kill")
    for group in (Path(), _own_group(proc)):
        if group is not None:
            kills += _count(cgroups / group / "memory.events", "oom_kill")
    return kills


def _own_group(proc: Path) -> Path | None:
    """Of this process, below the root of control groups (version 2)."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, _, path = line.partition("::")
        if number == "0" and path.strip("/"):
            return Path(path.strip("/"))
    return None


def _count(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return ""
