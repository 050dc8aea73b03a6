"""``python -m bench.coordinator_load LINK ...``: ten thousand members of one run, in one process.

Each has a real key and does what a worker does towards the coordinator: it watches the run, beats
at the interval that the coordinator tells it, asks for work, and commits a signed contribution
whose root is that of its own encoded update, at a moment of the grace of its own. One JSON line
ends each phase; whoever started this measures the server meanwhile.

Signing is not part of any latency: a call's time runs from the frame's writing to the reply.
Contributions are encoded and signed when their work is handed out, before the grace begins. What is
refused is counted; a request for work is made again after the time that the refusal names, as a
worker does, a heartbeat after its interval, and a commit not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import secrets
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.coordinator_http2 import CallFailed, Connection
from coordinator.overload import RETRY_AFTER_S
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.link import JoinLink
from protocol.manifest import RunManifest
from protocol.model import element_count, parameter_spec
from protocol.update import ChunkLayout, encode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.heartbeat import HEARTBEAT_S

MEMBERS_PER_CONNECTION = 32
_CONNECTIONS_PER_ADDRESS = 2
"""64 members of one address: as many as the coordinator lets one enrol in a day."""

_CALLS_AT_ONCE = 512  # of the ramps, which are not what is measured


def identity_of(number: int) -> Identity:
    """The same key for whoever enrols it and whoever plays it."""
    return Identity.from_seed(hashlib.sha256(b"bench member %d" % number).digest())


def address_of_member(number: int) -> str:
    """A loopback address that it shares with 63 others."""
    household = number // (MEMBERS_PER_CONNECTION * _CONNECTIONS_PER_ADDRESS)
    return f"127.{1 + household // 250}.{1 + household % 250}.9"


@dataclass
class Calls:
    """What became of one kind of call."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)

        def at(share: float) -> float:
            return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)

        if not ordered:
            return {"calls": 0, "failed": self.failures.total(), "why": dict(self.failures)}
        return {
            "calls": len(ordered),
            "failed": self.failures.total(),
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "most_ms": at(1.0),
            "why": dict(self.failures),
        }


@dataclass
class Member:
    """One worker, as far as the coordinator can tell."""

    load: Load
    number: int
    identity: Identity
    connection: Connection
    assignment: wire.Assignment | None = None
    contribution: bytes = b""
    interval_s: float = 0.0
    first_event_at_s: float = 0.0

    def record(self, kind: Any, **fields: Any) -> bytes:
        """A signed request."""
        freshness = wire.Freshness(
            sent_at_ms=int(time.time() * 1000), nonce=secrets.token_bytes(16)
        )
        given = {"run_id": self.load.run_id, "worker": self.identity.peer_id, **fields}
        sealed: bytes = seal(kind(**given, freshness=freshness), self.identity).SerializeToString()
        return sealed

    async def call(self, method: str, request: bytes, reply: Any) -> Any:
        """One measured call; None when it failed."""
        calls = self.load.calls.setdefault(method, Calls())
        began_s = time.perf_counter()
        try:
            data = await self.connection.ask(method, request)
        except CallFailed as error:
            calls.failures[_reason(str(error))] += 1
            return None
        calls.seconds.append(time.perf_counter() - began_s)
        return reply.FromString(data)

    async def watch(self) -> None:
        """Open the event stream and wait for its first event."""
        calls = self.load.calls.setdefault("Watch", Calls())
        opened = asyncio.get_running_loop().create_future()
        began_s = time.perf_counter()

        def hear(message: bytes) -> None:
            if not opened.done():
                opened.set_result(None)
                calls.seconds.append(time.perf_counter() - began_s)
            self.load.hear(message)

        ended = self.connection.watch("Watch", self.record(wire.WatchRequest), hear)
        await asyncio.wait([ended, opened], return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            calls.failures[_reason(str(ended.exception()))] += 1
        else:
            ended.add_done_callback(self.load.lost_stream)

    async def beat_for_ever(self) -> None:
        """At the told interval; the first at a moment of its own within one."""
        await asyncio.sleep(random.random() * self.load.first_interval_s)
        while True:
            assignment = self.assignment
            request = self.record(
                wire.Heartbeat,
                round=assignment.round if assignment else 0,
                assignment_id=assignment.assignment_id if assignment else b"",
                tokens_per_s=1000.0,
                phase=wire.WORKER_PHASE_TRAINING if assignment else wire.WORKER_PHASE_WAITING,
                client_mode=True,
            )
            began_s = time.perf_counter()
            reply = await self.call("Heartbeat", request, api.HeartbeatReply)
            if reply is not None:
                self.interval_s = reply.next_heartbeat_ms / 1000
                self.load.told_s = self.interval_s
            rest_s = (self.interval_s or HEARTBEAT_S) - (time.perf_counter() - began_s)
            await asyncio.sleep(max(0.0, rest_s))

    async def ask_for_work(self) -> None:
        while True:
            request = self.record(wire.WorkRequest, tokens_per_s=1000.0)
            reply = await self.call("RequestWork", request, api.WorkReply)
            if reply is not None:
                break
            await asyncio.sleep(RETRY_AFTER_S)
        if not reply.HasField("assignment"):
            self.load.calls["RequestWork"].failures[reply.wait.code] += 1
            return
        self.assignment = wire.Assignment.FromString(reply.assignment.payload)
        self.contribution = self.train(self.assignment)

    def train(self, assignment: wire.Assignment) -> bytes:
        """A contribution with the root of a vector of its own, signed."""
        load, manifest = self.load, self.load.manifest
        vector = np.random.default_rng(assignment.seed).standard_normal(
            load.layout.elements, dtype=np.float32
        )
        update = encode_update(
            vector,
            load.layout,
            manifest.update.codec,
            run_id=load.run_id,
            round_=assignment.round,
            worker=self.identity.peer_id,
        )
        record = wire.Contribution(
            run_id=load.run_id,
            round=assignment.round,
            assignment_id=assignment.assignment_id,
            worker=self.identity.peer_id,
            state_digest=assignment.state_digest,
            epoch=assignment.epoch,
            start_sequence=assignment.start_sequence,
            end_sequence=assignment.end_sequence,
            steps=assignment.steps,
            tokens=assignment.steps * manifest.tokens_per_step,
            codec=manifest.update.codec,
            commitment_root=update.root,
            chunk_count=load.layout.count,
            vector_elements=load.layout.elements,
            update_norm=float(np.linalg.norm(vector)),
            mean_loss=5.0,
            training_spec=manifest.inner.training_spec,
            execution="cpu",
        )
        sealed: bytes = seal(record, self.identity).SerializeToString()
        return sealed

    async def commit(self, within_s: float) -> None:
        """At a moment of its own within the grace."""
        await asyncio.sleep(random.random() * within_s)
        reply = await self.call("Commit", self.contribution, api.CommitReply)
        if reply is not None and reply.first:
            self.load.accepted_at_s.append(time.perf_counter())


class Load:
    """All members, and what they met with."""

    def __init__(self, link: JoinLink, manifest: RunManifest, first_interval_s: float) -> None:
        self.link, self.manifest, self.run_id = link, manifest, link.run_id
        self.layout = ChunkLayout(
            element_count(parameter_spec(manifest.model_config_json)),
            manifest.update.chunk_elements,
        )
        self.first_interval_s = first_interval_s
        self.told_s = first_interval_s
        self.calls: dict[str, Calls] = {}
        self.events = 0
        self.streams_lost: Counter[str] = Counter()
        self.accepted_at_s: list[float] = []
        self.grace_began = asyncio.Event()
        self.grace_at_s = 0.0
        self.members: list[Member] = []
        self.slowest_loop_s = 0.0

    def hear(self, message: bytes) -> None:
        self.events += 1
        if not self.grace_began.is_set():
            event = api.RunEvent.FromString(message)
            if event.phase == "COMMITTING":
                self.grace_at_s = time.perf_counter()
                self.grace_began.set()

    def lost_stream(self, done: asyncio.Future[bytes]) -> None:
        if not done.cancelled():
            problem = done.exception()
            self.streams_lost["ended" if problem is None else _reason(str(problem))] += 1

    async def connect(self, count: int) -> None:
        """Members on connections of 32, two from each address."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        tls.set_alpn_protocols(["h2"])
        for first in range(0, count, MEMBERS_PER_CONNECTION):
            connection = await Connection.open(
                self.link.host, self.link.port, tls, address_of_member(first)
            )
            for number in range(first, min(count, first + MEMBERS_PER_CONNECTION)):
                self.members.append(Member(self, number, identity_of(number), connection))

    async def ramp(self, work: Any, per_s: float) -> None:
        """Let every member do something once, so many a second and not too many at a time."""
        room = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def one(member: Member, at_s: float) -> None:
            await asyncio.sleep(at_s)
            async with room:
                await work(member)

        async with asyncio.TaskGroup() as tasks:
            for position, member in enumerate(self.members):
                tasks.create_task(one(member, position / per_s))

    async def watch_own_lag(self) -> None:
        """How long this process itself is away from its loop: the rest is the server's doing."""
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.02)
            late_s = time.perf_counter() - began_s - 0.02
            self.slowest_loop_s = max(self.slowest_loop_s, late_s)

    def say(self, phase: str, **more: Any) -> None:
        """End of a phase: what its calls met with; they are counted anew from here."""
        calls = {method: calls.summary() for method, calls in sorted(self.calls.items())}
        seen = {
            "phase": phase,
            "calls": calls,
            "told_interval_s": self.told_s,
            "events": self.events,
            "streams_lost": dict(self.streams_lost),
            "own_lag_ms": round(1000 * self.slowest_loop_s, 1),
            **more,
        }
        print(json.dumps(seen), flush=True)
        self.calls.clear()
        self.events, self.slowest_loop_s = 0, 0.0


async def play(load: Load, given: argparse.Namespace) -> None:
    """The phases, one after the other."""
    await load.connect(given.members)
    began_s = time.perf_counter()
    lag = asyncio.create_task(load.watch_own_lag())
    await load.ramp(Member.watch, given.watches_per_s)
    load.say("watch", seconds=round(time.perf_counter() - began_s, 1))
    beats = [asyncio.create_task(member.beat_for_ever()) for member in load.members]
    began_s = time.perf_counter()
    await load.ramp(Member.ask_for_work, given.leases_per_s)
    load.say("lease", seconds=round(time.perf_counter() - began_s, 1))
    began_s = time.perf_counter()
    await asyncio.sleep(given.steady_s)
    load.say("steady", seconds=round(time.perf_counter() - began_s, 1))
    await load.grace_began.wait()
    load.say("wait")
    commits = [
        asyncio.create_task(member.commit(given.commit_within_s))
        for member in load.members
        if member.contribution
    ]
    _, late = await asyncio.wait(commits, timeout=given.grace_s + 40.0)
    in_time = [at_s for at_s in load.accepted_at_s if at_s - load.grace_at_s <= given.grace_s]
    last_s = max(load.accepted_at_s, default=load.grace_at_s) - load.grace_at_s
    load.say("grace", accepted=len(in_time), late=len(late), last_accepted_s=round(last_s, 1))
    going_on = (lag, *beats, *late)
    for task in going_on:
        task.cancel()
    await asyncio.gather(*going_on, return_exceptions=True)  # nothing outlives the phases


def _reason(text: str) -> str:
    """A stable word of an error's trailers."""
    for word in ("RATE_LIMITED", "TOO_LATE", "BAD_RECORD", "CONFLICT", "TRANSIENT", "STALE"):
        if word in text:
            return word
    return "".join(c if c.isprintable() else " " for c in text)[:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("link", type=JoinLink.parse)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--members", type=int, required=True)
    parser.add_argument("--steady-s", type=float, required=True)
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("--commit-within-s", type=float, required=True)
    parser.add_argument("--watches-per-s", type=float, default=1000.0)
    parser.add_argument("--leases-per-s", type=float, default=400.0)
    given = parser.parse_args()
    manifest = RunManifest.parse(given.manifest.read_bytes())
    load = Load(given.link, manifest, first_interval_s=4.0)
    uvloop.run(play(load, given))


if __name__ == "__main__":
    main()
