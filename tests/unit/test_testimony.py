"""What members bring to the coordinator besides results: whole, and never at the round's cost."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol.envelope import seal
from protocol.errors import ProtocolError, TransientError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.equivocation import of_results
from worker.testimony import bring_proofs, bring_results, submit_screening

REDUCER = Identity.from_seed(bytes(32))


def piece(encoded: bytes, shown: bytes | None = None) -> api.ResultPiece:
    sha256 = hashlib.sha256(encoded).digest()
    result = wire.ResultChunk(group_id=bytes(20), chunk=3, sha256=sha256, reducer=REDUCER.peer_id)
    return api.ResultPiece(result=seal(result, REDUCER), encoded=shown or encoded)


class Coordinator:
    """Takes what is brought, refuses it, or says nothing for ever."""

    identity = REDUCER

    def __init__(self, problem: ProtocolError | None = None, *, silent: bool = False) -> None:
        self.problem, self.silent, self.taken = problem, silent, list[Any]()

    async def submit_results(self, pieces: Iterable[api.ResultPiece]) -> None:
        await self._take(list(pieces))

    async def submit_screening(self, envelope: wire.Envelope) -> None:
        await self._take(envelope)

    async def _take(self, what: Any) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.problem is not None:
            raise self.problem
        self.taken.append(what)


def group(*proofs: Any, pieces: Iterable[api.ResultPiece] = ()) -> Any:
    return SimpleNamespace(equivocations=list(proofs), pieces=dict(enumerate(pieces)))


class Screener:
    def records(self, members: int, identity: Identity) -> list[wire.Envelope]:
        return [wire.Envelope(payload=bytes([members]))] * 2


def test_a_contradiction_goes_with_its_bytes_if_they_are_what_was_signed() -> None:
    first, second = piece(b"one"), piece(b"two")
    assert of_results(first, second).pieces == (first, second)
    other = piece(b"two", shown=b"junk")
    proof = of_results(first, other)
    assert (proof.first, proof.second, proof.pieces) == (first.result, other.result, ())


async def test_proofs_are_brought_once() -> None:
    coordinator = Coordinator()
    proof = of_results(piece(b"one"), piece(b"two"))
    unprovable = of_results(piece(b"one"), piece(b"two", shown=b"junk"))
    held = group(unprovable, proof)
    for _ in range(2):
        await bring_proofs(cast(Any, coordinator), held)
    assert coordinator.taken == [list(proof.pieces)]
    assert held.equivocations == [unprovable]


@pytest.mark.parametrize("silent", [True, False])
async def test_a_coordinator_that_takes_nothing_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    for name in ("_SCREENING_S", "_PROOF_S"):
        monkeypatch.setattr(f"worker.testimony.{name}", 0.05)
    coordinator = cast(Any, Coordinator(TransientError("away"), silent=silent))
    held = group(of_results(piece(b"one"), piece(b"two")), pieces=[piece(b"one")])
    async with asyncio.timeout(20):
        await submit_screening(coordinator, cast(Any, Screener()), 4)
        await bring_proofs(coordinator, held)
        await bring_results(coordinator, held)
    assert len(held.equivocations) == 1  # to be tried again
    assert not coordinator.taken


async def test_measurements_and_results_arrive() -> None:
    coordinator, held = Coordinator(), group(pieces=[piece(b"one"), piece(b"two")])
    await submit_screening(cast(Any, coordinator), cast(Any, Screener()), 4)
    await bring_results(cast(Any, coordinator), held)
    assert [envelope.payload for envelope in coordinator.taken[:2]] == [b"\x04", b"\x04"]
    assert coordinator.taken[2] == [piece(b"one"), piece(b"two")]
