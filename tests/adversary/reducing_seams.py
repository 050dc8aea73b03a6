"""Cheats of a reducer: in what it combines, in what it says of senders, in what it shows."""

from __future__ import annotations

import hashlib
from typing import Any

from faults import Fault
from plan import Plan

from protocol.codec import MEAN_SOURCE, decode_chunk, encode_chunk, noise_key
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.allreduce import GroupReduce
from worker.group import Group
from worker.reducer import Reducer


def combine_wrongly(plan: Plan) -> None:
    """Sign the mean with its sign flipped."""
    honest = Reducer._combine_one

    def combine_one(self: Reducer, chunk: int, members: Any) -> api.ResultPiece:
        piece = honest(self, chunk, members)
        if not plan.cheats:
            return piece
        if chunk == self.first:
            plan.note(self.group.record.round)
        return _other_result(self.group, self.identity, chunk, piece)

    Reducer._combine_one = combine_one  # type: ignore[method-assign]


def _other_result(
    group: Group, identity: Identity, chunk: int, piece: api.ResultPiece
) -> api.ResultPiece:
    record = group.record
    values = decode_chunk(group.codec, piece.encoded, group.layout.chunk_size(chunk))
    key = noise_key(record.run_id, record.round, chunk, MEAN_SOURCE)
    encoded = encode_chunk(group.codec, -values, key)
    result = wire.ResultChunk(
        group_id=group.group_id,
        attempt=record.attempt,
        chunk=chunk,
        sha256=hashlib.sha256(encoded).digest(),
        reducer=identity.peer_id,
    )
    return api.ResultPiece(result=seal(result, identity), encoded=encoded)


def equivocate(plan: Plan) -> None:
    """The coordinator gets the right mean, the members another one: both are signed."""
    honest = GroupReduce._piece

    async def piece(self: GroupReduce, chunk: int) -> api.ResultPiece | None:
        held = await honest(self, chunk)
        me = self._peer.identity
        if held is None or not plan.cheats or self.group.reducer_of(chunk) != me.peer_id:
            return held
        plan.note(self.group.record.round)
        return _other_result(self.group, me, chunk, held)

    GroupReduce._piece = piece  # type: ignore[method-assign]


def slander(plan: Plan) -> None:
    """Report that a member sent nothing (censor), or broke the protocol (frame)."""
    honest = Reducer._report
    reason = "bad_digest" if plan.fault is Fault.FRAME else "absent"

    def report(self: Reducer, revision: int) -> wire.ReducerReport:
        record = honest(self, revision)
        for outcome in record.outcomes:
            if plan.cheats and outcome.worker == plan.victim:
                plan.note(record.round)
                outcome.complete, outcome.reason = False, reason
                outcome.ClearField("statement")
        return record

    Reducer._report = report  # type: ignore[method-assign]
