"""One process of the all-reduce benchmark: ``python -m bench.allreduce_peer ours|hivemind|gloo``.

Commands come as JSON lines on stdin, each is answered by one JSON line on stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from bench.played_coordinator import trust_in
from protocol.envelope import open_envelope
from protocol.identity import Identity
from protocol.update import ChunkLayout, encode_update
from protocol.wire import records_pb2 as wire

Answer = dict[str, Any]
T = TypeVar("T")
_SAMPLES = 64
_PATIENCE_S = 240


def vector(elements: int, rank: int) -> torch.Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(rank))


def sample(values: Any) -> Answer:
    """Some of a vector, to see that all peers have the same."""
    chosen = values[:: max(1, len(values) // _SAMPLES)]
    return {"sample": [float(value) for value in chosen[:_SAMPLES]]}


class Ours:
    """Our two-phase all-reduce; the parent is the coordinator."""

    def __init__(self, address: str, rank: int, elements: int, codec: Any, **start: Any) -> None:
        from worker.swarm import Swarm

        # The loop runs in its own thread: peers are served while we wait for a command.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._codec, self._layout = codec, ChunkLayout(elements, 1 << 17)
        self._vector = vector(elements, rank).numpy()
        self._run_id, path = bytes.fromhex(start["run_id"]), Path(start["key"])
        creating = Swarm.create(
            identity_path=path,
            identity=Identity.load(path),
            run_id=self._run_id,
            trust=trust_in(start),
            initial_peers=start["peers"],
            client_mode=False,
            listen=[f"/ip4/{address}/tcp/0"],
        )
        self._swarm = self._wait(creating)
        self.addresses = self._wait(self._swarm.multiaddrs())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def encode(self, round_: int) -> Answer:
        self._update = encode_update(
            self._vector,
            self._layout,
            self._codec,
            run_id=self._run_id,
            round_=round_,
            worker=self._swarm.peer_id,
        )
        return {"root": self._update.root.hex()}

    def gather(self, roster: str) -> Answer:
        envelope = wire.Envelope.FromString(bytes.fromhex(roster))

        async def work() -> bool:
            self._group = self._swarm.open_group(open_envelope(envelope, wire.Roster), self._update)
            failures = await self._group.gather()
            async for _ in self._group.reports():
                pass
            return not failures

        return {"complete": self._wait(work())}

    def finish(self, inclusion: str) -> Answer:
        envelope = wire.Envelope.FromString(bytes.fromhex(inclusion))
        signed = open_envelope(envelope, wire.InclusionSet)
        self._mean = self._wait(self._group.finish(signed)).mean_update
        return {}

    def sample(self) -> Answer:
        return sample(self._mean)

    def close(self) -> Answer:
        self._loop.call_soon_threadsafe(self._group.close)
        return {}

    def stop(self) -> Answer:
        self._wait(self._swarm.shutdown())
        return {}


class Stock:
    """hivemind's DecentralizedAverager; only its all-reduce is timed, not its matchmaking."""

    def __init__(
        self, address: str, rank: int, elements: int, codec: str, peers: list[str], size: int
    ) -> None:
        import hivemind
        from hivemind import compression

        _mend_quantization()
        codecs: dict[str, Callable[[], Any]] = {
            "none": compression.NoCompression,
            "fp16": compression.Float16Compression,
            "8bit": compression.Uniform8BitQuantization,
        }
        self._dht = hivemind.DHT(
            initial_peers=peers, host_maddrs=[f"/ip4/{address}/tcp/0"], start=True
        )
        self._averager = hivemind.averaging.DecentralizedAverager(
            [vector(elements, rank)],
            self._dht,
            start=True,
            prefix="bench",
            target_group_size=size,
            min_group_size=size,
            min_matchmaking_time=2.0,
            request_timeout=1.0,
            compression=codecs[codec](),
        )
        self.addresses = [str(address) for address in self._dht.get_visible_maddrs()]

    def prepare(self) -> Answer:
        from hivemind.averaging.control import AveragingStage

        self._step = self._averager.step(wait=False, require_trigger=True, timeout=_PATIENCE_S)
        while self._step.stage != AveragingStage.AWAITING_TRIGGER:
            time.sleep(0.01)  # the stage is a byte in shared memory: nothing to wait on
        return {}

    def go(self) -> Answer:
        self._step.allow_allreduce()
        self._step.result(timeout=_PATIENCE_S)
        return {}

    def sample(self) -> Answer:
        with self._averager.get_tensors() as (tensor,):
            return sample(tensor)

    def stop(self) -> Answer:
        self._averager.shutdown()
        self._dht.shutdown()
        return {}


def _mend_quantization() -> None:
    """Let hivemind 1.1.12 read its own 8-bit tensors under numpy 2.

    It makes an int of an array of one element, which is an error there: every part would fail, and
    its all-reduce end early with what arrived.
    """
    from hivemind.compression import quantization

    class Numpy:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        @staticmethod
        def frombuffer(*arguments: Any, **options: Any) -> Any:
            array = np.frombuffer(*arguments, **options)
            return array[0] if options.get("count") == 1 else array

    quantization.np = Numpy()


class Gloo:
    """torch.distributed over TCP."""

    def __init__(self, address: str, rank: int, elements: int, store: str, size: int) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size
        )
        self._vector = vector(elements, rank)
        self.addresses: list[str] = []

    def prepare(self) -> Answer:
        torch.distributed.barrier()
        return {}

    def go(self) -> Answer:
        torch.distributed.all_reduce(self._vector)
        self._vector /= torch.distributed.get_world_size()
        return {}

    def sample(self) -> Answer:
        return sample(self._vector)

    def stop(self) -> Answer:
        torch.distributed.destroy_process_group()
        return {}


def main() -> None:
    torch.set_num_threads(1)
    kind = {"ours": Ours, "hivemind": Stock, "gloo": Gloo}[sys.argv[1]]
    peer: Any = kind(**json.loads(sys.stdin.readline()))
    answer({"addresses": peer.addresses})
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        answer(getattr(peer, name)(**command))
        if name == "stop":
            return


def answer(value: Answer) -> None:
    sys.stdout.write("ANSWER " + json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
