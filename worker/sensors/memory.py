"""How much memory is left to be had without pushing anything out.

In a container that has a limit of its own, the lesser of what the machine and the limit leave.
"""

from __future__ import annotations

from pathlib import Path


def free_memory_mib(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """MiB; None where nothing tells it.

    Args:
        proc: the kernel's, where there is one.
        cgroup: that of this container (version 2); a machine's own root has no limit.
    """
    free_bytes = _available_bytes(proc)
    left_bytes = _left_in_cgroup_bytes(cgroup)
    known = [value for value in (free_bytes, left_bytes) if value is not None]
    return min(known) >> 20 if known else None


def _available_bytes(proc: Path) -> int | None:
    meminfo = proc / "meminfo"
    if not meminfo.exists():
        import psutil

        return int(psutil.virtual_memory().available)
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return None


def _left_in_cgroup_bytes(cgroup: Path) -> int | None:
    try:
        most = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        statistics = (cgroup / "memory.stat").read_text()
    except FileNotFoundError:
        return None
    if most == "max":
        return None
    numbers = dict(line.split() for line in statistics.splitlines())
    return max(0, int(most) - used + int(numbers.get("inactive_file", 0)))
