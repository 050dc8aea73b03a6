"""What training draws here: the GPU's cap, and the joules, as a task beside the work.

Invariants:

* What was changed at the GPU is given back when the task ends, whatever ends it.
* A machine whose counters tell nothing has no ``energy`` in its status, rather than zeros.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from worker.clock import steady_s
from worker.config import Home
from worker.devices import Device, gpu_index
from worker.energy import POWERCAP, EnergyMeter, find_counter
from worker.energy_book import EnergyBook
from worker.gpu_caps import GpuPowerCap
from worker.journal import Journal
from worker.limits import Limits
from worker.sensors.gpu import Nvml, load_nvml, open_gpu
from worker.status import Board, Phase

log = structlog.get_logger()

_LOOK_S = 1.0
_SAVE_S = 60.0


@dataclass
class Power:
    """Caps and counts for one worker. Run :meth:`run` as a task."""

    home: Home
    journal: Journal
    board: Board
    device: Device
    limits: Callable[[], Limits]
    frozen: Callable[[], bool] = lambda: False
    members: int = 1
    nvml: Nvml | None = field(default_factory=load_nvml)
    powercap: Path = POWERCAP
    clock: Callable[[], float] = steady_s
    book: EnergyBook = field(default_factory=EnergyBook)
    _meter: EnergyMeter | None = None
    _unit: str = ""
    _unsaved_s: float = 0.0
    _capped_w: int = -1  # before the first look
    _trouble: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: bool = False

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.to_thread(self.begin)
        try:
            while True:
                await asyncio.to_thread(self.look)
                await asyncio.sleep(_LOOK_S)
        finally:
            self.end()  # milliseconds, and not to be cancelled

    def begin(self) -> None:
        """Find out what there is to cap and to count; blocking."""
        self._gpu = open_gpu(self.device, self.nvml)
        self._cap = GpuPowerCap(self.home.path, self.nvml)
        self.book = EnergyBook.load(self.home.energy)
        counter = find_counter(
            self._gpu,
            self.powercap,
            on_gpu=gpu_index(self.device) is not None or self.device == "mps",
            members=self.members,
        )
        if counter is None:
            log.debug("no counter tells what training draws here")
        else:
            self._meter = EnergyMeter(counter, self.clock)
            self._verify()

    def look(self) -> None:
        """Once a second; blocking, for milliseconds."""
        with self._lock:
            if not self._ended:
                self._hold_cap()
                self._count()

    def _hold_cap(self) -> None:
        wanted_w = self.limits().gpu_power_w
        if wanted_w != self._capped_w:
            self._capped_w = wanted_w
            self._tell(self._cap.apply(self._gpu, wanted_w))
        if self._gpu is not None:
            now = self._gpu.read()
            self.board.parts["gpu"] = {"temperature_c": now.temperature_c, "power_w": now.power_w}

    def _count(self) -> None:
        if self._meter is None:
            return
        trains = self.board.phase == Phase.TRAINING and not self.frozen()
        joules, before = self._meter.tick(trains), self._unit
        self._unit = self.board.assignment_id if trains else ""
        if joules and (before or self._unit):
            self.book.add(before or self._unit, joules)
        ended = before not in ("", self._unit)
        self._unsaved_s += _LOOK_S
        if ended or self._unsaved_s >= _SAVE_S:
            self._verify()
        self._show()

    def end(self) -> None:
        """Give back what was changed, for good; blocking, for milliseconds."""
        with self._lock:  # a look may be under way in a thread that nobody waits for any more
            self._ended = True
            self._cap.restore()
            if self._meter is not None:
                self._save()

    def _tell(self, problem: str) -> None:
        if problem and problem != self._trouble:
            log.warning("power limit", problem=problem)
        self._trouble = problem

    def _verify(self) -> None:
        if self.book.open_j:
            self.book.verify(self.journal.receipts())
        self._save()

    def _save(self) -> None:
        self._unsaved_s = 0.0
        with suppress(OSError):  # a full disk costs a minute's count
            self.book.save(self.home.energy)

    def _show(self) -> None:
        assert self._meter is not None
        per_million = self.book.watt_hours_per_million_verified_tokens
        self.board.parts["energy"] = {
            "watt_hours": round(self.book.watt_hours, 3),
            "watt_hours_per_million_verified_tokens": (
                None if per_million is None else round(per_million, 3)
            ),
            "source": self._meter.counter.source,
        }
