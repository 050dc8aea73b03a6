"""A worker's whole life in its home folder, awake and asleep: run, pause, resume, finish, stop.

What ends it:

* *finish* (or Ctrl-C once): the unit under way is trained, committed and reduced; then it ends.
* *stop* (or Ctrl-C twice, or SIGTERM): at once. What was trained is in the journal and is
  committed at the next start if its round is still open.

Invariants:

* What is large loads when there is work to do and not before: who may not work at its start never
  loads torch.
* Memory that was taken comes back whole only from a process that ends. To fall asleep this one
  becomes its own program again (``execve``): same PID, same command, and the home folder's lock is
  never free in between. To wake it needs no such thing.
* Signals that come in that moment wait for the next program; who asks by the socket asks again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from protocol.identity import Identity
from worker.asleep import Asleep
from worker.config import Home, WorkerConfig
from worker.control import control_server, home_lock
from worker.governing import Governing
from worker.governor import Governor
from worker.heap import give_back_large_blocks
from worker.journal import Journal, LeaseState
from worker.members import our_root_pid
from worker.meter import NetworkBudget
from worker.news import News
from worker.pause import Pause, keep_pause, kept_pause
from worker.race import unless
from worker.sensors.cpu import ForeignCpu
from worker.sensors.gpu import gpu_temperature_c
from worker.sensors.machine import Sensors
from worker.status import Board
from worker.trainer import Trainer
from worker.verdict import Verdict

if TYPE_CHECKING:
    from worker.daemon import Daemon

log = structlog.get_logger()

_BEFORE = "BARNRAISE_BEFORE"
"""In the environment of a program that goes on from the one before it: what that one knew."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KNOWN = (
    *("units_committed", "tokens_committed", "started_at_s", "round", "settled_rounds"),
    "public_url",
)
_DOWNLOAD_KEPT_S = 24 * 3600  # the state or shard that it was of is hardly wanted later


def goes_on(environment: Mapping[str, str]) -> bool:
    """Whether this program goes on from one before it, with the same PID."""
    return _BEFORE in environment


def run(
    home: Home,
    load: Callable[[], WorkerConfig],
    *,
    until_finished: bool = False,
    metrics_port: int = 0,
) -> None:
    """Live until finished or stopped; blocking.

    Args:
        home: the folder of this worker.
        load: what the owner has settled, read anew at each call: now, and at each ``reload``.
        until_finished: end when the run is complete.
        metrics_port: on 127.0.0.1, for :mod:`worker.metrics`; 0: none.

    Raises:
        UsageError: cannot begin: what a person has to do.
    """
    give_back_large_blocks()
    config = load()
    home.prepare()
    before = json.loads(os.environ.pop(_BEFORE, "{}"))
    with home_lock(home, before.get("lock")) as lock:
        life = Life(home, load, config, until_finished, before, metrics_port)
        if asyncio.run(life.run()):
            _begin_again({"lock": lock, **life.remember()})
    log.info("worker ended")


@dataclass
class Life:
    """One worker in one home folder; :meth:`run` is all of it, until the end or the next sleep."""

    home: Home
    load: Callable[[], WorkerConfig]
    config: WorkerConfig
    until_finished: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    """What the program before this one remembered."""

    metrics_port: int = 0
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    news: News = field(default_factory=News)
    daemon: Daemon | None = None

    def __post_init__(self) -> None:
        self.identity = Identity.load(self.home.identity)
        self.board = Board(self.identity.peer_id, self.config.join_link.run_id.hex()[:16])
        self.governor = Governor(self.config.limits, confirmed=self.config.confirmed)
        sensors = Sensors(
            self.home.path,
            gpu_temperature_c=lambda: gpu_temperature_c(self.config.device),
            cpu=ForeignCpu(root_pid=our_root_pid(self.config.members)),
        )
        self.budget = NetworkBudget(self.config.limits, self.home.traffic)
        self.governing = Governing(
            self.governor,
            sensors,
            traffic_today_bytes=lambda: self.budget.claimed_bytes,
            on_change=self._on_verdict,
        )
        self._recall()

    async def run(self) -> bool:
        """Live.

        Returns:
            True: to go on asleep. False: it is over.

        Raises:
            UsageError: cannot begin: what a person has to do.
        """
        clear_folder(self.home)
        try:
            with self._signals():
                async with control_server(self.home, self.handle), self._metrics():
                    living = unless(self._turns(), self._watch_over())
                    to_sleep = await unless(living, self.stop.wait())
        finally:
            self.budget.close()
            clear_folder(self.home)
        return bool(to_sleep) and not self.finish.is_set()

    @asynccontextmanager
    async def _metrics(self) -> AsyncIterator[None]:
        if not self.metrics_port:
            yield
            return
        from worker.metrics import metrics_server  # loads what nobody else needs

        async with metrics_server(self.metrics_port, self.board.snapshot):
            yield

    async def _watch_over(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.governing.run())
            tasks.create_task(self.budget.run())

    # ---- asleep and awake --------------------------------------------------------------

    async def _turns(self) -> bool:
        await unless(self.governing.wait_until_works(), self.governing.wait_until_stops())
        rest = await asyncio.to_thread(self._has_rest)
        if not self.governing.verdict.works and not rest:
            await self._sleep()
        if self.finish.is_set():
            return False
        return await self._work(rest)

    def _has_rest(self) -> bool:
        """What was trained before, and may still be in time, is seen through first; blocking."""
        if self.governing.verdict.offline or not self.home.journal.exists():
            return False
        journal = Journal(self.home.journal)
        try:
            return any(lease.state == LeaseState.TRAINED for lease in journal.open_leases())
        finally:
            journal.close()

    async def _sleep(self) -> None:
        self.board.asleep = True
        log.info("asleep", because=self.board.because)
        asleep = Asleep(
            home=self.home,
            config=self.config,
            identity=self.identity,
            board=self.board,
            governing=self.governing,
            budget=self.budget,
            news=self.news,
        )
        waking = unless(self.governing.wait_until_works(), self.finish.wait())
        await unless(asleep.run(), waking)
        self.board.asleep = False
        if not self.finish.is_set():
            log.info("awake")

    async def _work(self, rest: bool) -> bool:
        """Awake, until the end or the next sleep."""
        self.board.waiting("starting")
        limits = self.config.limits
        async with Trainer(limits.cpu_threads, limits.nice, limits.memory_mib) as trainer:
            if self.governing.verdict.works:
                await trainer.start()  # it loads for seconds, and so does the daemon
            kind = await unless(asyncio.to_thread(_load_daemon), self.finish.wait())
            if kind is None:
                return False
            self.daemon = kind(
                home=self.home,
                config=self.config,
                identity=self.identity,
                board=self.board,
                trainer=trainer,
                governing=self.governing,
                budget=self.budget,
                finish=self.finish,
                news=self.news,
                until_finished=self.until_finished,
                rest=rest,
            )
            try:
                return await self.daemon.run()
            finally:
                self.daemon = None

    # ---- what the owner says -----------------------------------------------------------

    def handle(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One command of the control socket; see :mod:`worker.control`.

        Raises:
            UsageError: it cannot be obeyed.
        """
        if command == "finish":
            self.ask_to_finish()
        elif command == "stop":
            log.info("stopping now")
            self.stop.set()
        elif command == "pause":
            until_s = time.time() + arguments["for_s"] if arguments else None
            self._pause(Pause(until_s))
        elif command == "resume":
            self._pause(None)
        elif command == "reload":
            self.reload()
        self.board.parts["network"] = self.budget.snapshot()
        return {"status": self.board.snapshot()}

    def ask_to_finish(self) -> None:
        if not self.finish.is_set():
            log.info("finishing: no new unit after this one")
        self.finish.set()
        self.board.finishing = True
        self.news.tell()

    def reload(self) -> None:
        """Take the owner's limits of now, at once; the other settings at the next start.

        Raises:
            UsageError: they are wrong; the old ones hold.
        """
        settled = self.load()
        self.config = replace(self.config, limits=settled.limits, confirmed=settled.confirmed)
        log.info("limits read again")
        self.governor.confirmed = settled.confirmed
        self.governing.change(settled.limits)
        self.budget.change(settled.limits)
        if self.daemon is not None:
            self.daemon.change(self.config)

    def _pause(self, pause: Pause | None) -> None:
        keep_pause(self.home, pause)
        if pause is None:
            self.governing.resume()
        else:
            self.governing.pause(pause.until_s)
        self._show_verdict(self.governing.verdict)

    def _on_verdict(self, verdict: Verdict) -> None:
        self._show_verdict(verdict)
        self.news.tell()

    def _show_verdict(self, verdict: Verdict) -> None:
        governor = self.governor
        self.board.governed(verdict, paused=governor.paused, paused_until_s=governor.paused_until_s)

    def _on_interrupt(self) -> None:
        if self.finish.is_set():
            log.info("stopping now")
            self.stop.set()
        else:
            log.info("finishing this unit; Ctrl-C again stops now")
            self.ask_to_finish()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # held by the program before
        try:
            yield
        finally:
            # Until the end they wait: for the program that this one may become, or for nobody.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    # ---- from one program to the next --------------------------------------------------

    def remember(self) -> dict[str, Any]:
        """What the next program needs, as JSON."""
        known = {name: getattr(self.board, name) for name in _KNOWN}
        return {"governor": self.governor.remember(), "board": known}

    def _recall(self) -> None:
        """Go on from what the program before remembered, or else from the journal."""
        if self.before:
            self.governor.recall(self.before["governor"])
            for name, value in self.before["board"].items():
                setattr(self.board, name, value)
            return
        pause = kept_pause(self.home)
        if pause is not None:
            log.info("still paused: 'barnraise worker resume' ends it")
            self.governor.pause(pause.until_s)


def _load_daemon() -> type[Daemon]:
    from worker.daemon import Daemon  # loads torch and hivemind

    return Daemon


def _begin_again(known: dict[str, Any]) -> NoReturn:
    """Become the program that was started here, with empty memory."""
    for entry in Path("/dev/fd").iterdir():
        descriptor = int(entry.name)
        if descriptor > 2:  # what libraries left open must not pile up
            _keep_open(descriptor, descriptor == known["lock"])
    os.environ[_BEFORE] = json.dumps(known)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def _keep_open(descriptor: int, inheritable: bool) -> None:
    try:
        os.set_inheritable(descriptor, inheritable)
    except OSError:
        return  # that of the listing itself, closed by now


def clear_folder(home: Home) -> None:
    """Remove what was left half-made; downloads are kept to be resumed, for a day."""
    oldest_s = time.time() - _DOWNLOAD_KEPT_S
    for path in home.scratch.iterdir():
        if path.suffix != ".part" or path.stat().st_mtime < oldest_s:
            path.unlink(missing_ok=True)
    for path in home.answers.glob("*.part"):
        path.unlink(missing_ok=True)
