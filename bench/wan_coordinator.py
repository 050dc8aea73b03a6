"""The coordinator of the wide-area benchmark, a process on a member of the link of its own.

It does what a round needs of a coordinator: roster with shares by measured speed (the product's
:mod:`coordinator.roster` and :mod:`coordinator.speeds`), inclusion set, collecting the results,
its own outer step, the state's digest. It has no database, log or audits.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.played_coordinator import PlayedCoordinator
from bench.wan_messages import LINE_BYTES, Channel
from bench.wan_state import State
from coordinator.roster import Candidate, choose_reducers
from coordinator.round_state import Phase, Policy, Round
from coordinator.speeds import ReducerSpeeds
from protocol.envelope import open_envelope
from protocol.update import ChunkLayout, decode_update
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

PATIENCE_S = 600.0
_POLICY = Policy(300, 10, 600, 600, min_members=1, max_members=64, max_attempts=3)


class Coordinator:
    def __init__(self, members: int, layout: ChunkLayout, codec: Any, *, by_speed: bool) -> None:
        self._layout, self._codec, self._by_speed = layout, codec, by_speed
        self._size = members
        self.signing = PlayedCoordinator()
        self._channels: dict[str, Channel] = {}
        self._addresses: dict[str, list[str]] = {}
        self._news: asyncio.Queue[tuple[str, dict[str, Any], bytes]] = asyncio.Queue()
        self._speeds = ReducerSpeeds()
        self._state = State(layout)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        hello = await channel.receive()
        assert hello is not None
        name = hello[0]["worker"]
        self._channels[name], self._addresses[name] = channel, hello[0]["addresses"]
        await self._news.put((name, hello[0], b""))
        while (received := await channel.receive()) is not None:
            await self._news.put((name, *received))
        channel.close()

    async def run(self, rounds: int) -> None:
        while len(self._channels) < self._size:
            await self._next("hello")
        await self._tell({"do": "train"})
        for number in range(1, rounds + 1):
            await self._round(number)

    async def _round(self, number: int) -> None:
        roots: dict[str, bytes] = {}
        while len(roots) < self._size:
            name, message, _ = await self._next("commit")
            roots[name] = bytes.fromhex(message["root"])
        roster = self._roster(number, roots)
        signed = open_envelope(roster, wire.Roster)
        state = Round(number, _POLICY, Phase.GATHER, committed=tuple(roots), attempt=1)
        state = replace(state, reducers=tuple(r.reducer for r in signed.record.reducers))
        chunks = {r.reducer: r.end_chunk - r.first_chunk for r in signed.record.reducers}
        self._speeds.begin(number, 1, chunks, time.monotonic())
        await self._tell({"do": "roster"}, roster.SerializeToString())
        state = await self._until_complete(state)
        envelope = self.signing.inclusion(roster)
        await self._tell({"do": "inclusion"}, envelope.SerializeToString())
        encoded = await self._results(replace(state, phase=Phase.BROADCAST))
        digest = await asyncio.to_thread(self._step, number, encoded)
        await self._tell({"do": "head", "digest": digest.hex(), "chunks": chunks})

    def _roster(self, number: int, roots: dict[str, bytes]) -> wire.Envelope:
        shares = choose_reducers(
            [
                Candidate(name, name, False, tuple(self._addresses[name]), speed=self._speed(name))
                for name in sorted(roots)
            ],
            self._layout.count,
        )
        reducers = [
            wire.ReducerRange(
                reducer=share.candidate.worker,
                first_chunk=share.first,
                end_chunk=share.end,
                multiaddrs=share.candidate.multiaddrs,
            )
            for share in shares
        ]
        return self.signing.roster(
            number, roots, reducers, self._layout, self._codec, patience_s=PATIENCE_S
        )

    def _speed(self, worker: str) -> float | None:
        return self._speeds.of(worker) if self._by_speed else None

    async def _until_complete(self, state: Round) -> Round:
        held: dict[str, tuple[str, ...]] = {}
        while any(len(held.get(reducer, ())) < self._size for reducer in state.reducers):
            name, _, data = await self._next("report")
            record = open_envelope(wire.Envelope.FromString(data), wire.ReducerReport).record
            held[name] = tuple(outcome.worker for outcome in record.outcomes if outcome.complete)
            state = replace(state, complete=tuple(held.items()))
            self._speeds.take_note(state, time.monotonic())
        return state

    async def _results(self, state: Round) -> tuple[bytes, ...]:
        """All encoded results, in order."""
        found: dict[int, bytes] = {}
        self._speeds.take_note(state, time.monotonic())
        while len(state.delivered) < len(state.reducers):
            name, message, data = await self._next("results")
            for piece in _pieces(message["sizes"], data):
                result = open_envelope(piece.result, wire.ResultChunk).record
                found[result.chunk] = piece.encoded
            state = replace(state, delivered=(*state.delivered, name))
            self._speeds.take_note(state, time.monotonic())
        return tuple(found[chunk] for chunk in range(self._layout.count))

    def _step(self, number: int, encoded: tuple[bytes, ...]) -> bytes:
        return self._state.step(number, decode_update(encoded, self._layout, self._codec))

    async def _next(self, kind: str) -> tuple[str, dict[str, Any], bytes]:
        """The next message of that kind; others are of a round that is over."""
        while True:
            name, message, data = await self._news.get()
            if message["do"] == kind:
                return name, message, data

    async def _tell(self, message: dict[str, Any], payload: bytes = b"") -> None:
        for channel in self._channels.values():
            await channel.send(message, payload)


def _pieces(sizes: list[int], data: bytes) -> Iterator[service_pb2.ResultPiece]:
    start = 0
    for size in sizes:
        yield service_pb2.ResultPiece.FromString(data[start : start + size])
        start += size


async def main(address: str, members: int, elements: int, options: dict[str, Any]) -> None:
    layout = ChunkLayout(elements, options["chunk_elements"])
    coordinator = Coordinator(members, layout, options["codec"], by_speed=options["by_speed"])
    server = await asyncio.start_server(coordinator.serve, address, 0, limit=LINE_BYTES)
    port = server.sockets[0].getsockname()[1]
    print("RUN " + json.dumps({"port": port, **coordinator.signing.told()}), flush=True)
    await coordinator.run(options["rounds"])
    await asyncio.to_thread(sys.stdin.read)  # until the members have gone


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(main(**given))
