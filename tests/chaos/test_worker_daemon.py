"""The peer-to-peer daemon is killed under a peer, at exact moments; the peer goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from chaos_peers import LocalPeer, Peers, Reduce, daemons

from protocol.envelope import seal
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire
from worker import membership
from worker.p2pd import same_ports

pytestmark = [pytest.mark.swarm, pytest.mark.asyncio(loop_scope="module")]

LAYOUT = ChunkLayout(24 * 1024, 1024)  # 24 chunks, 8 for each of three reducers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Peers]:
    async with asyncio.TaskGroup() as tasks:
        made = Peers(tmp_path_factory.mktemp("peers"), tasks)
        try:
            anchor = await made.join()
            await made.join(anchor)
            await made.join(anchor)
            yield made
        finally:
            await made.close()


def kill_at(owner: Any, name: str, nth: int, victim: LocalPeer) -> list[int]:
    """Kill the victim's daemon when ``owner.name`` is called for the ``nth`` time.

    Returns:
        Grows at each call.
    """
    calls: list[int] = []
    original: Callable[..., Any] = getattr(owner, name)

    def calling(*arguments: Any, **named: Any) -> Any:
        calls.append(len(calls) + 1)
        if calls[-1] == nth:
            victim.kill_daemon()
        return original(*arguments, **named)

    setattr(owner, name, calling)
    return calls


@pytest.mark.parametrize("whose", ["the reducer's", "a sender's"])
async def test_a_gather_goes_on_when_a_daemon_dies_in_it(peers: Peers, whose: str) -> None:
    reduce = Reduce.begin(peers, peers.all, LAYOUT)
    reducer, sender = peers.all[1], peers.all[2]
    victim = reducer if whose == "the reducer's" else sender
    kept = reduce.groups[1].reducer
    assert kept is not None
    before, known = victim.daemon_pid, len(victim.problems)
    calls = kill_at(kept, "_keep", 5, victim)
    await reduce.gather()
    assert len(calls) >= 5
    results = await reduce.finish(peers)
    assert len({result.mean_update.tobytes() for result in results}) == 1
    await victim.changes(known + 2)
    assert victim.daemon_pid != before
    # The roster names the address that it had: it has it again.
    assert await victim.swarm.multiaddrs() == victim.addresses
    reduce.close()


async def test_a_broadcast_goes_on_when_a_daemon_dies_in_it(peers: Peers) -> None:
    reduce = Reduce.begin(peers, peers.all, LAYOUT)
    await reduce.gather()
    victim = peers.all[1]
    known = len(victim.problems)
    calls = kill_at(reduce.groups[0], "add_piece", 3, victim)
    results = await reduce.finish(peers)
    assert len(calls) >= 3
    assert len({result.mean_update.tobytes() for result in results}) == 1
    await victim.changes(known + 2)
    assert not victim.problems[-1]
    reduce.close()


async def test_the_anchors_daemon_dies_and_all_find_it_again(peers: Peers) -> None:
    anchor, other = peers.all[0], peers.all[1]
    head = wire.RunHead(run_id=peers.rig.run_id, round=7, issued_at_ms=anchor.swarm._clock_ms())
    assert await anchor.swarm.publish_head(seal(head, peers.rig.round_key))
    known = len(anchor.problems)
    anchor.kill_daemon()
    await anchor.changes(known + 1)
    # Nothing that needs the daemon fails while it is away: it waits, or says that it has nothing.
    assert await anchor.swarm.multiaddrs() == anchor.addresses
    assert await anchor.swarm.get_head() is None
    assert not await anchor.swarm.publish_head(seal(head, peers.rig.round_key))
    assert not await anchor.swarm.membership.in_touch()
    await anchor.swarm.connect(other.addresses[0])
    await anchor.changes(known + 2)
    await other.swarm.membership.enter_again()
    assert await other.swarm.membership.in_touch() == [anchor.peer_id]
    # What others had stored with it is there still.
    assert await other.swarm.get_head() is not None


async def test_a_port_that_is_taken_meanwhile_costs_the_port(peers: Peers) -> None:
    victim = await peers.join(peers.all[0])
    port = int(victim.addresses[0].split("/")[4])
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        victim.at_change = lambda: take(thief, port)
        await victim.dies_and_comes_back()
    assert await victim.swarm.multiaddrs() not in ([], victim.addresses)


def take(thief: socket.socket, port: int) -> None:
    """Called when the daemon has died and before it is started again."""
    if not thief.getsockname()[1]:
        thief.bind(("127.0.0.1", port))
        thief.listen()


async def test_a_daemon_that_cannot_start_is_tried_with_back_off_and_says_why(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[int] = []

    def short(failures: int, *, base_s: float, limit_s: float) -> float:
        assert limit_s == membership.LONGEST_PAUSE_S
        pauses.append(failures)
        return base_s / 10

    monkeypatch.setattr(membership, "backoff_s", short)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    victim = await peers.join(peers.all[0], listen=f"/ip4/127.0.0.1/tcp/{port}")
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        victim.at_change = lambda: take(thief, port)
        victim.kill_daemon()
        await victim.changes(4)  # that it died, and three starts that failed
        victim.at_change = lambda: None
    while victim.problems[-1]:
        await victim.changes(len(victim.problems) + 1)
    assert pauses[:3] == [1, 2, 3]
    assert "killed by signal 9" in victim.problems[0]
    assert "--listen" in victim.problems[1]  # says what a person can do about it
    assert await victim.swarm.multiaddrs() == victim.addresses


async def test_the_end_in_the_middle_of_a_restart_leaves_nothing(peers: Peers) -> None:
    before = daemons()
    for moment in range(3):
        victim = await peers.join(peers.all[0])
        sockets = Path(tempfile.gettempdir()) / f"barnraise-{victim.peer_id[-20:]}"
        assert sockets.exists()
        victim.kill_daemon()
        await victim.changes(1)
        if moment:  # a new daemon is there, and has not answered yet
            while not daemons() - before:  # noqa: ASYNC110  # its start raises no event here
                await asyncio.sleep(0)
        assert victim.keeping is not None
        victim.keeping.cancel()
        if moment == 2:  # whoever is in a hurry says it twice
            await asyncio.sleep(0)
            victim.keeping.cancel()
        await asyncio.wait([victim.keeping])
        await victim.swarm.shutdown()
        assert daemons() == before
        assert not sockets.exists()


async def test_a_daemon_that_stands_still_is_ended_all_the_same(peers: Peers) -> None:
    before = daemons()
    victim = await peers.join(peers.all[0])
    os.kill(victim.daemon_pid, signal.SIGSTOP)
    await victim.close()
    assert daemons() == before


async def test_ctrl_c_reaches_no_daemon_the_next_one_neither(peers: Peers) -> None:
    """A terminal sends it to the process group of the worker."""
    victim = await peers.join(peers.all[0])
    for _ in range(2):
        assert os.getpgid(victim.daemon_pid) != os.getpgrp()
        await victim.dies_and_comes_back()


@pytest.mark.parametrize(
    ("listen", "addresses", "expected"),
    [
        (["/ip4/127.0.0.1/tcp/0"], ["/ip4/127.0.0.1/tcp/7/p2p/Q"], ["/ip4/127.0.0.1/tcp/7"]),
        (
            ["/ip4/0.0.0.0/tcp/0"],
            ["/ip4/127.0.0.1/tcp/7/p2p/Q", "/ip4/10.0.0.2/tcp/7/p2p/Q", "/ip4/1.2.3.4/tcp/9/p2p/Q"],
            ["/ip4/0.0.0.0/tcp/7"],
        ),
        (["/ip6/::/tcp/0"], ["/ip6/::1/tcp/7/p2p/Q"], ["/ip6/::/tcp/7"]),
        (["/ip4/0.0.0.0/udp/0/quic"], ["/ip4/127.0.0.1/udp/7/quic"], ["/ip4/0.0.0.0/udp/7/quic"]),
        (["/ip4/127.0.0.1/tcp/5"], ["/ip4/127.0.0.1/tcp/7"], ["/ip4/127.0.0.1/tcp/5"]),
        (["/ip4/127.0.0.1/tcp/0"], [], ["/ip4/127.0.0.1/tcp/0"]),
        (
            ["/ip4/127.0.0.1/tcp/0"],
            ["/ip4/127.0.0.1/tcp/7/p2p/Q/p2p-circuit"],
            ["/ip4/127.0.0.1/tcp/0"],
        ),
        (  # which is which, nobody can tell
            ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0"],
            ["/ip4/127.0.0.1/tcp/7", "/ip4/127.0.0.1/tcp/8"],
            ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0"],
        ),
    ],
)
async def test_ports_that_the_kernel_chose_are_kept(
    listen: list[str], addresses: list[str], expected: list[str]
) -> None:
    assert list(same_ports(listen, addresses)) == expected
