"""A member of the wide-area benchmark: ``python -m bench.wan_member ours|hivemind``, JSON on stdin.

Communication is real, training is a sleep. One JSON line for each round on stdout: seconds of its
phases, and what the interface sent and received from the end of its training on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.links import interface_bytes
from bench.played_coordinator import trust_in
from bench.process_cost import cpu_s
from bench.wan_messages import Channel
from bench.wan_state import State
from protocol.envelope import open_envelope
from protocol.identity import Identity
from protocol.update import ChunkLayout, encode_update
from protocol.wire import records_pb2 as wire


class Clock:
    """Seconds of each phase since the one before."""

    def __init__(self) -> None:
        self._last_s = self._begun_s = time.perf_counter()
        self._sent, self._received = interface_bytes("self", "eth0")
        self._cpu_s = cpu_s(os.getpid())
        self.phases: dict[str, float] = {}

    def phase(self, name: str) -> None:
        now_s = time.perf_counter()
        self.phases[name], self._last_s = now_s - self._last_s, now_s

    def tell(self, trained_s: float, **more: Any) -> None:
        sent, received = interface_bytes("self", "eth0")
        told = {
            "trained_s": trained_s,
            "communicated_s": time.perf_counter() - self._begun_s,
            "sent": sent - self._sent,
            "received": received - self._received,
            "cpu_s": cpu_s(os.getpid()) - self._cpu_s,
            "phases_s": self.phases,
            **more,
        }
        print("ROUND " + json.dumps(told), flush=True)


class Ours:
    """What a worker does in a round, after its training and until it may train again."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._layout = ChunkLayout(options["elements"], options["chunk_elements"])
        generator = np.random.default_rng(options["rank"])
        self._vector = generator.standard_normal(options["elements"], np.float32)
        self._state = State(self._layout)

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        from worker.swarm import Swarm

        options, path = self._options, Path(self._options["key"])
        self._run_id = bytes.fromhex(options["run_id"])
        self._swarm = await Swarm.create(
            identity_path=path,
            identity=Identity.load(path),
            run_id=self._run_id,
            trust=trust_in(options),
            initial_peers=options["peers"],
            client_mode=False,
            listen=[f"/ip4/{options['address']}/tcp/0"],
        )
        addresses = await self._swarm.multiaddrs()
        print("ANSWER " + json.dumps({"addresses": addresses}), flush=True)
        self._channel = await Channel.connect(options["coordinator"], options["port"])
        hello = {"do": "hello", "worker": self._swarm.peer_id, "addresses": addresses}
        await self._channel.send(hello)
        await self._hear("train")
        for number in range(1, options["rounds"] + 1):
            begun_s = time.perf_counter()
            await asyncio.sleep(options["compute_s"])
            await self._round(number, time.perf_counter() - begun_s)
        self._channel.close()
        await self._swarm.shutdown()

    async def _round(self, number: int, trained_s: float) -> None:
        clock = Clock()
        update = await asyncio.to_thread(
            encode_update,
            self._vector,
            self._layout,
            self._options["codec"],
            run_id=self._run_id,
            round_=number,
            worker=self._swarm.peer_id,
        )
        clock.phase("encode")
        await self._channel.send({"do": "commit", "root": update.root.hex()})
        roster = open_envelope(await self._hear_record("roster"), wire.Roster)
        clock.phase("roster")
        group = self._swarm.open_group(roster, update)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(group.gather())
            tasks.create_task(self._report(group))
            inclusion = open_envelope(await self._hear_record("inclusion"), wire.InclusionSet)
        clock.phase("gather")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._submit(group))
            result = await group.finish(inclusion)
            clock.phase("broadcast")
            digest = await asyncio.to_thread(self._state.step, number, result.mean_update)
            clock.phase("step")
        head, _ = await self._hear("head")
        clock.phase("settle")
        if head["digest"] != digest.hex():
            raise RuntimeError("our state is not the coordinator's")
        group.close()
        clock.tell(trained_s, chunks=head["chunks"].get(self._swarm.peer_id, 0))

    async def _report(self, group: Any) -> None:
        async for report in group.reports():
            await self._channel.send({"do": "report"}, report.SerializeToString())

    async def _submit(self, group: Any) -> None:
        pieces = [piece.SerializeToString() for piece in await group.own_results()]
        if pieces:
            sizes = [len(piece) for piece in pieces]
            await self._channel.send({"do": "results", "sizes": sizes}, b"".join(pieces))

    async def _hear_record(self, kind: str) -> wire.Envelope:
        return wire.Envelope.FromString((await self._hear(kind))[1])

    async def _hear(self, kind: str) -> tuple[dict[str, Any], bytes]:
        received = await self._channel.receive()
        if received is None or received[0]["do"] != kind:
            raise RuntimeError(f"expected {kind}, heard {received and received[0]}")
        return received


class Stock:
    """hivemind's averager in fp16, scheduled ahead as its Optimizer and OpenDiLoCo do."""

    def __init__(self, options: dict[str, Any]) -> None:
        import hivemind
        from hivemind import compression

        self._options = options
        generator = torch.Generator().manual_seed(options["rank"])
        self._dht = hivemind.DHT(
            initial_peers=options["peers"],
            host_maddrs=[f"/ip4/{options['address']}/tcp/0"],
            start=True,
        )
        self._averager = hivemind.averaging.DecentralizedAverager(
            [torch.randn(options["elements"], generator=generator)],
            self._dht,
            start=True,
            prefix="wan",
            target_group_size=options["size"],
            min_group_size=options["size"],
            min_matchmaking_time=options["matchmaking_s"],
            request_timeout=3.0,
            compression=compression.Float16Compression(),
        )
        addresses = [str(address) for address in self._dht.get_visible_maddrs()]
        print("ANSWER " + json.dumps({"addresses": addresses}), flush=True)

    def run(self) -> None:
        options = self._options
        sys.stdin.readline()  # all are there
        for _ in range(options["rounds"]):
            begun_s = time.perf_counter()
            ahead_s = min(options["compute_s"], options["matchmaking_s"])
            time.sleep(options["compute_s"] - ahead_s)
            step = self._averager.step(
                wait=False,
                require_trigger=True,
                scheduled_time=self._dht_time() + ahead_s,
                timeout=600,
            )
            time.sleep(ahead_s)
            trained_s, clock = time.perf_counter() - begun_s, Clock()
            step.allow_allreduce()
            step.result(timeout=600)
            clock.phase("matchmaking and all-reduce")
            clock.tell(trained_s)
        self._averager.shutdown()
        self._dht.shutdown()

    @staticmethod
    def _dht_time() -> float:
        from hivemind.utils import get_dht_time

        return float(get_dht_time())


def main() -> None:
    torch.set_num_threads(1)
    kind = {"ours": Ours, "hivemind": Stock}[sys.argv[1]]
    kind(json.loads(sys.stdin.readline())).run()


if __name__ == "__main__":
    main()
