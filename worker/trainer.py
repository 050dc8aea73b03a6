"""The daemon's side of the trainer process.

Invariants:

* One process, one job at a time. It stays between jobs (loading torch takes seconds, so start it
  before anything else) and is always reaped: by :meth:`Trainer.close`, or by itself when the
  daemon's pipe closes.
* A stop is honoured at a step boundary: the first h steps are a valid unit. A kill leaves nothing
  but a file in the scratch folder, and the unit's snapshot, from which it can be gone on with.
* Frozen it takes no processor and loses nothing; its time goes on. Also frozen it ends with the
  daemon, however that ends (on Linux).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from protocol.channel import error_family
from protocol.errors import TransientError
from protocol.leash import is_leashed, leashed
from worker import process_share
from worker.choice import Choice
from worker.clock import steady_s
from worker.devices import PCI_ORDER, Device
from worker.trainer_job import Job, Measured, Progress, Trained, Warm, WarmUp
from worker.trainer_memory import MEMORY_VARIABLE

__all__ = [
    "Device",
    "Job",
    "Measured",
    "Progress",
    "Trained",
    "Trainer",
    "TrainerDied",
    "Warm",
    "WarmUp",
]

log = structlog.get_logger()

_KILL_AFTER_S = 5.0
_LOOK_S = 0.005
_MAX_LINE_BYTES = 16 << 20  # a large model has tens of thousands of names
_ERRORS = error_family()


class TrainerDied(TransientError):
    """The process ended in the middle of a job."""


@dataclass
class Trainer:
    """Owns the trainer process. Use as an async context manager, or call :meth:`close`."""

    threads: int
    nice: int = 0  # at least; what the daemon itself has is taken over
    memory_mib: int = 0  # most that it may take; 0: no limit
    share: process_share.Share = process_share.WHOLE
    progress: Progress = field(default_factory=Progress)
    device_name: str = ""  # known once it is warm
    _process: asyncio.subprocess.Process | None = None
    _ready: bool = False  # it may be stopped
    _most_threads: int = 0  # that a unit of this process may have
    _warm: bool = False
    _outdated: bool = False  # what it was started with cannot be changed any more
    _ends_s: float | None = None  # when the unit under way must be ready, steady
    _frozen_since_s: float | None = None  # steady
    _ending: bool = False
    _asked: bool = False  # somebody waits for its answer

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Trainer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the process and do not wait: it loads torch beside what the daemon does."""
        if self._outdated:
            await self.close()
        if self._process is None or self._process.returncode is not None:
            await self._reap()
            # -P: never import from the folder that the volunteer happens to be in.
            command = [sys.executable, "-P", "-m", "worker.trainer_process", str(self.nice)]
            self._ready, self._most_threads = False, self.threads
            process = self._process = await asyncio.create_subprocess_exec(
                *leashed(command, end=signal.SIGKILL),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_LINE_BYTES,
                env=_environment(self.threads, self.memory_mib),
                # Its own session: the terminal's Ctrl-C is for the daemon to interpret.
                start_new_session=True,
            )
            while not is_leashed(process.pid):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(_LOOK_S)
            if process is not self._process:
                return  # ended meanwhile
            self._ready = True
            if self.frozen:
                process_share.freeze(process.pid)
            log.info("trainer started", pid=process.pid, threads=self.threads)

    async def warm_up(self, what: WarmUp) -> Warm | None:
        """Wait until the process has loaded what a unit needs.

        Returns:
            None when it had done so before.

        Raises:
            TrainerDied: out of memory?
            ProtocolError: a batch does not fit into memory, or the model does not train at all.
        """
        await self.start()
        if self._warm:
            return None
        event = await self._ask({"command": "warm_up", **asdict(what)}, None)
        self._warm = True
        self.device_name = str(event["device_name"])
        spec = tuple((str(name), tuple(shape)) for name, shape in event["spec"])
        return Warm(float(event["tokens_per_s"]), spec)

    async def measure(self, what: WarmUp) -> Measured:
        """Time some steps in one way of computing.

        Raises:
            OutOfMemory: it does not fit.
            TrainerDied: the kernel ended it?
            ProtocolError: the model does not train at all.
        """
        await self.start()
        event = await self._ask({"command": "measure", **asdict(what)}, None)
        del event["event"]
        return Measured(**event)

    async def train(
        self, job: Job, on_progress: Callable[[Progress], None] | None = None
    ) -> Trained:
        """Run a job to its end or to a :meth:`stop`.

        Raises:
            TrainerDied: out of memory?
            TransientError: it was stopped before one step.
            ProtocolError: what the job read is damaged.
        """
        self.progress = Progress(steps=job.unit["steps"])
        self._ends_s = steady_s() + job.stop_after_s
        try:
            await self.start()
            if self._ending:
                raise TransientError("training was stopped before its first step")
            return _trained(await self._ask({"command": "train", **asdict(job)}, on_progress))
        finally:
            self._ends_s = None

    async def _ask(
        self, request: dict[str, Any], on_progress: Callable[[Progress], None] | None
    ) -> dict[str, Any]:
        """One request to the process; its last event, which says that it is done."""
        if self._process is None:
            raise TrainerDied("the trainer process was ended before it began")
        self._asked = True
        try:
            await self._send(request)
            return await self._follow(self._process, on_progress)
        except asyncio.CancelledError:
            # Abandoned in the middle: what it would still say belongs to no job.
            await self.close()
            raise
        finally:
            self._asked = False

    async def _follow(
        self, process: asyncio.subprocess.Process, on_progress: Callable[[Progress], None] | None
    ) -> dict[str, Any]:
        while True:
            event = await self._event(process)
            if event["event"] == "done":
                return event
            if event["event"] == "failed":
                raise _ERRORS.get(event["reason"], TransientError)(event["message"])
            if event["event"] == "resumed":
                self.progress.steps_done = event["steps"]
                log.info("training resumed", steps=event["steps"])
            elif event["event"] == "lighter":
                self.progress.lighter = Choice.load(event)
                log.warning("out of memory", goes_on_with=self.progress.lighter.words)
            elif event["event"] == "blocked":
                self.progress.problem = event["reason"]
            else:
                self.progress.steps_done = event["steps"]
                self.progress.loss = event["loss"]
                self.progress.tokens_per_s = event["tokens_per_s"]
            if on_progress is not None:
                on_progress(self.progress)

    async def _event(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            code = await self._reap()
            raise TrainerDied(
                f"the trainer process died (exit code {code}); "
                "if it was out of memory, set micro_batch_sequences in the configuration"
            )
        event: dict[str, Any] = json.loads(line)
        return event

    async def stop(self) -> None:
        """Ask for an end at the next step boundary; :meth:`train` then returns what was done."""
        if self._process is not None:
            await self._send({"command": "stop"})

    # ---- making room for others --------------------------------------------------------

    @property
    def unit_left_s(self) -> float | None:
        """Seconds until the unit under way must be ready; None: none is."""
        return None if self._ends_s is None else self._ends_s - steady_s()

    @property
    def frozen(self) -> bool:
        return self._frozen_since_s is not None

    @property
    def ending(self) -> bool:
        """It does no further step until :meth:`go_on`."""
        return self._ending

    def freeze(self) -> None:
        """Stop where it stands, at once, for a while: memory and time of the unit go on."""
        if self._frozen_since_s is None:
            self._frozen_since_s = steady_s()
            if self.pid is not None and self._ready:
                process_share.freeze(self.pid)

    def thaw(self) -> None:
        """Go on where it stood."""
        if self._frozen_since_s is None:
            return
        frozen_s, self._frozen_since_s = steady_s() - self._frozen_since_s, None
        if self.pid is not None:
            self._write({"command": "frozen", "seconds": frozen_s})
            process_share.thaw(self.pid)

    async def end_soon(self) -> None:
        """Let a unit end at its next step boundary and begin no other; without one, end now.

        A warm-up is its caller's to cancel.
        """
        self._ending = True
        self.thaw()
        if not self._asked:
            await self.close()
        elif self._ends_s is not None:
            with suppress(TrainerDied):  # who waits for the unit hears of that
                await self.stop()

    def go_on(self) -> None:
        """Units may be trained (again)."""
        self._ending = False
        self.thaw()

    def change(self, *, threads: int, nice: int, memory_mib: int) -> None:
        """Take other limits: at once where it can, and in full from the next unit on.

        The number of threads decides the bits of a unit, so the one under way keeps it and runs
        on fewer processors.
        """
        if self.pid is not None:
            self._most_threads = max(self._most_threads, threads)
            processors = threads if threads < self._most_threads else None
            process_share.restrict(self.pid, processors, self.share)
            niced = process_share.renice(self.pid, nice)
            # What it may take is settled when it starts.
            self._outdated |= not niced or memory_mib != self.memory_mib
        self.threads, self.nice, self.memory_mib = threads, nice, memory_mib

    async def close(self) -> None:
        """Kill and reap the process. Guarantees that none is left."""
        if self._process is not None:
            try:
                self._process.kill()
            except ProcessLookupError:
                log.debug("trainer had ended already")
            await self._reap()

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._write(message)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise TrainerDied("the trainer process died") from error

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _reap(self) -> int | None:
        process, self._process, self._warm = self._process, None, False
        self._outdated = False
        if process is None:
            return None
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_KILL_AFTER_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            code = await process.wait()
        # The transport closes its pipes only when their end has been read.
        if process.stdout is not None:
            await process.stdout.read()
        return code


def _trained(event: dict[str, Any]) -> Trained:
    return Trained(
        steps=event["steps"],
        tokens=event["tokens"],
        mean_loss=event["mean_loss"],
        update_norm=event["update_norm"],
        tokens_per_s=event["tokens_per_s"],
        root=bytes.fromhex(event["root"]),
        chunks=event["chunks"],
        elements=event["elements"],
    )


def _environment(threads: int, memory_mib: int) -> dict[str, str]:
    # PASSIVE: spinning OpenMP threads make a busy machine several times slower (measured).
    return {
        **PCI_ORDER,
        **os.environ,
        MEMORY_VARIABLE: str(memory_mib),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
