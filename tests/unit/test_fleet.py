"""Several devices of one machine: what each may take, whose they are, how they live and end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest

from protocol.errors import UsageError
from protocol.identity import Identity
from worker import delegation, fleet
from worker.config import Home, WorkerConfig
from worker.control import ask
from worker.fleet import Fleet
from worker.fleet_status import merge_status
from worker.limits import Limits
from worker.members import (
    divide,
    members_of,
    parse_devices,
    vouch_for_members,
    write_members,
)
from worker.status import Board, Phase
from worker.view import rows

LINK = (
    "barnraise://127.0.0.1:7443/"
    + "ab" * 32
    + "#root=12D3KooWBMaEf8ZVKXhgBdLoDm5Q9cTCDAG4zoHWHPDt8mVHvK7F"
)
MEMBER = Path(__file__).with_name("fleet_member.py")


@pytest.fixture
def home() -> Iterator[Home]:
    # A short path: the members' control sockets lie two folders down, and pytest's are long.
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        home = Home(Path(folder) / "home")
        home.path.mkdir()
        yield home


def config(*devices: str, **settings: Any) -> WorkerConfig:
    limits = settings.pop("limits", Limits(threads=4))
    return WorkerConfig(link=LINK, devices=devices or ("cpu", "cpu"), limits=limits, **settings)


# ---- which devices ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cpu,cpu", ("cpu", "cpu")),
        (" cuda:0, cuda:1 ", ("cuda:0", "cuda:1")),
        ("mps,cpu", ("mps", "cpu")),
    ],
)
def test_devices_are_named_with_commas_between(text: str, devices: tuple[str, ...]) -> None:
    assert parse_devices(text) == devices


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is none"),
        ("auto,cpu", "'auto' is none"),
        ("cuda:0,,cpu", "'' is none"),
        ("cuda:0,cuda:0", "once"),
        ("cuda,cuda:0", "once"),
        ("mps,mps", "once"),
        (",".join(["cpu"] * 17), "between 1 and 16"),
    ],
)
def test_devices_that_cannot_work_side_by_side(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_devices(text)


def test_all_is_every_gpu_and_no_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.members.found_here", lambda: ["cuda", "cuda:0", "cuda:1", "cpu"])
    assert parse_devices("all") == ("cuda:0", "cuda:1")
    monkeypatch.setattr("worker.members.found_here", lambda: ["cpu"])
    with pytest.raises(UsageError, match="no GPU here"):
        parse_devices("all")


def test_what_worker_toml_may_name() -> None:
    assert config("cuda:0", "cuda:1").devices == ("cuda:0", "cuda:1")
    for wrong in (("auto",), ("gpu",), ("../x",), ("cpu",) * 17):
        with pytest.raises(UsageError, match="devices"):
            config(*wrong)


def test_members_have_folders_of_their_own(home: Home) -> None:
    names = [one.name for one in members_of(home, ("cpu", "cuda:1", "cpu"))]
    assert names == ["cpu-0", "cuda-1", "cpu-1"]


# ---- limits ----------------------------------------------------------------------------

OF_THE_MACHINE = (
    "threads",
    "memory_mib",
    "disk_mib",
    "upload_kbit_s",
    "download_kbit_s",
    "daily_mib",
)


def test_members_together_take_what_one_might() -> None:
    limits = Limits(
        threads=7,
        memory_mib=8001,
        disk_mib=100_001,
        upload_kbit_s=999,
        download_kbit_s=50,
        daily_mib=10,
        gpu_power_w=200,
        gpu_memory_percent=50,
        free_disk_mib=5000,
        schedule=("mon-fri 22:00-07:00",),
        busy_cpu_percent=25,
    )
    parts = divide(limits, 3)
    for name in OF_THE_MACHINE:
        given = [getattr(part, name) for part in parts]
        assert sum(given) <= getattr(limits, name)
        assert sum(given) > getattr(limits, name) - 3
        assert min(given) > 0
    assert [part.threads for part in parts] == [3, 2, 2]
    for one in fields(Limits):
        if one.name not in OF_THE_MACHINE:
            assert {getattr(part, one.name) for part in parts} == {getattr(limits, one.name)}


def test_no_limit_stays_none_and_a_small_one_never_becomes_none() -> None:
    assert [part.memory_mib for part in divide(Limits(threads=4), 2)] == [0, 0]
    assert [part.daily_mib for part in divide(Limits(threads=4, daily_mib=1), 4)] == [1] * 4


def test_less_than_a_thread_for_each_is_refused() -> None:
    with pytest.raises(UsageError, match="allow more threads, or name fewer devices"):
        divide(Limits(threads=1), 2)
    assert [part.threads for part in divide(Limits(), 1)] == [Limits().cpu_threads]


# ---- folders and keys ------------------------------------------------------------------


def test_settings_are_the_owners_and_made_anew(home: Home) -> None:
    ours = config(
        "cuda:0",
        "cpu",
        name="Ada",
        evidence_mib=100,
        invite="token",
        listen=("/ip4/0.0.0.0/tcp/31337", "/ip4/0.0.0.0/udp/31337/quic-v1"),
        announce=("/ip4/1.2.3.4/tcp/31337",),
        confirmed=False,
    )
    first, second = write_members(home, ours)
    key = second.home.identity.read_bytes()
    a, b = (WorkerConfig.load(one.home.config) for one in (first, second))
    assert (a.device, b.device) == ("cuda:0", "cpu")
    assert a.devices == b.devices == ()
    assert (a.members, a.evidence_mib, a.invite, a.name, a.confirmed) == (2, 50, "token", "", False)
    assert a.listen == ours.listen
    assert b.listen == ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1")
    assert (a.announce, b.announce) == (ours.announce, ())
    write_members(home, ours.with_options(confirmed=True).with_limits(threads=2))
    assert WorkerConfig.load(second.home.config).confirmed
    assert WorkerConfig.load(second.home.config).limits.threads == 1
    assert second.home.identity.read_bytes() == key


def test_one_donor_vouches_for_each_once(home: Home, tmp_path: Path) -> None:
    environment = {"BARNRAISE_DONOR_HOME": str(tmp_path / "donor")}
    members = write_members(home, config())
    keys = vouch_for_members(members, environment)
    donor = Identity.load(tmp_path / "donor" / "donor.key").peer_id
    found = [delegation.load(one.home) for one in members]
    assert [(one.donor, one.worker) for one in found if one] == [
        (donor, keys["cpu-0"]),
        (donor, keys["cpu-1"]),
    ]
    assert len({*keys.values(), donor}) == 3
    lines = [one.home.delegation.read_bytes() for one in members]
    assert vouch_for_members(members, environment) == keys
    assert [one.home.delegation.read_bytes() for one in members] == lines


def test_a_member_that_works_for_another_donor_goes_on_so(home: Home, tmp_path: Path) -> None:
    members = write_members(home, config())
    vouch_for_members(members, {"BARNRAISE_DONOR_HOME": str(tmp_path / "elsewhere")})
    vouch_for_members(members, {"BARNRAISE_DONOR_HOME": str(tmp_path / "donor")})
    assert not (tmp_path / "donor").exists()


# ---- one status ------------------------------------------------------------------------


def board(name: str, **fields: Any) -> dict[str, Any]:
    said = Board(name, "run")
    for key, value in fields.items():
        setattr(said, key, value)
    return {**said.snapshot(), "device": name}


def test_a_machine_does_what_a_member_does() -> None:
    merged = merge_status(
        [
            board("cuda:0", phase=Phase.PAUSED, reason="the GPU is too hot", tokens_committed=10),
            board(
                "cuda:1",
                phase=Phase.TRAINING,
                reason="",
                tokens_per_s=50.0,
                tokens_committed=7,
                connected=True,
                parts={"energy": {"watt_hours": 2.0, "source": "nvml"}},
            ),
        ]
    )
    assert (merged["phase"], merged["reason"]) == ("training", "")
    assert (merged["tokens_committed"], merged["tokens_per_s"]) == (17, 50.0)
    assert merged["parts"]["energy"] == {"watt_hours": 2.0, "source": "nvml"}
    assert not merged["connected"]
    assert [one["reason"] for one in merged["members"]] == ["the GPU is too hot", ""]


def test_sums_are_of_those_that_tell() -> None:
    def part(left: int | None) -> dict[str, Any]:
        return {"network": {"up_bytes_today": 5, "quota_left_bytes": left}}

    merged = merge_status([board("a", parts=part(100)), board("b", parts=part(None)), board("c")])
    assert merged["parts"]["network"]["up_bytes_today"] == 10
    assert merged["parts"]["network"]["quota_left_bytes"] == 100
    assert merged["parts"]["network"]["up_kbit_s"] is None


def test_the_disk_of_a_machine_is_that_of_all_its_devices() -> None:
    half = {"cache": {"bytes": 3, "files": 1, "limit_bytes": 10, "shards_found": 2}}
    merged = merge_status([board("a", parts=half), board("b", parts=half)])["parts"]["cache"]
    assert (merged["bytes"], merged["limit_bytes"], merged["shards_found"]) == (6, 20, 4)


def test_what_a_person_sees_of_several_devices() -> None:
    shown = {
        label: text.plain
        for label, text in rows(
            merge_status(
                [
                    board("cuda:0", phase=Phase.TRAINING, reason="", tokens_per_s=1234.0),
                    board("cuda:1", reason="waiting for the round to close"),
                ]
            ),
            now_s=0.0,
        )
    }
    assert shown["cuda:0"] == "1,234 tokens/s, training"
    assert shown["cuda:1"] == "0 tokens/s, waiting for the round to close"
    assert "device" not in shown


# ---- processes -------------------------------------------------------------------------


class Yard:
    """A fleet whose members are small programs that do as a file in their folder says."""

    def __init__(self, home: Home, config: WorkerConfig) -> None:
        self.home = home
        self._there = set(psutil.Process().children())  # others' in this process, as a tracker
        config.save(home.config)
        self.members = write_members(home, config)
        self.fleet = Fleet(home, lambda: WorkerConfig.load(home.config), (), ("-P", str(MEMBER)))

    def path(self, name: str, file: str) -> Path:
        return self.home.path / "devices" / name / file

    def processes(self) -> list[psutil.Process]:
        """The fleet's, while it runs in this process."""
        return [child for child in psutil.Process().children() if child not in self._there]

    def plan(self, name: str, *ends: int) -> None:
        """How each life of a member ends: by an exit code at once; after these it stays."""
        self.path(name, "plan").write_text(json.dumps(ends))

    def said(self, name: str) -> list[str]:
        """What a member was told, and what it did."""
        try:
            return self.path(name, "said").read_text().split()
        except FileNotFoundError:
            return []

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 - files of other processes
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.fleet.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()

    async def up(self, *counts: int) -> None:
        """Until each member was started so often, and answers."""
        for one, count in zip(self.members, counts, strict=True):
            await self.until(lambda one=one, count=count: self.said(one.name).count("up") >= count)


@pytest.fixture
def yard(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    monkeypatch.setattr(fleet, "backoff_s", lambda *_args, **_options: 0.01)
    monkeypatch.setattr(fleet, "_LOOK_S", 0.05)
    yard = Yard(home, config())
    yield yard
    assert not yard.processes(), "members are left"


async def test_finish_reaches_all_and_the_fleet_ends_with_them(yard: Yard) -> None:
    async with yard.running() as task:
        await yard.up(1, 1)
        answer = await asyncio.to_thread(ask, yard.home, "finish")
        assert len(answer["status"]["members"]) == 2
        await task
    assert yard.said("cpu-0") == yard.said("cpu-1") == ["up", "SIGINT"]
    assert not yard.home.socket.exists()


async def test_ctrl_c_finishes_and_a_second_one_stops(yard: Yard) -> None:
    for name in ("cpu-0", "cpu-1"):
        yard.path(name, "stubborn").touch()  # a unit takes its time
    async with yard.running() as task:
        await yard.up(1, 1)
        os.kill(os.getpid(), signal.SIGINT)
        await yard.until(lambda: all("SIGINT" in yard.said(n) for n in ("cpu-0", "cpu-1")))
        assert not task.done()
        os.kill(os.getpid(), signal.SIGINT)
        await task
    assert yard.said("cpu-0") == ["up", "SIGINT", "SIGTERM"]


async def test_a_member_that_dies_comes_back_and_one_that_ended_does_not(yard: Yard) -> None:
    yard.plan("cpu-0", 1, -9)
    yard.plan("cpu-1", 0)
    async with yard.running() as task:
        await yard.up(3, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        await task
    assert yard.said("cpu-0") == ["up", "up", "up", "SIGTERM"]
    assert yard.said("cpu-1") == ["up"]


async def test_a_member_that_needs_a_person_is_not_tried_again(yard: Yard) -> None:
    yard.plan("cpu-0", 2)
    async with yard.running() as task:
        await yard.up(1, 1)
        await yard.until(lambda: "could not go on" in yard.fleet.status()["members"][0]["reason"])
        yard.fleet.finish()
        with pytest.raises(UsageError, match="cpu-0 could not go on"):
            await task
    assert yard.said("cpu-0") == ["up"]


async def test_what_is_said_while_a_member_starts_reaches_it(yard: Yard) -> None:
    yard.path("cpu-0", "late").touch()  # its socket is not there yet
    async with yard.running():
        await yard.up(1, 1)
        await asyncio.to_thread(ask, yard.home, "pause")
        await yard.until(lambda: "pause" in yard.said("cpu-1"))
        assert "pause" not in yard.said("cpu-0")
        yard.path("cpu-0", "late").unlink()
        await yard.until(lambda: "pause" in yard.said("cpu-0"))
        await yard.until(lambda: bool(yard.fleet.status()["paused"]))
        await asyncio.to_thread(ask, yard.home, "resume")
        await yard.until(lambda: all("resume" in yard.said(n) for n in ("cpu-0", "cpu-1")))
        await yard.until(lambda: not yard.fleet.status()["paused"])


async def test_changed_limits_are_divided_before_members_hear_of_them(yard: Yard) -> None:
    async with yard.running():
        await yard.up(1, 1)
        config(limits=Limits(threads=2, daily_mib=100)).save(yard.home.config)
        yard.fleet.handle("reload", {})
        await yard.until(lambda: all("reload" in yard.said(n) for n in ("cpu-0", "cpu-1")))
        found = WorkerConfig.load(yard.members[1].home.config).limits
        assert (found.threads, found.daily_mib) == (1, 50)


async def test_settings_that_cannot_be_divided_change_nothing(yard: Yard) -> None:
    async with yard.running():
        await yard.up(1, 1)
        config(limits=Limits(threads=1)).save(yard.home.config)
        with pytest.raises(UsageError, match="thread"):  # the owner is told
            await asyncio.to_thread(ask, yard.home, "reload")
        yard.home.config.write_text("spoilt")
        with pytest.raises(UsageError, match="damaged"):
            await asyncio.to_thread(ask, yard.home, "reload")
        await asyncio.to_thread(ask, yard.home, "resume")  # which goes by the settings, too
        await yard.until(lambda: "resume" in yard.said("cpu-0"))
        assert "reload" not in yard.said("cpu-0")
        assert WorkerConfig.load(yard.members[0].home.config).limits.threads == 2


async def test_the_members_of_a_fleet_that_is_cancelled_end_too(yard: Yard) -> None:
    async with yard.running() as task:
        await yard.up(1, 1)
        children = yard.processes()
        assert len(children) == 2
        task.cancel()
        await asyncio.wait([task])
    assert not any(child.is_running() for child in children)


async def test_the_members_of_a_fleet_that_is_killed_end_too(yard: Yard) -> None:
    program = (sys.executable, "-P", str(MEMBER), "--fleet", str(yard.home.path))
    killed = await asyncio.create_subprocess_exec(*program)
    await yard.up(1, 1)
    children = psutil.Process(killed.pid).children()
    killed.kill()
    await killed.wait()
    await yard.until(lambda: not any(child.is_running() for child in children))
    assert [yard.said(one.name)[-1] for one in yard.members] == ["SIGTERM", "SIGTERM"]


async def test_a_member_that_refuses_is_not_asked_again(yard: Yard) -> None:
    yard.path("cpu-0", "refuses").touch()
    async with yard.running():
        await yard.up(1, 1)
        yard.fleet.handle("pause", {"for_s": 60})
        yard.fleet.handle("resume", {})
        await yard.until(lambda: "resume" in yard.said("cpu-1"))
        await yard.until(lambda: bool(yard.fleet.status()["members"][0]["connected"]))
        assert yard.said("cpu-0").count("resume") <= 1


async def test_one_fleet_at_a_time(yard: Yard) -> None:
    async with yard.running():
        await yard.up(1, 1)
        with pytest.raises(UsageError, match=r"runs in .* already"):
            await Fleet(yard.home, config).run()


async def test_members_see_nothing_of_the_fleets_environment(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BARNRAISE_LIMITS_THREADS", "64")
    async with yard.running():
        await yard.up(1, 1)
    assert "BARNRAISE" not in yard.path("cpu-0", "environment").read_text()
