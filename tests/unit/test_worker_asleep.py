"""A worker that may not work at its start: real processes that never load what is large."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.leash import leashed
from worker.config import Home, WorkerConfig
from worker.control import ask, is_held
from worker.delegation import ENROLLED_FOR
from worker.doctor import examine
from worker.journal import Journal
from worker.limits import Limits
from worker.pause import Pause, keep_pause, kept_pause
from worker.traffic_day import TrafficDay, now

MOST_BYTES = 150 << 20
_PATIENCE_S = 60.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "w")
    found.prepare()
    Identity.generate().save(found.identity)
    return found


def settle(home: Home, port: int = 1, **settings: Any) -> None:
    link = f"barnraise://127.0.0.1:{port}/{'0' * 64}#root={Identity.from_seed(bytes(32)).peer_id}"
    WorkerConfig(link=link, **settings).save(home.config)


@contextmanager
def running(home: Home) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "barnraise", "worker", "run", "--home", str(home.path)]
    with subprocess.Popen(
        leashed([*command, "--json-logs"]), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline_s = time.monotonic() + _PATIENCE_S
            while not is_held(home) and process.poll() is None:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def status_when(home: Home, **wanted: Any) -> dict[str, Any]:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        status: dict[str, Any] = ask(home, "status")["status"]
        if all(status[name] == value for name, value in wanted.items()):
            return status
        assert time.monotonic() < deadline_s, status
        time.sleep(0.02)


def test_who_has_not_agreed_is_asked_to_and_nothing_large_is_loaded(home: Home) -> None:
    settle(home, confirmed=False)
    with running(home) as process:
        status = status_when(home, asleep=True)
        assert (status["phase"], status["because"]) == ("paused", "unconfirmed")
        assert "worker resume" in status["reason"]
        worker = psutil.Process(process.pid)
        assert worker.children() == []
        assert worker.memory_info().rss < MOST_BYTES
        mapped = {Path(region.path).name for region in worker.memory_maps()}
        assert not [name for name in mapped if "torch" in name]
        # Limits that are wrong change nothing, and the owner is told why.
        good = home.config.read_text()
        home.config.write_text(good.replace("threads = 0", "threads = -1"))
        with pytest.raises(UsageError, match="threads is between 0 and 1024"):
            ask(home, "reload")
        home.config.write_text(good.replace("confirmed = false", "confirmed = true"))
        ask(home, "pause")
        ask(home, "reload")
        assert status_when(home, because="paused")["paused"]
        ask(home, "finish")
        _, log = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events.count("may not work") == 2  # once for each reason
    assert "trainer started" not in events
    assert not home.socket.exists()


def test_a_pause_outlasts_the_process_and_ends_by_itself(home: Home) -> None:
    settle(home, confirmed=False)
    with running(home) as process:
        until_s = ask(home, "pause", for_s=7200.0)["status"]["paused_until_s"]
        assert abs(until_s - time.time() - 7200) < _PATIENCE_S
        process.kill()
    assert kept_pause(home) == Pause(until_s)
    with running(home) as process:
        assert status_when(home, because="paused")["until_s"] == until_s
        ask(home, "pause", for_s=0.5)
        assert not status_when(home, because="unconfirmed")["paused"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(_PATIENCE_S) == 0
    assert kept_pause(home) is None


async def test_the_doctor_says_once_what_a_sleeping_worker_does(home: Home) -> None:
    settle(home, confirmed=False)
    with running(home):
        reason = (await asyncio.to_thread(status_when, home, asleep=True))["reason"]
        checks = {one.name: one async for one in examine(home, WorkerConfig.load(home.config))}
    assert checks["daemon"].detail == f"running: paused: {reason}"


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("yes", Pause()),  # as it was written before a pause could end
        ("no", None),
        ("", None),
        ('{"until_s": null}', Pause()),
        ('{"until_s": 1.0}', None),  # over
        ('{"until_s": 4e9}', Pause(4e9)),
    ],
)
def test_a_pause_is_read_as_it_was_written(home: Home, text: str, pause: Pause | None) -> None:
    with closing(Journal(home.journal)) as journal:
        journal.put("paused", text)
    assert kept_pause(home) == pause
    keep_pause(home, pause)
    assert kept_pause(home) == pause


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A port, and whether somebody came."""
    came = asyncio.Event()

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], came


async def test_with_a_quota_used_up_nothing_goes_over_the_network(home: Home) -> None:
    async with listening() as (port, came):
        settle(home, port, limits=Limits(daily_mib=10))
        with closing(Journal(home.journal)) as journal:
            journal.put(ENROLLED_FOR, "a donor")  # the run knows it, so it is heard of
        at = now()
        day = TrafficDay.beginning(at)
        day.up_bytes = 10 << 20
        day.save(home.traffic)
        with running(home):
            status = await asyncio.to_thread(status_when, home, asleep=True)
            assert (status["because"], status["connected"]) == ("quota", False)
            assert status["until_s"] > at.wall_s
            await asyncio.to_thread(ask, home, "pause")  # another reason, the same quota
            await asyncio.to_thread(status_when, home, because="paused")
            assert not came.is_set()
            WorkerConfig.load(home.config).with_limits(daily_mib=0).save(home.config)
            await asyncio.to_thread(ask, home, "reload")
            async with asyncio.timeout(_PATIENCE_S):
                await came.wait()
            # What answers there is no coordinator: it stays asleep, and there.
            assert (await asyncio.to_thread(ask, home, "status"))["status"]["asleep"]
