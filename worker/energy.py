"""What training costs in energy: joules from the GPU's or the processor's own counter.

Invariants:

* Only what passes while the trainer trains is counted. The GPU's counter (NVML) is of the whole
  card, the processor's (RAPL) of the whole package with everything else that runs there and what
  it draws when idle: a machine that is used otherwise tells too much, never too little.
* A counter that began anew, an interval that the machine slept through, a rise that no machine
  can have: that interval counts nothing.
* Energy belongs to a unit of work, so that energy per verified token is that of verified units.
* No counter, or one that only root may read (RAPL, since Linux 5.10): nothing is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.clock import steady_s
from worker.sensors.gpu import Gpu

POWERCAP = Path("/sys/class/powercap")

_PACKAGE_FOLDER = re.compile(r"intel-rapl:\d+")  # AMD's too; deeper ones are parts of it
_MOST_INTERVAL_S = 30.0
_MOST_W = 2_000.0  # of one card or one package


class EnergyCounter(Protocol):
    """Somewhere joules are counted."""

    @property
    def source(self) -> str: ...

    def read(self) -> dict[str, float] | None:
        """Joules by part, each since a start of its own; None: not now."""
        ...

    def rise(self, part: str, before_j: float, after_j: float) -> float:
        """Between two readings; below zero: the counter began anew."""
        ...


@dataclass(frozen=True)
class NvmlCounter:
    """The GPU's, since its driver was loaded (Volta and newer)."""

    gpu: Gpu
    source: str = "nvml"

    def read(self) -> dict[str, float] | None:
        energy_j = self.gpu.energy_j()
        return None if energy_j is None else {"gpu": energy_j}

    def rise(self, part: str, before_j: float, after_j: float) -> float:
        return after_j - before_j


class RaplCounter:
    """The processor packages', which wrap around every hour or so.

    Args:
        root: of the powercap tree.
        members: daemons that share this machine; each counts its part.
    """

    source = "rapl"

    def __init__(self, root: Path = POWERCAP, members: int = 1) -> None:
        self._ranges_j: dict[str, float] = {}
        self._members = members
        for folder in sorted(root.glob("intel-rapl:*")):
            if _PACKAGE_FOLDER.fullmatch(folder.name) and _is_package(folder):
                range_uj = _whole_number(folder / "max_energy_range_uj")
                if range_uj:
                    self._ranges_j[str(folder)] = range_uj / 1e6

    def read(self) -> dict[str, float] | None:
        found = {}
        for folder in self._ranges_j:
            energy_uj = _whole_number(Path(folder) / "energy_uj")
            if energy_uj is None:
                return None
            found[folder] = energy_uj / 1e6
        return found or None

    def rise(self, part: str, before_j: float, after_j: float) -> float:
        rise_j = after_j - before_j
        if rise_j < 0:
            rise_j += self._ranges_j[part]
        return rise_j / self._members


def find_counter(
    gpu: Gpu | None, root: Path = POWERCAP, *, on_gpu: bool = False, members: int = 1
) -> EnergyCounter | None:
    """The counter of what trains here, or None if it has none that can be read.

    Args:
        gpu: that trains, if one of NVIDIA's does.
        root: of the powercap tree.
        on_gpu: some GPU trains: the processor's counter would tell of something else.
        members: daemons that share the processor.
    """
    counter: EnergyCounter
    if gpu is not None:
        counter = NvmlCounter(gpu)
    elif on_gpu:
        return None
    else:
        counter = RaplCounter(root, members)
    return counter if counter.read() is not None else None


@dataclass
class EnergyMeter:
    """Joules of an interval, from one :meth:`tick` to the next."""

    counter: EnergyCounter
    clock: Callable[[], float] = steady_s
    _at_s: float | None = None
    _read: dict[str, float] | None = None
    _trained: bool = False

    def tick(self, trains: bool) -> float:
        """What training drew since the last tick; blocking, for milliseconds.

        An interval in which training began or ended counts half.
        """
        now_s, read = self.clock(), self.counter.read()
        share = (self._trained + trains) / 2
        joules = 0.0
        if share and self._at_s is not None:
            joules = share * self._joules(now_s - self._at_s, self._read, read)
        self._at_s, self._read, self._trained = now_s, read, trains
        return joules

    def _joules(
        self, seconds: float, before: dict[str, float] | None, after: dict[str, float] | None
    ) -> float:
        if before is None or after is None or before.keys() != after.keys():
            return 0.0
        if not 0 < seconds <= _MOST_INTERVAL_S:
            return 0.0
        rises = [self.counter.rise(part, before[part], after[part]) for part in before]
        possible = all(0 <= rise_j <= _MOST_W * seconds for rise_j in rises)
        return sum(rises) if possible else 0.0


def _is_package(folder: Path) -> bool:
    try:
        return (folder / "name").read_text(encoding="ascii").startswith("package")
    except (OSError, ValueError):
        return False


def _whole_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
