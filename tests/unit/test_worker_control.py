"""The control socket against whoever can open it: its owner's programs, right or wrong."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import UsageError
from protocol.leash import leashed
from worker import control
from worker.config import Home
from worker.control import NotRunning, ask, control_server, home_lock, is_held


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path)
    found.prepare()
    return found


def echo(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if command == "reload":
        raise UsageError("limits: threads is between 0 and 1024")
    return {"said": [command, arguments]}


async def said(home: Home, request: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(home.socket))
    writer.write(request)
    answer: dict[str, Any] = json.loads(await reader.readline())
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"\n", "not a request"),
        (b"null\n", "not a request"),
        (b'{"command": 7}\n', "not a request"),
        (b"\xff\xfe\n", "not a request"),
        (b"[" * 60_000 + b"\n", "not a request"),
        (b'{"command": "explode"}\n', "unknown command 'explode'"),
        (b'{"command": "status", "for_s": 1}\n', "status takes no 'for_s'"),
        (b'{"command": "pause", "until": 1}\n', "pause takes no 'until'"),
        (b'{"command": "pause", "for_s": "1h"}\n', "for_s is a number of seconds"),
        (b'{"command": "pause", "for_s": true}\n', "for_s is a number of seconds"),
        (b'{"command": "pause", "for_s": 0}\n', "for_s is a number of seconds"),
        (b'{"command": "pause", "for_s": NaN}\n', "for_s is a number of seconds"),
        (b'{"command": "pause", "for_s": 1e300}\n', "for_s is a number of seconds"),
        (b'{"command": "reload"}\n', "threads is between 0 and 1024"),
        (b'{"command": "' + b"x" * (64 << 10) + b'"}\n', "a request has at most 65536 bytes"),
    ],
)
async def test_what_is_wrong_is_said(home: Home, request_: bytes, error: str) -> None:
    async with control_server(home, echo):
        answer = await said(home, request_)
        assert not answer["ok"] and error in answer["error"] and len(answer["error"]) < 300
        pause = await said(home, b'{"command": "pause", "for_s": 90}\n')
        assert pause["said"] == ["pause", {"for_s": 90}]


async def test_who_is_silent_is_waited_for_by_nobody(home: Home) -> None:
    async with control_server(home, echo):
        silent = [await asyncio.open_unix_connection(str(home.socket)) for _ in range(20)]
        silent[0][1].write(b'{"command": ')
        assert (await asyncio.to_thread(ask, home, "status"))["ok"]
    for reader, writer in silent:  # and the end waits for them neither
        assert await reader.read() == b""
        writer.close()


def test_who_asks_between_two_programs_is_answered_by_the_next(home: Home) -> None:
    """The lock is held, and nobody listens yet."""
    answers: list[dict[str, Any]] = []

    async def next_program() -> None:
        async with control_server(home, echo):
            while not answers:  # noqa: ASYNC110  # the other side is a thread
                await asyncio.sleep(0.01)

    with home_lock(home):
        asking = threading.Thread(target=lambda: answers.append(ask(home, "status")))
        asking.start()
        asyncio.run(next_program())
        asking.join()
    assert answers[0]["said"] == ["status", {}]
    with pytest.raises(NotRunning, match="worker run") as refused:
        ask(home, "status")
    assert refused.value.exit_code == 3


_NEXT = """
import os, sys
from pathlib import Path
from worker.config import Home
from worker.control import home_lock, is_held

home, descriptor = Home(Path(sys.argv[1])), int(sys.argv[2])
with home_lock(home, descriptor) as lock:
    assert lock == descriptor and not os.get_inheritable(lock)
    print(os.getpid(), flush=True)
    sys.stdin.readline()
"""

_FIRST = """
import os, sys
from pathlib import Path
from worker.config import Home
from worker.control import home_lock

with home_lock(Home(Path(sys.argv[1]))) as lock:
    os.set_inheritable(lock, True)
    print(os.getpid(), flush=True)
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], sys.argv[1], str(lock)])
"""


@pytest.fixture
def turning(home: Home) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        leashed([sys.executable, "-c", _FIRST, str(home.path), _NEXT]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def test_the_lock_goes_from_one_program_to_the_next(
    home: Home, turning: subprocess.Popen[str]
) -> None:
    assert turning.stdout is not None
    first = int(turning.stdout.readline())
    with pytest.raises(UsageError, match=f"process {first}"), home_lock(home):
        raise AssertionError("held twice")
    assert int(turning.stdout.readline()) == first
    assert is_held(home)
    with pytest.raises(UsageError, match=f"process {first}"), home_lock(home):
        raise AssertionError("held twice")
    turning.communicate("end\n")
    assert turning.returncode == 0
    assert not is_held(home)


def test_a_descriptor_that_is_not_the_lock_is_none(home: Home, tmp_path: Path) -> None:
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    for wrong in (other, 10_000):
        with home_lock(home, wrong) as lock:
            assert lock != wrong
    os.close(other)


def test_a_look_does_not_keep_a_worker_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who asks whether the folder is held holds it for a moment."""
    waits: list[float] = []
    looking = os.open(home.lock, os.O_RDWR | os.O_CREAT)
    control.fcntl.flock(looking, control.fcntl.LOCK_SH)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        os.close(looking)

    monkeypatch.setattr(control.time, "sleep", wait)
    with home_lock(home):
        assert len(waits) == 1
