"""What a worker makes of the answer to "can you reach me?"."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import RateLimited, UsageError
from protocol.identity import Identity
from protocol.wire import service_pb2 as api
from worker import reachability
from worker.config import WorkerConfig
from worker.reachability import (
    TRUSTED,
    Mode,
    Reach,
    Reachability,
    measure,
    ports_of,
    told_to_others,
)
from worker.status import Board

LINK = f"barnraise://localhost:7443/{'0' * 64}#root={Identity.from_seed(bytes(32)).peer_id}"
HERE = ["/ip4/192.168.1.2/tcp/31337/p2p/me", "/ip4/127.0.0.1/tcp/31337/p2p/me"]


class Coordinator:
    """Stands for the session: answers, or fails, as told."""

    def __init__(self, *answers: api.DialBackReply | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[list[int]] = []
        self.reconnected = 0

    async def dial_back(self, ports: list[int]) -> api.DialBackReply:
        self.asked.append(list(ports))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def reconnect(self) -> None:
        self.reconnected += 1


class Peers:
    """Stands for the swarm."""

    peer_id = "me"

    def __init__(self) -> None:
        self.in_dht: list[bool] = []
        self.dropped = 0

    async def multiaddrs(self) -> list[str]:
        return HERE

    async def serve_dht(self, reachable: bool) -> None:
        self.in_dht.append(reachable)

    async def drop_connections(self) -> None:
        self.dropped += 1


def reachable(*ports: int) -> api.DialBackReply:
    return api.DialBackReply(address="203.0.113.7", reachable=ports)


def make(choice: Any, *answers: api.DialBackReply | Exception, **options: Any) -> Any:
    session, swarm = Coordinator(*answers), Peers()
    made = Reachability(choice, session, swarm, Board("me", "run"), **options)  # type: ignore[arg-type]
    return made, session, swarm


async def test_reached_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "own_hosts", lambda: frozenset({"192.168.1.2", "127.0.0.1"}))
    made, session, swarm = make("auto", reachable(31337))
    await made.start()
    assert session.asked == [[31337]]
    assert made.reach.mode == Mode.DIRECT
    assert swarm.in_dht == [True]
    assert await made.addresses() == ["/ip4/203.0.113.7/tcp/31337/p2p/me", HERE[0]]
    assert made.board.reachability == "direct"


async def test_reached_by_nobody() -> None:
    made, _, swarm = make("auto", reachable())
    await made.start()
    assert made.reach.mode == Mode.CLIENT
    assert made.reach.why == "nobody can connect to 203.0.113.7 on TCP port 31337"
    assert swarm.in_dht == [False]
    assert await made.addresses() == []


async def test_a_port_that_was_not_asked_for_counts_for_nothing() -> None:
    assert (await measure(Coordinator(reachable(22)), [31337])).mode == Mode.CLIENT  # type: ignore[arg-type]


async def test_as_long_as_nobody_can_say_it_is_not_told_of() -> None:
    made, _, _ = make("auto", RateLimited("later"))
    await made.start()
    assert (made.reach.mode, made.reach.final) == (Mode.CLIENT, False)


async def test_an_older_coordinator_is_dealt_with_as_before() -> None:
    made, _, _ = make("auto", UsageError("does not know this call"))
    await made.start()
    assert made.reach.mode == Mode.DIRECT
    assert "too old" in made.reach.why


@pytest.mark.parametrize(("choice", "mode"), [(True, Mode.CLIENT), (False, Mode.DIRECT)])
async def test_the_owner_decides(choice: bool, mode: Mode) -> None:
    made, session, _ = make(choice)
    await made.start()
    assert made.reach.mode == mode
    assert session.asked == []


async def test_another_address_is_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"hosts": frozenset({"192.168.1.2"})}
    monkeypatch.setattr(reachability, "own_hosts", lambda: here["hosts"])
    monkeypatch.setattr(reachability, "LOOK_S", 0.01)
    made, session, swarm = make("auto", reachable(31337), reachable())
    await made.start()
    here["hosts"] = frozenset({"10.0.0.9"})
    await made.ask_again()
    assert swarm.in_dht == [True, False]
    assert (swarm.dropped, session.reconnected) == (1, 1)


async def test_it_is_asked_again_when_the_coordinator_is_back() -> None:
    made, session, _ = make("auto", reachable(), reachable(31337))
    await made.start()
    made.connected()  # the first time, right after the first measurement
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await made.ask_again()
    made.connected()
    await made.ask_again()
    assert made.reach.direct
    assert len(session.asked) == 2


async def test_a_question_that_is_not_answered_changes_nothing() -> None:
    made, session, _ = make("auto", reachable(31337), RateLimited("later"))
    await made.start()
    made.connected()
    made.connected()
    await made.ask_again()
    assert len(session.asked) == 2
    assert made.reach.direct


def test_which_ports_are_asked_for() -> None:
    many = [f"/ip4/10.0.0.1/tcp/{port}" for port in (80, 4001, 4001, 4002, 4003, 4004, 4005)]
    assert ports_of([*many, "/ip4/10.0.0.1/udp/5000/quic-v1"]) == [4001, 4002, 4003, 4004]


def test_addresses_that_are_gone_are_not_told() -> None:
    reach = Reach(Mode.DIRECT, "", "2001:db8::7", (4001,))
    seen = ["/ip4/192.168.1.2/tcp/4001/p2p/me", "/ip4/192.168.1.3/tcp/4001/p2p/me"]
    told = told_to_others(seen, reach, frozenset({"192.168.1.3"}), "me")
    assert told == ["/ip6/2001:db8::7/tcp/4001/p2p/me", seen[1]]


def test_what_was_not_measured_may_be_a_routers() -> None:
    router, gone = "/ip4/1.2.3.4/tcp/4001/p2p/me", "/ip4/192.168.1.9/tcp/4001/p2p/me"
    told = told_to_others([router, gone, *HERE], TRUSTED, frozenset({"192.168.1.2"}), "me")
    assert told == [router, HERE[0]]


def test_on_one_machine_the_loopback_address_is_told() -> None:
    reach = Reach(Mode.DIRECT, "", "127.0.0.1", (31337,))
    told = told_to_others(HERE, reach, frozenset({"127.0.0.1", "192.168.1.2"}), "me")
    assert told == ["/ip4/127.0.0.1/tcp/31337/p2p/me", HERE[0]]


@pytest.mark.parametrize("value", ['"auto"', "true", "false"])
def test_client_mode_in_the_configuration(tmp_path: Path, value: str) -> None:
    path = tmp_path / "worker.toml"
    path.write_text(f'link = "{LINK}"\nclient_mode = {value}\n')
    config = WorkerConfig.load(path)
    config.save(path)
    assert f"client_mode = {value}\n" in path.read_text()
    assert WorkerConfig.load(path) == config


@pytest.mark.parametrize("value", ["1", '"yes"', "[]"])
def test_client_mode_is_one_of_three(tmp_path: Path, value: str) -> None:
    path = tmp_path / "worker.toml"
    path.write_text(f'link = "{LINK}"\nclient_mode = {value}\n')
    with pytest.raises(UsageError, match="client_mode"):
        WorkerConfig.load(path)
