"""Runs in a small internet of network namespaces: homes behind address translation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_net_run import NetRun, event, events, open_run

from protocol.envelope import open_envelope, parse_envelope
from protocol.wire import records_pb2 as wire

# Generous: a dozen processes load torch, perhaps on a machine that is busy otherwise.
pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

PORT = 31337


@pytest.fixture
def run(tmp_path: Path) -> Iterator[NetRun]:
    with open_run(tmp_path) as opened:
        yield opened


def test_everybody_finds_out_what_they_are_and_all_are_merged(run: NetRun) -> None:
    laptop = run.internet.home("home1").computer("laptop")
    desktop = run.internet.home("home2", random_ports=True).computer("desktop")
    opened = run.internet.home("home3")
    tower = opened.computer("tower")
    opened.forward(PORT, tower)
    obliging = run.internet.home("home4")
    box = obliging.computer("box")
    run.init(max_rounds=2, min_members=5)
    run.serve()
    run.join("ada", laptop)
    run.join("bob", desktop, "--client-mode")
    run.join("cy", tower, "--listen", f"/ip4/0.0.0.0/tcp/{PORT}")
    run.join("dee", run.internet.host("server"))
    run.join("eve", box, "--nat-port-map")
    with obliging.giving_ports():
        run.work("eve").wait_for(event("reachability", mode="direct"))
        workers = [run.work(name) for name in ("ada", "bob", "cy", "dee")]
        run.finish()

    # Nobody told ada: she found out that nobody reaches her, and says so once.
    ada, bob, cy, dee = (events(worker.text(), "reachability") for worker in workers)
    assert [line["mode"] for line in (*ada, *bob, *cy, *dee)] == [
        *("client-mode", "client-mode", "direct", "direct")
    ]
    assert laptop.public in ada[0]["why"] and "nobody can connect" in ada[0]["why"]
    assert run.known("ada") == (True, [])
    assert run.known("bob") == (True, [])
    # The router's address, which no computer behind it knows, comes first.
    client_mode, addresses = run.known("cy")
    assert not client_mode
    assert addresses[0].startswith(f"/ip4/{tower.public}/tcp/{PORT}/p2p/")
    # The port that her router gave her.
    client_mode, addresses = run.known("eve")
    assert not client_mode
    assert addresses[0].startswith(f"/ip4/{box.public}/tcp/")
    assert run.reducers()[1] == {"anchor", "cy", "dee", "eve"}
    run.check(members=5, rounds=2)


def test_nothing_but_laptops_behind_routers_and_one_anchor(run: NetRun) -> None:
    home = run.internet.home("home1")
    laptop, desktop = home.computer("laptop"), home.computer("desktop")
    other = run.internet.home("home2", random_ports=True).computer("other")
    run.init(max_rounds=2, min_members=3)
    run.serve()
    for name, host in {"ada": laptop, "bob": desktop, "cy": other}.items():
        run.join(name, host)
    ada = run.work("ada")
    ada.wait_for(event("training"))
    status = json.loads(run.command("ada", "status", "--json").stdout)
    assert status["reachability"] == "client-mode"
    assert home.address in status["reachability_reason"]
    doctor = run.command("ada", "doctor").stdout
    # About the port of the worker that runs, with what its owner could do.
    why = f"nobody can connect to {home.address} on TCP port {status['ports'][0]}"
    assert f"client-mode: {why}" in doctor
    assert f"forward TCP port {PORT} of your router to {laptop.address}" in doctor
    for name in ("bob", "cy"):
        run.work(name)
    run.finish()
    assert run.reducers() == {0: {"anchor"}, 1: {"anchor"}}
    run.check(members=3, rounds=2)


def test_addresses_change_in_the_middle_of_a_round(run: NetRun) -> None:
    laptop = run.internet.home("home1").computer("laptop")
    desktop = run.internet.home("home2").computer("desktop")
    server = run.internet.host("server")
    run.init(max_rounds=3, min_members=3, max_steps=60)
    run.serve()
    for name, host in {"ada": laptop, "bob": desktop, "cy": server}.items():
        run.join(name, host)
        run.work(name)
    for worker in run.workers.values():
        worker.wait_for(event("training"))
    assert desktop.home is not None
    laptop.move_to("192.168.1.77")  # another lease of its router's
    desktop.home.move_to(run.internet.free_address())  # another one of the provider's
    before = server.address
    server.move_to(run.internet.free_address())
    run.finish()
    run.check(members=3, rounds=3)
    client_mode, addresses = run.known("cy")
    assert not client_mode
    assert addresses[0].startswith(f"/ip4/{server.address}/tcp/")
    assert not [address for address in addresses if before in address]
    assert [run.known(name) for name in ("ada", "bob")] == [(True, [])] * 2
    assert "cy" in run.reducers()[2]


def test_two_that_cannot_reach_each_other(run: NetRun) -> None:
    hosts = {name: run.internet.host(name) for name in ("cy", "dee")}
    run.internet.partition([hosts["cy"]], [hosts["dee"]])
    run.init(max_rounds=2, min_members=2)
    run.serve()
    for name, host in hosts.items():
        run.join(name, host)
        run.work(name)
    run.finish()
    # Each is reached by the coordinator, so both were asked to reduce for the other at first.
    ((first,),) = run.rows("SELECT envelope FROM rosters WHERE round = 0 AND attempt = 1")
    roster = open_envelope(parse_envelope(first), wire.Roster).record
    assert len(roster.reducers) == 3
    run.check(members=2, rounds=2)
