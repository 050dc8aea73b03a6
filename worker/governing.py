"""The governor at work: looks at the machine once a second, and tells who has to know.

Invariants:

* A look at the machine happens in a thread; one that hangs delays neither the event loop nor the
  owner's words, nor hours and pauses: it is done without until it comes back.
* One line of log for each change of what is so; a new figure in a reason is no such change.
* Nothing here, nor what it imports, loads torch, numpy or hivemind: the light process that waits
  for the machine to be free runs it too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import structlog

from worker.clock import steady_s
from worker.governor import Governor
from worker.limits import Limits
from worker.rules import missing_sensors
from worker.schedule import local_time
from worker.verdict import Readings, Verdict

log = structlog.get_logger()

FAST_S = 1.0
SLOW_S = 5.0  # where nothing is limited that may have to be quick
_HANGS_AFTER_S = 3.0
_SOON_S = 0.05
_LOOKS_TO_KNOW = 2  # a load is the difference of two
_STARTING = Verdict(works=True)  # until the first look; see wait_until_works


class Machine(Protocol):
    """What is looked at; see :class:`worker.sensors.machine.Sensors`."""

    def read(self) -> Readings: ...

    def close(self) -> None: ...


class Governing:
    """Asks a governor again and again; :meth:`run` is its whole life.

    Set ``governor.confirmed`` and call :meth:`change`, :meth:`pause`, :meth:`resume` from the event
    loop: they take effect at once.
    """

    def __init__(
        self,
        governor: Governor,
        machine: Machine,
        traffic_today_bytes: Callable[[], int] = lambda: 0,
        on_change: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        """Nothing is looked at before :meth:`run`.

        Args:
            governor: decides.
            machine: what this machine's sensors read; asked in a thread, never twice at a time.
            traffic_today_bytes: both ways together, since midnight; asked in the event loop.
            on_change: told each verdict that differs from the one before, in the event loop; must
                not block. A new figure in the reason counts as a difference.
        """
        self.governor = governor
        self.verdict = _STARTING
        self.readings: Readings | None = None
        self.without_effect: list[str] = []  # limits whose measure this machine does not tell
        self._machine = machine
        self._traffic_today_bytes = traffic_today_bytes
        self._on_change = on_change
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._decided = False
        self._look: asyncio.Task[Readings] | None = None
        self._looks = 0
        self._hangs = False
        self._told_missing_of: Limits | None = None

    # ---- the owner's words -------------------------------------------------------------

    def change(self, limits: Limits) -> None:
        """Other limits, at once."""
        self.governor.change(limits)
        self._wake.set()

    def pause(self, until_s: float | None = None) -> None:
        """Until this Unix time, or until :meth:`resume`."""
        self.governor.pause(until_s)
        self._wake.set()

    def resume(self) -> None:
        self.governor.resume()
        self._wake.set()

    def confirm(self) -> None:
        """Somebody agreed."""
        self.governor.confirmed = True
        self._wake.set()

    # ---- what is so --------------------------------------------------------------------

    async def wait_until_works(self) -> None:
        """Return once the verdict, of a real look, says that work is allowed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._decided and self.verdict.works)

    async def wait_until_stops(self) -> Verdict:
        """Return the verdict once it says that work is not allowed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._decided and not self.verdict.works)
            return self.verdict

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                self._wake.clear()
                await self._decide(await self._seen())
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pace_s()):
                        await self._wake.wait()
        finally:
            if self._look is None:
                self._machine.close()
            else:
                self._look.cancel()  # its thread ends when it has looked

    async def _seen(self) -> Readings:
        """What the machine tells now; of sensors that hang: nothing."""
        if self._look is None:
            self._look = asyncio.create_task(asyncio.to_thread(self._machine.read))
        await asyncio.wait({self._look}, timeout=0 if self._hangs else _HANGS_AFTER_S)
        hangs, seen = not self._look.done(), Readings(0.0, 0.0)
        if not hangs:
            seen, self._look = self._look.result(), None
            self._looks += 1
        if hangs != self._hangs:
            self._hangs = hangs
            log.warning("sensors do not answer" if hangs else "sensors answer again")
        traffic_bytes = self._traffic_today_bytes()
        return replace(
            seen, at_s=time.time(), steady_s=steady_s(), traffic_today_bytes=traffic_bytes
        )

    async def _decide(self, readings: Readings) -> None:
        self.readings = readings
        if hasattr(time, "tzset"):
            time.tzset()  # a laptop travels
        before, told = self.verdict, self.governor.because
        self.verdict = self.governor.decide(readings)
        self._tell_missing(readings)
        if self.verdict.because != told:
            self._log()
        if self._decided and self.verdict == before:
            return
        self._decided = True
        self._on_change(self.verdict)
        async with self._changed:
            self._changed.notify_all()

    def _log(self) -> None:
        verdict = self.verdict
        if verdict.works:
            log.info("may work again")
            return
        until_s = verdict.until_s
        until = {} if until_s is None else {"until": f"{local_time(until_s):%Y-%m-%d %H:%M}"}
        log.info("may not work", because=str(verdict.because), reason=verdict.reason, **until)

    def _tell_missing(self, readings: Readings) -> None:
        """A limit that this machine cannot keep to is told once, not silently dropped."""
        limits = self.governor.limits
        if self._looks < _LOOKS_TO_KNOW or self._hangs or limits == self._told_missing_of:
            return
        self._told_missing_of = limits
        self.without_effect = missing_sensors(limits, readings)
        for problem in self.without_effect:
            log.warning("a limit has no effect", problem=problem)

    def _pace_s(self) -> float:
        """Seconds to the next look."""
        limits, until_s = self.governor.limits, self.verdict.until_s
        quick = (limits.busy_cpu_percent, limits.idle_minutes, limits.gpu_temperature_c)
        pace_s = FAST_S if any(quick) or limits.free_memory_mib else SLOW_S
        left_s = pace_s if until_s is None else until_s - time.time()
        return max(left_s, _SOON_S) if 0 < left_s < pace_s else pace_s
