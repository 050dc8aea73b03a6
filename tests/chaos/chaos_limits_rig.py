"""A real ``coordinator serve``, real flooding programs, and one honest device that keeps time.

Shared by the tests of the limits and by the benchmark ``bench/flood.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos_flood import enrolment, freshness

from protocol.channel import call, open_channel, trusted_certificate
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.wire import records_pb2 as wire
from protocol.wire.service_pb2_grpc import CoordinatorStub

sys.path.append(str(Path(__file__).parents[1]))  # the rigs of the other suites

import run_rig

FLOOD = Path(__file__).with_name("chaos_flood.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
BEAT_S = 0.1


@dataclass
class Server:
    """The coordinator's process."""

    link: JoinLink
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def open_files(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    def until_left(self, at_most: int, within_s: float = 60.0) -> int:
        """Wait until connections are gone; returns how many files are open then; blocking."""
        until_s = time.monotonic() + within_s
        while self.open_files > at_most and time.monotonic() < until_s:
            time.sleep(0.2)
        return self.open_files


def make_run(folder: Path, limits: str = "") -> Path:
    """A tiny run's folder, with settings of ``[server.limits]``."""
    run_rig.make_dataset(folder / "data")
    text = f"{run_rig.RUN_TOML}\n[server.limits]\n{limits}"
    run_rig.make_run(folder / "data", folder / "run", text)
    return folder / "run"


@contextmanager
def serve(run_dir: Path, log: Path) -> Iterator[Server]:
    """``coordinator serve`` on a free port, alone."""
    command = [sys.executable, "-m", "barnraise", "coordinator", "serve", "--run-dir", str(run_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--no-anchor", "--no-auditor"],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        link = JoinLink.parse((run_dir / "join-link.txt").read_text().strip())
        port = int(_wait_for(process, log, r"Serving \S+ on 127\.0\.0\.1:(\d+)"))
        yield Server(JoinLink("127.0.0.1", port, link.run_id, link.root), process, log)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    until_s = time.monotonic() + 100
    while time.monotonic() < until_s and process.poll() is None:
        found = re.search(pattern, log.read_text(errors="replace"))
        if found and "Join link" in log.read_text(errors="replace"):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"{pattern!r} did not appear in:\n{log.read_text()[-3000:]}")


class Flooding:
    """One flooding program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def hear(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if line.startswith(b"{"):
                heard: dict[str, Any] = json.loads(line)
                if heard.pop("event") == event:
                    return heard
        raise AssertionError(f"the flood ended before {event!r}")

    async def end(self) -> dict[str, Any]:
        """Let go of what stands; what became of it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        done = await self.hear("done")
        await self._process.wait()
        return done


@asynccontextmanager
async def flooding(link: JoinLink, attack: str, *options: object) -> AsyncIterator[Flooding]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(FLOOD),
        str(link),
        attack,
        *map(str, options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )
    try:
        yield Flooding(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass
class Honest:
    """A device that was let in: it beats, and asks for work, and measures how long that takes."""

    stub: CoordinatorStub
    link: JoinLink
    identity: Identity
    seconds: list[float] = field(default_factory=list)

    async def beat(self) -> None:
        def attempt(timeout_s: float) -> Any:
            beat = wire.Heartbeat(
                run_id=self.link.run_id, worker=self.identity.peer_id, freshness=freshness()
            )
            return self.stub.Heartbeat(seal(beat, self.identity), timeout=timeout_s)

        began_s = time.monotonic()
        await call(attempt, timeout_s=60.0)
        self.seconds.append(time.monotonic() - began_s)

    async def beat_for_ever(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_S)

    def percentile_s(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@asynccontextmanager
async def honest(link: JoinLink) -> AsyncIterator[Honest]:
    """An enrolled device that beats throughout the block; a failure of its calls is raised."""
    identity = Identity.generate()
    async with open_channel(link, await trusted_certificate(link)) as channel:
        stub = CoordinatorStub(channel)
        await call(lambda timeout_s: stub.Enrol(enrolment(link, identity), timeout=timeout_s))
        device = Honest(stub, link, identity)
        await device.beat()
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(device.beat_for_ever())
            yield device
            beating.cancel()
