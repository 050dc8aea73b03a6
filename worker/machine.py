"""What kind of machine this is, and the limits that suit one such: proposed, never imposed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from worker.limits import Limits

_NICE = 10
_BUSY_CPU_PERCENT = 25
_LEAST_FREE_MIB, _MOST_FREE_MIB = 1024, 10 * 1024
_MIB = 1 << 20
_DISPLAY_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY")


class Kind(StrEnum):
    LAPTOP = "laptop"
    DESKTOP = "desktop"
    SERVER = "server"


@dataclass(frozen=True)
class Machine:
    """What a proposal depends on."""

    kind: Kind
    memory_mib: int
    free_disk_mib: int

    def proposal(self) -> Limits:
        """Limits that let the people at the machine forget the worker; a server needs but one."""
        if self.kind is Kind.SERVER:
            return Limits(nice=_NICE)
        spare_mib = min(max(self.free_disk_mib // 10, _LEAST_FREE_MIB), _MOST_FREE_MIB)
        return Limits(
            nice=_NICE,
            memory_mib=self.memory_mib // 2,
            free_disk_mib=spare_mib,
            busy_cpu_percent=_BUSY_CPU_PERCENT,
        )


def look_at_machine(
    folder: Path, environment: Mapping[str, str], root: Path = Path("/")
) -> Machine:
    """See what this machine is.

    Args:
        folder: where the worker will keep its data, whether it exists yet or not.
        environment: of this process: a display shows there.
        root: under which ``sys`` and ``tmp`` lie.
    """
    import psutil

    while not folder.exists():
        folder = folder.parent
    return Machine(
        _kind(environment, root),
        int(psutil.virtual_memory().total) // _MIB,
        shutil.disk_usage(folder).free // _MIB,
    )


def _kind(environment: Mapping[str, str], root: Path) -> Kind:
    if _has_battery(root):
        return Kind.LAPTOP
    return Kind.DESKTOP if _has_display(environment, root) else Kind.SERVER


def _has_battery(root: Path) -> bool:
    if sys.platform == "darwin":
        import psutil

        return psutil.sensors_battery() is not None
    supplies = (root / "sys/class/power_supply").glob("*")
    # A wireless mouse has a battery too: the kernel calls its scope "Device".
    return any(_word(s / "type") == "Battery" and _word(s / "scope") != "Device" for s in supplies)


def _has_display(environment: Mapping[str, str], root: Path) -> bool:
    if sys.platform == "darwin" or any(environment.get(name) for name in _DISPLAY_VARIABLES):
        return True
    return any((root / "tmp/.X11-unix").glob("X*"))  # asked over ssh: somebody else's display


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
