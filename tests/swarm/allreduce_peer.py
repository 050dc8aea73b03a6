"""One real peer of the all-reduce tests and benchmark, driven by JSON lines.

In:  {"do": "start", ...}, {"do": "group", ...}, {"do": "finish", ...}, {"do": "close", ...},
     and the end of stdin stops it.
Out: one line for each event. Faults live here, in the data that is handed to the product code.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from allreduce_rig import member_vector

from protocol.envelope import open_envelope
from protocol.errors import TransientError
from protocol.identity import Identity
from protocol.trust import TrustStore
from protocol.update import ChunkLayout, EncodedUpdate, encode_update
from protocol.wire import records_pb2 as wire
from worker.allreduce import GroupReduce
from worker.limits import Limits
from worker.meter import NetworkBudget
from worker.swarm import Swarm


class DyingChunks(tuple):
    """Chunks of a sender that is killed on reading one of them."""

    fatal = -1

    def __getitem__(self, index: Any) -> Any:
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def faulty(update: EncodedUpdate, fault: dict[str, int]) -> EncodedUpdate:
    """An update whose bytes do not keep what its commitment promises."""
    if "falsify" in fault:
        chunks = list(update.chunks)
        bad = bytearray(chunks[fault["falsify"]])
        bad[-1] ^= 1
        chunks[fault["falsify"]] = bytes(bad)
        return replace(update, chunks=tuple(chunks))
    if "die_at" in fault:
        dying = DyingChunks(update.chunks)
        dying.fatal = fault["die_at"]
        return replace(update, chunks=dying)
    return update


class DrivenPeer:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._groups: dict[bytes, GroupReduce] = {}
        self._swarm: Swarm | None = None

    async def run(self) -> None:
        reader = asyncio.StreamReader(limit=1 << 24)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while line := await reader.readline():
                command = json.loads(line)
                await getattr(self, "do_" + command.pop("do"))(**command)
        finally:
            if self._swarm is not None:
                await self._swarm.shutdown()
        say(event="stopped")

    async def do_start(
        self,
        folder: str,
        run_id: str,
        root: str,
        delegation: str,
        peers: list[str],
        client: bool,
        listen: list[str],
        limits: dict[str, int],
    ) -> None:
        self._budget = NetworkBudget(Limits(**limits))
        path = Path(folder) / "device.key"
        identity = Identity.load(path)
        trust = TrustStore(bytes.fromhex(run_id), root)
        trust.add([wire.Envelope.FromString(bytes.fromhex(delegation))])
        self._swarm = await Swarm.create(
            identity_path=path,
            identity=identity,
            run_id=bytes.fromhex(run_id),
            trust=trust,
            initial_peers=peers,
            client_mode=client,
            listen=listen,
            budget=self._budget,
        )
        say(event="started", addresses=await self._swarm.multiaddrs())

    async def do_group(self, roster: str, seed: int | None, fault: dict[str, int]) -> None:
        assert self._swarm is not None
        signed = open_envelope(wire.Envelope.FromString(bytes.fromhex(roster)), wire.Roster)
        record, update = signed.record, None
        if seed is not None:
            layout = ChunkLayout(record.vector_elements, record.chunk_elements)
            update = encode_update(
                member_vector(record.vector_elements, seed),
                layout,
                record.codec,
                run_id=record.run_id,
                round_=record.round,
                worker=self._swarm.peer_id,
            )
            update = faulty(update, fault)
        group = self._swarm.open_group(signed, update)
        self._groups[group.group_id] = group
        say(event="opened", group=group.group_id.hex())
        self._tasks.create_task(self._gather(group))
        self._tasks.create_task(self._report(group))

    async def _gather(self, group: GroupReduce) -> None:
        started_s = time.perf_counter()
        failures = await group.gather()
        say(
            event="gathered",
            group=group.group_id.hex(),
            seconds=time.perf_counter() - started_s,
            failures=[[failure.reducer, failure.reason] for failure in failures],
        )

    async def _report(self, group: GroupReduce) -> None:
        async for report in group.reports():
            envelope = report.SerializeToString().hex()
            say(event="report", group=group.group_id.hex(), envelope=envelope)
        say(event="reported", group=group.group_id.hex())

    async def do_finish(self, group: str, inclusion: str) -> None:
        self._tasks.create_task(self._finish(group, inclusion))

    async def _finish(self, group: str, inclusion: str) -> None:
        envelope = wire.Envelope.FromString(bytes.fromhex(inclusion))
        started_s = time.perf_counter()
        reduce = self._groups[bytes.fromhex(group)]
        try:
            result = await reduce.finish(open_envelope(envelope, wire.InclusionSet))
        except TransientError as error:
            say(event="incomplete", group=group, why=str(error), pieces=sorted(reduce.pieces))
            return
        say(
            event="finished",
            group=group,
            seconds=time.perf_counter() - started_s,
            mean_sha256=hashlib.sha256(result.mean_update.tobytes()).hexdigest(),
            pieces=len(result.pieces),
        )

    async def do_limits(self, **limits: int) -> None:
        self._budget.change(Limits(**limits))
        say(event="limited")

    async def do_count(self) -> None:
        day = self._budget.day
        say(event="counted", up_bytes=day.up_bytes, down_bytes=day.down_bytes)

    async def do_close(self, group: str) -> None:
        self._groups.pop(bytes.fromhex(group)).close()
        say(event="closed", group=group)


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def main() -> None:
    async with asyncio.TaskGroup() as tasks:
        await DrivenPeer(tasks).run()


if __name__ == "__main__":
    asyncio.run(main())
