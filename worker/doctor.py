"""``worker doctor``: what works here, and how to mend what does not.

Each check is independent of the others' success where it can be, ends within seconds, and leaves
nothing behind.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from protocol.channel import fetch_certificate, trusted_certificate
from protocol.errors import ProtocolError, UpgradeNeeded, UsageError
from protocol.hello import UPGRADE_COMMAND
from protocol.identity import Identity
from worker import delegation
from worker.config import Home, WorkerConfig
from worker.control import ask
from worker.devices import pick_device
from worker.reachability import BY_CHOICE, Mode, measure, ports_of
from worker.sensors.machine import Sensors
from worker.session import Session
from worker.sizes import size_text
from worker.swarm import Swarm
from worker.view import headline

_MAX_CLOCK_ERROR_S = 60.0
_MIN_FREE_BYTES = 1 << 30
_NOT_RUNNING = "not running"
_EXAMPLE_PORT = 31337
_SPEED_SIZE = 512
_SPEED_S = 0.5


@dataclass(frozen=True)
class Check:
    """One finding. ``fix`` says what to do when it is not ``ok``, ``hint`` what else one can do."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    hint: str = ""


async def examine(home: Home, config: WorkerConfig) -> AsyncIterator[Check]:
    """All checks, as they complete."""
    yield _key(home)
    for check in _donor(home):
        yield check
    reachable = await _reachable(config)
    yield reachable
    if reachable.ok:
        async for check in _run(home, config):
            yield check
    yield _disk(home)
    yield await asyncio.to_thread(_limits, home, config)
    yield await asyncio.to_thread(_device, config)
    yield await asyncio.to_thread(_running, home)


async def _run(home: Home, config: WorkerConfig) -> AsyncIterator[Check]:
    """What can be seen only where the coordinator answers."""
    pinned = await _pinned(config)
    yield pinned
    if not pinned.ok:
        return
    identity = Identity.generate()  # a throw-away: the real one may be in use by the daemon
    try:
        session = await Session.connect(config.join_link, identity)
    except UpgradeNeeded as error:
        yield Check("version", False, str(error), UPGRADE_COMMAND)
        return
    except ProtocolError as error:
        yield Check("hello", False, str(error), "ask the organiser for the current join link")
        return
    try:
        yield Check("hello", True, f"run {session.greeting.manifest.name}")
        yield _clock(session)
        async for check in _network(home, config, identity, session):
            yield check
    finally:
        await session.close()


def _key(home: Home) -> Check:
    try:
        identity = Identity.load(home.identity)
    except ProtocolError as error:
        fix = "move the file away if it is there, then run 'barnraise worker join LINK' again"
        return Check("key", False, str(error), fix)
    return Check("key", True, identity.peer_id)


def _donor(home: Home) -> list[Check]:
    """Whom this device works for, where that is not its own key."""
    try:
        vouched = delegation.load(home)
        if vouched is None:
            return []
        delegation.check_worker(vouched, Identity.load(home.identity).peer_id)
    except ProtocolError as error:
        fix = "give the donor's line again: 'barnraise worker delegation LINE'"
        return [Check("donor", False, str(error), fix)]
    problem = delegation.trouble(vouched.worker, vouched.not_after_s, time.time())
    detail = f"{vouched.donor}, until {delegation.day(vouched.not_after_s)}"
    if vouched.not_after_s < time.time():
        return [Check("donor", False, detail, problem)]
    return [Check("donor", True, detail, hint=problem)]


async def _reachable(config: WorkerConfig) -> Check:
    link = config.join_link
    try:
        await fetch_certificate(link)
    except ProtocolError as error:
        fix = "check this machine's network, its firewall for outbound TCP, and the link's address"
        return Check("coordinator", False, str(error), fix)
    return Check("coordinator", True, link.address)


async def _pinned(config: WorkerConfig) -> Check:
    try:
        await trusted_certificate(config.join_link)
    except ProtocolError as error:
        fix = "do not go on; get the join link from the organiser by a way that you trust"
        return Check("certificate", False, str(error), fix)
    return Check("certificate", True, f"vouched for by {config.join_link.root}")


def _clock(session: Session) -> Check:
    error_s = session.clock.error_s
    detail = f"{error_s:+.1f} s against the coordinator"
    fix = "switch on network time (timedatectl set-ntp true)"
    return Check("clock", abs(error_s) <= _MAX_CLOCK_ERROR_S, detail, fix)


async def _network(
    home: Home, config: WorkerConfig, identity: Identity, session: Session
) -> AsyncIterator[Check]:
    anchors = list(session.greeting.anchors)
    # A worker that works holds its own port.
    listen = ("/ip4/0.0.0.0/tcp/0",) if await _ports_held(home) else config.listen
    with tempfile.TemporaryDirectory(prefix="barnraise-doctor-") as folder:
        path = Path(folder) / "doctor.key"
        identity.save(path)
        try:
            swarm = await Swarm.create(
                identity_path=path,
                identity=identity,
                run_id=config.join_link.run_id,
                trust=session.trust,
                initial_peers=[],
                client_mode=False,
                listen=listen,
                clock_ms=session.now_ms,
            )
        except UsageError as error:
            yield Check("p2pd", False, str(error), f"correct listen in {home.config}")
            return
        except ProtocolError as error:
            fix = "p2pd comes with hivemind: reinstall barnraise; allow it in the firewall"
            yield Check("p2pd", False, str(error), fix)
            return
        try:
            yield Check("p2pd", True, "starts and listens")
            yield await _anchor(swarm, anchors)
            yield await _reach(home, config, session, await swarm.multiaddrs())
        finally:
            await swarm.shutdown()


async def _anchor(swarm: Swarm, anchors: list[str]) -> Check:
    if not anchors:
        return Check("anchor", False, "the run has none up now", "wait, or tell the organiser")
    problem = ""
    for address in anchors:
        try:
            await swarm.connect(address)
        except ProtocolError as error:
            problem = str(error)
        else:
            return Check("anchor", True, address)
    return Check("anchor", False, problem, "allow outbound TCP to the anchor's address and port")


async def _reach(home: Home, config: WorkerConfig, session: Session, addresses: list[str]) -> Check:
    """Direct or client mode: measured on the port of the worker that works, else on our own."""
    if config.client_mode is True:
        return Check("reachable", True, f"{Mode.CLIENT}: {BY_CHOICE.why}")
    ports = await _ports_held(home) or ports_of(addresses)
    reach = await measure(session, ports)
    detail = f"{reach.mode}: {reach.why}"
    if reach.direct:
        return Check("reachable", True, detail)
    fix = how_to_be_reached(config, ports, reach.address)
    if config.client_mode is False:
        return Check("reachable", False, f"others are told of this machine, but {reach.why}", fix)
    detail += "; nothing is lost: this worker opens the connections"
    return Check("reachable", True, detail, hint=fix)


def how_to_be_reached(config: WorkerConfig, ports: Sequence[int], public: str) -> str:
    """What the owner can do so that others can connect, with the numbers of this machine."""
    port, steps = ports[0] if ports else _EXAMPLE_PORT, []
    if any(text.endswith("/tcp/0") for text in config.listen):
        port = _EXAMPLE_PORT
        steps.append(f'set listen = ["/ip4/0.0.0.0/tcp/{port}"] in worker.toml')
    steps.append(f"let TCP port {port} in at this machine's firewall (ufw allow {port}/tcp)")
    here = _address_towards(config)
    if public != here:
        steps.append(f"forward TCP port {port} of your router to {here or 'this machine'}")
    by_hand = f"{'; '.join(steps)}; then start the worker again"
    if public == here or config.nat_port_map:
        return f"to be reached: {by_hand}"
    asking = "set nat_port_map = true in worker.toml, if your router knows UPnP"
    return f"to be reached: {asking}; else {by_hand}"


def _address_towards(config: WorkerConfig) -> str:
    """This machine's own address on the way to the coordinator; empty when there is none."""
    link = config.join_link
    try:
        family = socket.getaddrinfo(link.host, link.port, type=socket.SOCK_DGRAM)[0][0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((link.host, link.port))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _disk(home: Home) -> Check:
    folder = home.path if home.path.exists() else home.path.parent
    free = shutil.disk_usage(folder).free
    fix = f"free some disk, or move the folder {home.path} (--home)"
    return Check("disk", free >= _MIN_FREE_BYTES, f"{size_text(free)} free", fix)


def _limits(home: Home, config: WorkerConfig) -> Check:
    """Whether this machine tells what the owner's limits go by; its GPU is another check's."""
    sensors = Sensors(home.path)
    try:
        problems = sensors.without_effect(replace(config.limits, gpu_temperature_c=0))
    finally:
        sensors.close()
    if problems:
        return Check(
            "limits",
            False,
            "; ".join(problems),
            "set it to 0 with 'barnraise worker limits', or limit the hours with schedule",
        )
    return Check("limits", True, "this machine tells all that they go by")


def _device(config: WorkerConfig) -> Check:
    try:
        device = pick_device(config.device)
    except ProtocolError as error:
        return Check("device", False, str(error), 'set device = "auto" in worker.toml')
    return Check(
        "device", True, f"{device}, {_gigaflops(device, config.limits.cpu_threads):.0f} GFLOP/s"
    )


def _gigaflops(device: str, threads: int) -> float:
    """Speed of float32 matrix products: a rough measure, comparable between machines."""
    import torch

    torch.set_num_threads(threads)
    square = torch.ones((_SPEED_SIZE, _SPEED_SIZE), device=device)
    products, started_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < _SPEED_S:
        float((square @ square)[0, 0])  # reading a value waits for the device
        products += 1
    return products * 2 * _SPEED_SIZE**3 / elapsed_s / 1e9


async def _ports_held(home: Home) -> list[int]:
    """TCP ports on which the worker of this folder listens: none while it sleeps."""
    status = await asyncio.to_thread(_status, home)
    return status["ports"] if status else []


def _running(home: Home) -> Check:
    status = _status(home)
    if status is None:
        return Check("daemon", True, _NOT_RUNNING)
    return Check("daemon", True, f"running: {headline(status, time.time())}")


def _status(home: Home) -> dict[str, Any] | None:
    """Of the worker that runs in this folder; None when none does."""
    try:
        status: dict[str, Any] = ask(home, "status")["status"]
    except ProtocolError:
        return None
    return status
