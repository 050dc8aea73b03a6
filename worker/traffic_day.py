"""What passed over the network today, kept over restarts.

Invariants:

* A day ends at local midnight, as the clock stood when it began, and not before that time has
  really passed: setting the clock, a restart or ``kill -9`` begins no new day. (Over a reboot only
  the clock can tell.)
* The file is replaced as a whole; a damaged one counts as none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from worker.clock import steady_s
from worker.small_file import replace_text

LONGEST_DAY_S = 26 * 3600  # an hour more when the clocks go back
_MAX_FILE_BYTES = 4096
_UNITS_KEPT = 3


@dataclass(frozen=True)
class Moment:
    """What the clocks say."""

    wall_s: float  # Unix time
    steady_s: float  # on a clock that nobody sets; of this boot only
    boot: str = ""  # which that is; empty: this system does not tell


def now() -> Moment:
    return Moment(time.time(), steady_s(), _BOOT)


def next_midnight_s(wall_s: float) -> float:
    """Unix time of the next local midnight."""
    here = time.localtime(wall_s)
    return time.mktime((here.tm_year, here.tm_mon, here.tm_mday + 1, 0, 0, 0, 0, 0, -1))


@dataclass
class TrafficDay:
    """The counters of one day; see :meth:`load`."""

    ends_wall_s: float
    ends_steady_s: float
    boot: str
    up_bytes: int = 0
    down_bytes: int = 0
    units_bytes: list[int] = field(default_factory=list)  # what the last units took

    @classmethod
    def beginning(cls, at: Moment) -> TrafficDay:
        ends_s = next_midnight_s(at.wall_s)
        return cls(ends_s, at.steady_s + (ends_s - at.wall_s), at.boot)

    @classmethod
    def load(cls, path: Path, at: Moment) -> TrafficDay:
        """The day under way, as it was kept."""
        day = _read(path) or cls.beginning(at)
        same_boot = bool(at.boot) and day.boot == at.boot
        left_s = day.ends_steady_s - at.steady_s if same_boot else day.ends_wall_s - at.wall_s
        if left_s > LONGEST_DAY_S:  # the clock was ahead, and is not any more
            left_s = next_midnight_s(at.wall_s) - at.wall_s
        day.ends_wall_s, day.ends_steady_s = at.wall_s + left_s, at.steady_s + left_s
        day.boot = at.boot
        day.roll(at)
        return day

    @property
    def total_bytes(self) -> int:
        return self.up_bytes + self.down_bytes

    def roll(self, at: Moment) -> bool:
        """Begin the next day if it is time; whether it was."""
        if at.steady_s < self.ends_steady_s:
            return False
        following = TrafficDay.beginning(at)
        self.ends_wall_s, self.ends_steady_s = following.ends_wall_s, following.ends_steady_s
        self.up_bytes = self.down_bytes = 0
        return True

    def note_unit(self, size_bytes: int) -> None:
        """What one unit of work took, from its weights to its reduce."""
        self.units_bytes = [*self.units_bytes, size_bytes][-_UNITS_KEPT:]

    def save(self, path: Path) -> None:
        """Replace the file.

        Raises:
            OSError: the disk is full or refuses.
        """
        replace_text(path, json.dumps(asdict(self)) + "\n")


def _read(path: Path) -> TrafficDay | None:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
        return TrafficDay(
            ends_wall_s=float(raw["ends_wall_s"]),
            ends_steady_s=float(raw["ends_steady_s"]),
            boot=str(raw["boot"]),
            up_bytes=max(0, int(raw["up_bytes"])),
            down_bytes=max(0, int(raw["down_bytes"])),
            units_bytes=[max(0, int(size)) for size in raw["units_bytes"]][-_UNITS_KEPT:],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


_BOOT: str = _boot()

Clock = Callable[[], Moment]
