"""``worker join`` by its real command: what is asked, what is kept, what a no leaves."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import UsageError
from protocol.identity import Identity
from worker.config import Home, WorkerConfig
from worker.join import Offer, describe
from worker.limits import Limits

PATIENCE_S = 60.0
# A desktop, whatever machine this is: limits are proposed.
DESKTOP = {**os.environ, "DISPLAY": ":99", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
GIVEN = {
    "threads": 3,
    "nice": 4,
    "memory_mib": 2000,
    "free_memory_mib": 100,
    "disk_mib": 5000,
    "free_disk_mib": 300,
    "gpu_memory_percent": 50,
    "gpu_power_w": 120,
    "gpu_temperature_c": 70,
    "upload_kbit_s": 800,
    "download_kbit_s": 900,
    "daily_mib": 700,
    "schedule": ("mon-fri 22:00-07:00", "sun 00:00-24:00"),
    "on_battery": True,
    "battery_percent": 60,
    "idle_minutes": 7,
    "busy_cpu_percent": 33,
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "barnraise", "worker", *arguments]


async def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Without a terminal."""
    done = await asyncio.to_thread(
        subprocess.run,
        command(*arguments),
        env=DESKTOP,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


class Person:
    """Somebody at a terminal: reads what comes, answers questions."""

    def __init__(self, *arguments: str) -> None:
        self.terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command(*arguments), env=DESKTOP, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.seen = ""

    def answer(self, question: str, text: str) -> None:
        """Wait for a question and type; questions before it are not looked at again."""
        found = re.search(question, self.seen)
        deadline_s = time.monotonic() + PATIENCE_S
        while found is None:
            assert time.monotonic() < deadline_s, f"{question!r} was not asked:\n{self.seen}"
            assert self._read(), f"{question!r} was not asked before the end:\n{self.seen}"
            found = re.search(question, self.seen)
        self.seen = self.seen[found.end() :]
        os.write(self.terminal, text.encode() + b"\n")

    def end(self) -> tuple[int, str]:
        """The exit code, and what was said since the last answer."""
        while self._read():
            pass
        code = self.process.wait(PATIENCE_S)
        os.close(self.terminal)
        return code, self.seen

    def _read(self) -> bool:
        if not select.select([self.terminal], [], [], PATIENCE_S)[0]:
            raise AssertionError(f"nothing more was said:\n{self.seen}")
        with suppress(OSError):  # EIO: the other side is gone
            data = os.read(self.terminal, 4096)
            self.seen += data.decode(errors="replace").replace("\r\n", "\n")
            return bool(data)
        return False


async def test_a_person_is_asked_and_a_no_leaves_nothing(served: Any, home: Home) -> None:
    def refuse() -> tuple[int, str]:
        person = Person("join", str(served.link), "--home", str(home.path))
        person.answer(r"Name for the leaderboard", "")
        person.answer(r"Join this run", "n")
        return person.end()

    code, said = await asyncio.to_thread(refuse)
    assert code == 2
    assert "nothing was started" in said
    assert not home.path.exists()


async def test_enter_is_a_no(served: Any, home: Home) -> None:
    def hesitate() -> tuple[int, str]:
        person = Person("join", str(served.link), "--home", str(home.path), "--name", "Ada")
        person.answer(r"Join this run", "")
        return person.end()

    assert (await asyncio.to_thread(hesitate))[0] == 2
    assert not home.path.exists()


async def test_answers_are_used_and_wrong_ones_asked_again(served: Any, home: Home) -> None:
    def talk() -> tuple[int, str]:
        person = Person("join", str(served.link), "--home", str(home.path))
        person.answer(r"works +at any time, not on battery, not while other programs", "")
        person.answer(r"Join this run", "what?")
        person.answer(r"(?s)Error.*Join this run", "c")
        person.answer(r"\nthreads:", "many")
        person.answer(r"(?s)whole number.*threads:", "2")
        for name in [one.name for one in fields(Limits)][1:]:
            person.answer(rf"{name}: .*\[", "sat 10:00-12:00" if name == "schedule" else "")
        person.answer(r"(?s)sat 10:00-12:00.*Join this run", "y")
        return person.end()

    code, said = await asyncio.to_thread(talk)
    assert code == 0, said
    assert "Start with: barnraise worker run --home" in said
    config = WorkerConfig.load(home.config)
    assert config.confirmed
    assert config.name == ""
    assert (config.limits.threads, config.limits.schedule) == (2, ("sat 10:00-12:00",))
    assert config.limits.busy_cpu_percent == 25  # as proposed


async def test_a_name_that_is_typed_is_used(served: Any, home: Home) -> None:
    def talk() -> tuple[int, str]:
        person = Person("join", str(served.link), "--home", str(home.path))
        person.answer(r"Name for the leaderboard", "x" * 65)
        person.answer(r"(?s)at most 64.*Name for the leaderboard", "Ada Löwe")
        person.answer(r"Join this run", "y")
        return person.end()

    assert (await asyncio.to_thread(talk))[0] == 0
    assert WorkerConfig.load(home.config).name == "Ada Löwe"


async def test_without_a_terminal_nobody_has_agreed(served: Any, home: Home) -> None:
    place = ("--home", str(home.path))
    done = await run("join", str(served.link), *place, "--name", "Ada")
    assert "barnraise worker resume --home" in done.stdout
    assert not WorkerConfig.load(home.config).confirmed
    key = home.identity.read_bytes()

    resumed = await run("resume", *place, "--json")
    assert json.loads(resumed.stdout) == {"confirmed": True, "running": False}
    assert "Agreed: this machine gives" in resumed.stderr
    assert WorkerConfig.load(home.config).confirmed

    await run("join", str(served.link), *place)  # agreed once is agreed
    config = WorkerConfig.load(home.config)
    assert (config.confirmed, config.name, home.identity.read_bytes()) == (True, "Ada", key)


async def test_yes_agrees_afterwards_and_settings_stay(served: Any, home: Home) -> None:
    place = ("--home", str(home.path))
    await run("join", str(served.link), *place, "--name", "Ada", "--threads", "1")
    await run("join", str(served.link), *place, "--yes", "--upload-kbit-s", "100")
    config = WorkerConfig.load(home.config)
    assert (config.confirmed, config.name) == (True, "Ada")
    assert (config.limits.threads, config.limits.upload_kbit_s) == (1, 100)
    assert config.limits.busy_cpu_percent == 25


async def test_how_much_is_computed_at_a_time_can_be_said(served: Any, home: Home) -> None:
    place = (str(served.link), "--home", str(home.path), "--yes")
    await run("join", *place)
    assert WorkerConfig.load(home.config).micro_batch_sequences == 0
    await run("join", *place, "--micro-batch", "4")
    assert WorkerConfig.load(home.config).micro_batch_sequences == 4
    await run("join", *place, "--threads", "1")
    assert WorkerConfig.load(home.config).micro_batch_sequences == 4
    await run("join", *place, "--micro-batch", "0")
    assert WorkerConfig.load(home.config).micro_batch_sequences == 0


async def test_every_limit_has_its_option(served: Any, home: Home) -> None:
    assert {one.name for one in fields(Limits)} == set(GIVEN)
    options = []
    for name, value in GIVEN.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, tuple):
            options += [word for period in value for word in (flag, period)]
        else:
            options += [flag] if value is True else [flag, str(value)]
    place = ("--home", str(home.path), "--yes", "--json")
    told = json.loads((await run("join", str(served.link), *place, *options)).stdout)
    assert WorkerConfig.load(home.config).limits == Limits(**GIVEN)
    assert told["limits"] == json.loads(json.dumps(GIVEN))


async def test_json_is_all_that_stdout_says(served: Any, home: Home) -> None:
    done = await run("join", str(served.link), "--home", str(home.path), "--dedicated", "--json")
    told = json.loads(done.stdout)
    assert told["run"] == served.link.run_id.hex()
    assert told["worker"] == Identity.load(home.identity).peer_id
    assert told["home"] == str(home.path)
    assert told["confirmed"] is False
    assert Limits(**{**told["limits"], "schedule": ()}) == Limits()
    assert "This machine would give" in done.stderr


async def test_a_device_comes_back_by_its_key(served: Any, home: Home, tmp_path: Path) -> None:
    await run("join", str(served.link), "--home", str(home.path), "--yes")
    file = tmp_path / "my.key"
    await run("export-key", str(file), "--home", str(home.path))
    assert file.stat().st_mode & 0o777 == 0o600

    again, link = Home(tmp_path / "again"), str(served.link)
    for _ in range(2):  # a second time changes nothing
        await run("join", link, "--home", str(again.path), "--key", str(file), "--yes")
    assert again.identity.read_bytes() == home.identity.read_bytes()

    Identity.generate().save(tmp_path / "other.key")
    other = ("--key", str(tmp_path / "other.key"))
    done = await run("join", link, "--home", str(again.path), *other, "--yes", code=2)
    assert "has a key of its own" in done.stderr
    (tmp_path / "no.key").write_bytes(b"no key")
    wrong = ("--key", str(tmp_path / "no.key"), "--home", str(tmp_path / "new"))
    done = await run("join", link, *wrong, "--yes", code=2)
    assert "not an Ed25519" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--threads", "-1"), ("--busy-cpu-percent", "101"), ("--schedule", "whenever")],
)
async def test_a_limit_out_of_bounds_makes_nothing(
    served: Any, home: Home, option: str, value: str
) -> None:
    await run("join", str(served.link), "--home", str(home.path), option, value, code=2)
    assert not home.path.exists()


def test_what_the_run_says_of_itself_cannot_steer_a_terminal(
    made_run: Path, tmp_path: Path
) -> None:
    from coordinator.config import RunFolder

    manifest = RunFolder(made_run).read_manifest()
    link = (made_run / "join-link.txt").read_text().strip()
    url = "http://x/\x1b]0;owned\x07\r\n\u202egnp"
    said = describe(Offer(manifest, "12D3", WorkerConfig(link=link), 0.0, url), Home(tmp_path))
    assert all(line.isprintable() for line in said.splitlines())
    assert "Leaderboard  http://x/" in said


def test_a_folder_that_is_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--home"):
        Home(tmp_path / "file" / "home").prepare()
