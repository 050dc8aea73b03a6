"""The daemons of one machine's devices: started, watched, steered together, reaped.

Guarantees of :meth:`Fleet.run`:

* Each member is a process of its own in a session of its own: a terminal's Ctrl-C reaches the
  fleet alone, which passes it on. On Linux members end with the fleet, also after a kill -9.
* A member that dies is started again, later each time; one that a person has to do something for
  is not. When all have ended, so does the fleet.
* What the owner says reaches every member, also one that was just starting.
* When it returns no member is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from protocol.channel import backoff_s
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.leash import leashed
from protocol.uncancelled import to_the_end
from worker.clock import steady_s
from worker.config import Home, WorkerConfig
from worker.control import NotRunning, ask, control_server, home_lock
from worker.fleet_status import merge_status
from worker.members import Member, divide, write_members
from worker.status import Board

log = structlog.get_logger()

MEMBER = ("-P", "-m", "barnraise", "worker", "run")

_LOOK_S = 1.0
_KILL_AFTER_S = 30.0
_LIVED_WELL_S = 600.0
_MOST_BACKOFF_S = 60.0
_USAGE = UsageError.exit_code
_STEERING = {"pause": "pausing", "resume": "pausing", "reload": "reload"}
"""Commands that are passed on; of those of one kind the last one counts."""


@dataclass
class _Daemon:
    """One member's process."""

    member: Member
    board: Board  # while its own does not answer
    process: asyncio.subprocess.Process | None = None
    status: dict[str, Any] = field(default_factory=dict)
    owed: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    failed: bool = False

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


class Fleet:
    """One machine's daemons in one home folder; :meth:`run` is its whole life.

    Args:
        home: the folder that was joined.
        load: reads its settings, now and at each change.
        options: of ``worker run``, for each member.
        program: that Python runs as a member.
        metrics_port: of the first member; the next one has the next port.
    """

    def __init__(
        self,
        home: Home,
        load: Callable[[], WorkerConfig],
        options: Sequence[str] = (),
        program: Sequence[str] = MEMBER,
        *,
        metrics_port: int | None = None,
    ) -> None:
        self._home, self._load, self._options = home, load, options
        self._program, self._metrics_port = program, metrics_port
        self._config = load()
        self._daemons: list[_Daemon] = []
        self._finish, self._stop = asyncio.Event(), asyncio.Event()
        self._said: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def run(self) -> None:
        """Live until all members have ended.

        Raises:
            UsageError: the limits cannot be divided, or a member needs a person.
        """
        members = await asyncio.to_thread(write_members, self._home, self._config)
        run = self._config.join_link.run_id.hex()[:16]
        self._daemons = [
            _Daemon(one, Board(Identity.load(one.home.identity).peer_id, run)) for one in members
        ]
        with home_lock(self._home), self._signals():
            async with control_server(self._home, self.handle), asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(self._pass_on())]
                beside += [tasks.create_task(self._look_after(one)) for one in self._daemons]
                await asyncio.wait([tasks.create_task(self._keep(one)) for one in self._daemons])
                for task in beside:
                    task.cancel()
        log.info("fleet ended", devices=len(self._daemons))
        failed = [one.member.name for one in self._daemons if one.failed]
        if failed:
            raise UsageError(f"{', '.join(failed)} could not go on: what to do is said above")

    # ---- commands ----------------------------------------------------------------------

    def handle(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """One command of the control socket; see :mod:`worker.control`.

        Raises:
            UsageError: the settings of now do not hold; those of before do.
        """
        if command == "reload":
            divide(self._load().limits, len(self._daemons))
        if command == "finish":
            self.finish()
        elif command == "stop":
            self.stop()
        elif command in _STEERING:
            self._said.put_nowait((command, dict(arguments or {})))
        return {"status": self.status()}

    def status(self) -> dict[str, Any]:
        """As it was a moment ago."""
        return merge_status(
            [
                {**(one.status or one.board.snapshot()), "device": one.member.device}
                for one in self._daemons
            ]
        )

    def finish(self) -> None:
        """Let each member end after its unit."""
        if not self._finish.is_set():
            log.info("finishing: no new unit after this one")
            self._finish.set()
            for one in self._daemons:
                one.signal(signal.SIGINT)

    def stop(self) -> None:
        """Let each member end now."""
        self._finish.set()
        self._stop.set()
        for one in self._daemons:
            one.signal(signal.SIGTERM)

    def _on_interrupt(self) -> None:
        if self._finish.is_set():
            log.info("stopping now")
            self.stop()
        else:
            log.info("finishing; Ctrl-C again stops now")
            self.finish()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            loop.remove_signal_handler(signal.SIGTERM)

    # ---- processes ---------------------------------------------------------------------

    async def _keep(self, one: _Daemon) -> None:
        """Run one member until it has ended for good."""
        failures = 0
        while not self._finish.is_set():
            begun_s = steady_s()
            code = await self._live(one)
            if code == 0 or self._finish.is_set():
                one.board.waiting("ended")
                return
            if code == _USAGE:
                one.failed = True
                one.board.waiting("could not go on: its log says what to do")
                log.error("member needs you", member=one.member.name)
                return
            failures = 0 if steady_s() - begun_s > _LIVED_WELL_S else failures
            wait_s = backoff_s(failures, base_s=1.0, limit_s=_MOST_BACKOFF_S)
            failures += 1
            one.board.waiting(f"its daemon died ({_death(code)}): it starts again by itself")
            log.warning("member died", member=one.member.name, how=_death(code), again_s=wait_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._finish.wait()

    async def _live(self, one: _Daemon) -> int:
        """One process, from its start to its end; its exit code."""
        whose = ["--home", str(one.member.home.path), "--member", one.member.name]
        if self._metrics_port is not None:
            whose += ["--metrics", str(self._metrics_port + self._daemons.index(one))]
        command = [sys.executable, *self._program, *whose, *self._options]
        one.board.waiting("starting")
        process = one.process = await asyncio.create_subprocess_exec(
            *leashed(command),
            stdin=asyncio.subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
        )
        log.info("member started", member=one.member.name, pid=process.pid)
        try:
            if self._finish.is_set():  # said while it was being started
                one.signal(signal.SIGTERM if self._stop.is_set() else signal.SIGINT)
            return await process.wait()
        finally:
            one.status = {}
            if process.returncode is None:
                await to_the_end(_put_down(process))

    # ---- what they say and are told ----------------------------------------------------

    async def _pass_on(self) -> None:
        """Let every member be owed what the owner says, for ever."""
        while True:
            command, arguments = await self._said.get()
            if command != "pause":  # the owner may have agreed, or have changed the limits
                await self._rewrite()
            for one in self._daemons:
                one.owed[_STEERING[command]] = (command, arguments)
                one.news.set()

    async def _rewrite(self) -> None:
        """Divide the settings of now."""
        try:
            config = await asyncio.to_thread(self._load)
            config = config.with_options(devices=self._config.devices)
            await asyncio.to_thread(write_members, self._home, config)
            self._config = config
        except (UsageError, OSError) as error:
            log.warning("the changed settings do not hold", problem=str(error))

    async def _look_after(self, one: _Daemon) -> None:
        """Hear what a member does and tell it what it is owed, for ever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await one.news.wait()
            one.news.clear()
            if one.process is None or one.process.returncode is not None:
                continue
            try:
                await self._tell(one)
                one.status = (await asyncio.to_thread(ask, one.member.home, "status"))["status"]
            except UsageError:
                one.status = {}  # starting, or ending

    async def _tell(self, one: _Daemon) -> None:
        """What it is owed.

        Raises:
            UsageError: it does not answer now.
        """
        for kind, owed in list(one.owed.items()):
            command, arguments = owed
            try:
                await asyncio.to_thread(ask, one.member.home, command, **arguments)
            except UsageError as error:
                if isinstance(error, NotRunning) or error.__cause__ is not None:
                    raise  # nobody is there to refuse
                name = one.member.name
                log.warning("member refuses", member=name, command=command, problem=str(error))
            if one.owed.get(kind) is owed:
                del one.owed[kind]


async def _put_down(process: asyncio.subprocess.Process) -> None:
    """End a member and reap it, whatever it does."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_KILL_AFTER_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    """The fleet's own settings have been taken out of it already, and are not its members'."""
    return {key: value for key, value in os.environ.items() if not key.startswith("BARNRAISE_")}


def _death(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
