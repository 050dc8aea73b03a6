"""What a volunteer types, against a worker of which only the control socket is there."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from barnraise import cli
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.link import JoinLink
from worker import cli as worker_cli
from worker.config import Home, WorkerConfig
from worker.control import NotRunning, control_server, home_lock
from worker.durations import MAX_DURATION_S, duration_s, span_text
from worker.journal import Journal
from worker.limits import Limits
from worker.logs import read_by_service
from worker.settings import change_settings
from worker.status import Board, Phase

LINK = str(JoinLink("host", 7443, b"r" * 32, Identity.generate().peer_id))
COMMANDS = sorted(worker_cli._COMMANDS)
STAYS = ("run", "anchor")


@pytest.fixture
def home() -> Iterator[Home]:
    """A folder that has joined a run."""
    # A short path: control sockets of several devices lie deep in it, and pytest's are long.
    with tempfile.TemporaryDirectory(prefix="commands-") as folder:
        made = Home(Path(folder) / "home")
        made.prepare()
        Identity.generate().save(made.identity)
        WorkerConfig(link=LINK, name="Ada").save(made.config)
        yield made


def said(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["worker", *arguments, "--home", str(home.path)])


async def tell(home: Home, *arguments: str) -> Result:
    """A command, while this loop serves the socket."""
    return await asyncio.to_thread(said, home, *arguments)


def done(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


class Worker:
    """The control socket of one: remembers what it was told."""

    def __init__(self, home: Home) -> None:
        self.home, self.board = home, Board("12D3", "ea5c")
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.refusal = ""
        self.ended = asyncio.Event()
        self.extra: dict[str, Any] = {}
        self.on_status: Callable[[], None] = lambda: None

    def handle(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.heard.append((command, arguments))
        if command == "status":
            self.on_status()
        elif self.refusal:
            raise UsageError(self.refusal)
        elif command in ("finish", "stop"):
            self.ended.set()
        return {"status": self.board.snapshot() | self.extra}

    async def live(self, ready: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            stack.enter_context(home_lock(self.home))
            await stack.enter_async_context(control_server(self.home, self.handle))
            ready.set()
            await self.ended.wait()


@pytest.fixture
async def worker(home: Home) -> AsyncIterator[Worker]:
    made, ready = Worker(home), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.live(ready))
        await ready.wait()
        yield made
        made.ended.set()


# ---- all of them ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_how_it_is_used(name: str) -> None:
    shown = done(CliRunner().invoke(cli, ["worker", name, "--help"]))
    assert f"barnraise worker {name}" in shown
    assert "Example" in shown
    assert name in STAYS or "--json" in shown


def test_help_is_quick_for_it_loads_little() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from barnraise import cli;"
        "shown = CliRunner().invoke(cli, ['worker', '--help']);"
        "assert 'install-service' in shown.output and 'Exit codes' in shown.output;"
        "heavy = {'torch', 'hivemind', 'grpc', 'rich', 'numpy'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("status",), 3),
        (("finish",), 3),
        (("pause", "--for", "2h"), 3),
        (("pause", "--for", "soon"), 2),
        (("limits",), 2),
        (("limits", "--nonsense"), 2),
        (("export-key", "file"), 2),
        (("install-service", "--print"), 2),
    ],
)
def test_exit_codes_in_a_folder_where_nothing_is(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    empty = tmp_path / "empty"
    command = [sys.executable, "-m", "barnraise", "worker", *arguments, "--home", str(empty)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.strip()
    assert "Traceback" not in ended.stderr
    assert not empty.exists()


# ---- pause, resume, finish, stop ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("30 min", 1800),
        ("2h", 7200),
        ("1d", 86_400),
        ("1h30m", 5400),
        (" 1H 5M ", 3900),
        ("366d", MAX_DURATION_S),
    ],
)
def test_durations_as_people_write_them(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "2", "h", "-2h", "1.5h", "2 hours", "367d", "9" * 40 + "s", "٢h", "2h x"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time such as"):
        duration_s(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (719, "11 min"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (90_000, "1 d 1 h"),
        (1e12, "more than a year"),
    ],
)
def test_spans_in_words(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


async def test_words_reach_the_worker(home: Home, worker: Worker) -> None:
    assert "Paused until " in done(await tell(home, "pause", "--for", "1h30m"))
    assert "barnraise worker resume --home" in done(await tell(home, "pause"))
    assert json.loads(done(await tell(home, "pause", "--json")))["worker"] == "12D3"
    assert done(await tell(home, "resume")) == "Resumed.\n"
    assert worker.heard == [
        ("pause", {"for_s": 5400}),
        ("pause", {}),
        ("pause", {}),
        ("resume", {}),
    ]


async def test_a_refusal_is_passed_on(home: Home, worker: Worker) -> None:
    worker.refusal = "not while the disk is full"
    assert str((await tell(home, "pause")).exception) == worker.refusal


async def test_resume_agrees_to_what_a_script_has_joined(home: Home, worker: Worker) -> None:
    change_settings(home, lambda now: replace(now, confirmed=False))
    result = await tell(home, "resume", "--json")
    assert json.loads(done(result))["worker"] == "12D3"
    assert "Agreed: this machine gives" in result.stderr
    assert WorkerConfig.load(home.config).confirmed
    assert [name for name, _ in worker.heard] == ["reload", "resume"]


@pytest.mark.parametrize("word", ["finish", "stop"])
async def test_wait_returns_when_nobody_holds_the_folder(
    home: Home, worker: Worker, word: str
) -> None:
    assert done(await tell(home, word, "--wait")) == "It has ended.\n"
    with home_lock(home):
        pass


# ---- limits ---------------------------------------------------------------------------------


async def test_a_change_is_written_and_the_worker_told(home: Home, worker: Worker) -> None:
    words = ("threads", "2", "busy-cpu-percent=25", "--set", "on_battery", "yes")
    shown = json.loads(done(await tell(home, "limits", *words, "--json")))
    assert shown["changed"] == ["threads", "busy_cpu_percent", "on_battery"]
    assert WorkerConfig.load(home.config).limits == Limits(
        threads=2, busy_cpu_percent=25, on_battery=True
    )
    assert WorkerConfig.load(home.config).name == "Ada"
    assert [name for name, _ in worker.heard] == ["reload"]
    assert "in force now" in done(await tell(home, "limits", "threads", "1"))
    assert "threads" in done(await tell(home, "limits", "--reload"))
    assert [name for name, _ in worker.heard] == ["reload"] * 3


def test_without_a_worker_it_holds_from_the_next_start(home: Home) -> None:
    assert "at the next start" in done(
        said(home, "limits", "schedule", "sat 10:00-12:00, sun 0:00-24:00")
    )
    assert WorkerConfig.load(home.config).limits.schedule == ("sat 10:00-12:00", "sun 0:00-24:00")
    done(said(home, "limits", "schedule", "none"))
    assert WorkerConfig.load(home.config).limits == Limits()
    assert isinstance(said(home, "limits", "--reload").exception, NotRunning)


@pytest.mark.parametrize(
    "words",
    [
        ("threads",),
        ("threads", "-1"),
        ("threads=lots",),
        ("threads", "1", "nonsense", "2"),
        ("schedule", "whenever"),
        ("--set", "gpu_power_w", "9999999"),
    ],
)
def test_a_wrong_change_changes_nothing(home: Home, words: tuple[str, ...]) -> None:
    before = home.config.read_bytes()
    result = said(home, "limits", *words)
    assert result.exit_code != 0
    assert home.config.read_bytes() == before


@pytest.mark.parametrize(
    ("because", "stops"),
    [
        ("busy", "busy_cpu_percent"),
        ("battery", "on_battery"),
        ("quota", "daily_mib"),
        ("hot", "gpu_temperature_c"),
        ("memory", "free_memory_mib"),
        ("paused", None),
        ("", None),
    ],
)
async def test_the_limit_that_stops_the_work_is_named(
    home: Home, worker: Worker, because: str, stops: str | None
) -> None:
    worker.extra = {"because": because, "reason": "so it is", "until_s": None}
    shown = json.loads(done(await tell(home, "limits", "--json")))
    assert shown["stopped_by"] == stops
    assert shown["because"] == (because or None)
    text = done(await tell(home, "limits"))
    assert ("STOPS WORK NOW" in text) == (stops is not None)
    assert ("Not working: so it is" in text) == bool(because)


def test_of_many_changes_at_once_none_is_lost(home: Home) -> None:
    numbers = [
        name
        for name, value in vars(Limits()).items()
        if type(value) is int and name not in ("gpu_memory_percent", "battery_percent")
    ]
    together = threading.Barrier(len(numbers))

    def change(name: str) -> None:
        together.wait()
        change_settings(home, lambda now: now.with_limits(**{name: 7}))

    with ThreadPoolExecutor(len(numbers)) as pool:
        list(pool.map(change, numbers))
    limits = WorkerConfig.load(home.config).limits
    assert {name: getattr(limits, name) for name in numbers} == dict.fromkeys(numbers, 7)
    assert sorted(path.name for path in home.path.glob("worker.*")) == ["worker.key", "worker.toml"]


# ---- status ---------------------------------------------------------------------------------


async def test_status_tells_a_program_everything(home: Home, worker: Worker) -> None:
    worker.board.waiting("the round is full", Phase.WAITING)
    shown = json.loads(done(await tell(home, "status", "--json")))
    assert (shown["running"], shown["reason"]) == (True, "the round is full")
    assert shown["limits"]["nice"] == Limits().nice
    lines = done(await tell(home, "status")).splitlines()
    assert "doing       waiting: the round is full" in lines


@pytest.mark.parametrize("as_json", [True, False])
async def test_watching_says_each_change_once(home: Home, worker: Worker, as_json: bool) -> None:
    reasons = iter(["one", "one", "two", "two"])

    def next_reason() -> None:
        worker.board.tokens_per_s += 1  # measured anew: no change
        try:
            worker.board.waiting(next(reasons))
        except StopIteration:
            worker.ended.set()

    worker.on_status = next_reason
    shown = done(await tell(home, "status", "--watch", *["--json"] * as_json)).splitlines()
    if as_json:
        assert [json.loads(line)["reason"] for line in shown] == ["one", "two"]
    else:
        assert [line.partition(" ")[2] for line in shown] == ["waiting: one", "waiting: two"]


def test_a_worker_that_ended_tells_what_it_knew(home: Home) -> None:
    journal = Journal(home.journal)
    for number, kept in enumerate((True, False, False)):
        assignment_id = bytes([number]) * 16
        journal.expect_receipt(assignment_id, 3, 64, patience_s=600)
        if kept:
            journal.keep_receipt(assignment_id, b"{}", "proof")
    journal.put("paused", '{"until_s": null}')
    journal.close()
    result = said(home, "status", "--json")
    assert isinstance(result.exception, NotRunning)
    shown = json.loads(result.stdout)
    assert (shown["running"], shown["paused"]) == (False, True)
    assert (shown["receipts_held"], shown["receipts_pending"]) == (1, 2)
    assert "1 receipt(s), 2 unit(s) pending" in said(home, "status").stdout

    home.journal.write_bytes(b"no database" * 1000)
    assert json.loads(said(home, "status", "--json").stdout)["joined"] is True
    assert home.journal.read_bytes().startswith(b"no database")  # nothing was mended by looking


# ---- the key --------------------------------------------------------------------------------


def test_a_key_is_written_once_for_its_owner_only(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "my.key"
    told = json.loads(done(said(home, "export-key", str(file), "--json")))
    assert told == {"worker": Identity.load(home.identity).peer_id, "file": str(file)}
    assert file.stat().st_mode & 0o777 == 0o600
    assert Identity.load(file).peer_id == told["worker"]

    file.write_text("something dear")
    assert "already" in str(said(home, "export-key", str(file)).exception)
    assert file.read_text() == "something dear"
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert said(home, "export-key", str(tmp_path / "link")).exit_code != 0
    assert not (tmp_path / "elsewhere").exists()

    assert "make it first" in str(said(home, "export-key", str(tmp_path / "no" / "k")).exception)
    assert "FILE" in str(said(home, "export-key").exception)
    printed = said(home, "export-key", "--stdout")
    assert printed.stdout_bytes == home.identity.read_bytes()
    assert said(home, "export-key", "--stdout", "--json").exit_code != 0


# ---- the end --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))


async def test_leaving_stops_the_worker_and_keeps_the_key(home: Home, worker: Worker) -> None:
    Journal(home.journal).close()
    (home.blobs / "aa").write_bytes(b"data")
    (home.path / "diary.txt").write_text("not the worker's")
    text = done(await tell(home, "uninstall", "--yes"))
    assert ("stop", {}) in worker.heard
    assert sorted(path.name for path in home.path.iterdir()) == ["diary.txt", "worker.key"]
    assert "Its key is in" in text
    assert "public record" in text


def test_leaving_for_good_takes_the_key_too(home: Home) -> None:
    facts = json.loads(done(said(home, "uninstall", "--yes", "--delete-key", "--json")))
    assert (facts["home_removed"], facts["left"]) == (True, [])
    assert not home.path.exists()
    assert json.loads(done(said(home, "uninstall", "--yes", "--json")))["home_removed"] is False


def test_leaving_takes_the_folders_of_all_devices(home: Home) -> None:
    members = [Home(home.path / "devices" / name) for name in ("cuda-0", "cuda-1")]
    for member in members:
        member.prepare()
        Identity.generate().save(member.identity)
        (member.blobs / "aa").write_bytes(b"data")
    done(said(home, "uninstall", "--yes"))
    kept = sorted(path for path in home.path.rglob("*") if path.is_file())
    assert kept == sorted([home.identity, *(member.identity for member in members)])
    done(said(home, "uninstall", "--yes", "--delete-key"))
    assert not home.path.exists()


def test_nobody_to_ask_means_nothing_is_removed(home: Home) -> None:
    before = sorted(home.path.rglob("*"))
    assert "Its folder stays" in done(said(home, "uninstall"))
    assert sorted(home.path.rglob("*")) == before
    done(said(home, "uninstall", "--keep-home", "--yes"))
    assert sorted(home.path.rglob("*")) == before


def test_a_link_in_the_folder_is_not_followed(home: Home, tmp_path: Path) -> None:
    dear = tmp_path / "photos"
    dear.mkdir()
    (dear / "one.jpg").write_bytes(b"x")
    home.blobs.rmdir()
    home.blobs.symlink_to(dear)
    done(said(home, "uninstall", "--yes"))
    assert (dear / "one.jpg").exists()
    assert not home.blobs.exists()


# ---- logs -----------------------------------------------------------------------------------


def test_json_logs_begin_where_a_service_manager_reads() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as stream:
        found = os.fstat(stream.fileno())
        ours = f"{found.st_dev}:{found.st_ino}"
        assert read_by_service({"JOURNAL_STREAM": ours}, stream)
        assert not read_by_service({"JOURNAL_STREAM": "1:2", "INVOCATION_ID": "ab"}, stream)
        assert read_by_service({"INVOCATION_ID": "ab"}, stream)
        assert not read_by_service({}, stream)
    ours_fd, theirs_fd = os.openpty()
    with os.fdopen(ours_fd), os.fdopen(theirs_fd, "w") as terminal:
        # A shell of a desktop has inherited it.
        assert not read_by_service({"INVOCATION_ID": "ab"}, terminal)


def test_a_log_is_json_a_line_an_event(tmp_path: Path) -> None:
    code = (
        "import structlog; from worker.logs import log_to_stderr; log_to_stderr(level='warning');"
        "log = structlog.get_logger(); log.info('no'); log.warning('yes', text='a\\nb\\x1b[2J')"
    )
    variables = {**os.environ, "INVOCATION_ID": "ab"}
    variables.pop("JOURNAL_STREAM", None)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (line,) = ended.stderr.splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["text"]) == ("yes", "warning", "a\nb\x1b[2J")


def test_a_log_cannot_steer_a_terminal(tmp_path: Path) -> None:
    code = (
        "import structlog; from worker.logs import log_to_stderr; log_to_stderr();"
        "structlog.get_logger().info('notice', text='\\x1b[2J\\u202e', more='\\x07a b', n=7)"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not {"\x1b", "\x07", "\u202e"} & set(ended.stderr)
    assert "n=7" in ended.stderr


def test_the_group_lists_what_it_has() -> None:
    group = cli.get_command(click.Context(cli), "worker")
    assert isinstance(group, click.Group)
    context = click.Context(group)
    assert all(
        group.get_command(context, name) is not None for name in group.list_commands(context)
    )
    assert group.get_command(context, "nonsense") is None
