"""Cheats in what is signed and sent: records, and the bytes that a member streams to reducers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from faults import Fault
from plan import Plan

from protocol.envelope import open_envelope
from protocol.update import EncodedUpdate
from protocol.wire import records_pb2 as wire
from worker import round_runner
from worker.allreduce import GatherFailure, GroupReduce
from worker.session import Session
from worker.taking_part import Reduction


def forge_contributions(plan: Plan) -> None:
    """Claim more than was leased, or a loss that is none."""
    honest = round_runner.seal

    def seal(record: Any, identity: Any) -> wire.Envelope:
        if isinstance(record, wire.Contribution) and plan.cheats:
            plan.note(record.round)
            _forge(plan.fault, record)
        return honest(record, identity)

    round_runner.seal = seal  # type: ignore[attr-defined]


def _forge(fault: Fault, record: wire.Contribution) -> None:
    if fault is Fault.FORGED_TOKENS:
        record.tokens *= 4
    elif fault is Fault.FORGED_STEPS:
        batch = (record.end_sequence - record.start_sequence) // record.steps
        tokens = record.tokens // record.steps
        record.steps *= 2
        record.end_sequence = record.start_sequence + record.steps * batch
        record.tokens = record.steps * tokens
    else:
        record.mean_loss = float("nan")


def impersonate(plan: Plan) -> None:
    """Sign contributions in another's name, with our own key."""
    honest = round_runner.seal

    def seal(record: Any, identity: Any) -> wire.Envelope:
        if isinstance(record, wire.Contribution) and plan.cheats:
            plan.note(record.round)
            record.worker = plan.victim
        envelope = honest(record, identity)
        if isinstance(record, wire.Contribution) and plan.cheats:
            envelope.signatures[0].keyid = plan.victim
        return envelope

    round_runner.seal = seal  # type: ignore[attr-defined]


def replay_records(plan: Plan) -> None:
    """Send the signed contribution of an earlier round again, word for word, instead of a new."""
    honest = Session.commit
    first: list[wire.Envelope] = []

    async def commit(self: Session, envelope: wire.Envelope) -> Any:
        if plan.cheats and first:
            plan.note(open_envelope(envelope, wire.Contribution).record.round)
            envelope = first[0]
        first[:] = first or [envelope]
        return await honest(self, envelope)

    Session.commit = commit  # type: ignore[method-assign]


def send_other_bytes(plan: Plan) -> None:
    """Commit to one thing and stream another."""
    honest = GroupReduce._deliver_once

    async def deliver_once(self: GroupReduce, item: Any, update: EncodedUpdate) -> None:
        if plan.cheats:
            plan.note(self.group.record.round)
            update = replace(update, chunks=tuple(_flipped(c) for c in update.chunks))
        await honest(self, item, update)

    GroupReduce._deliver_once = deliver_once  # type: ignore[method-assign]


def _flipped(encoded: bytes) -> bytes:
    return encoded[:-1] + bytes([encoded[-1] ^ 1])


def serve_some_reducers(plan: Plan) -> None:
    """Send to the first reducer of the roster alone."""
    honest = GroupReduce._deliver

    async def deliver(self: GroupReduce, item: Any, update: EncodedUpdate) -> Any:
        if plan.cheats and item.reducer != self.group.reducers[0].reducer:
            plan.note(self.group.record.round)
            await asyncio.sleep(self.until_s(self.group.record.gather_deadline_ms))
            return GatherFailure(item.reducer, "not sent on purpose")
        return await honest(self, item, update)

    GroupReduce._deliver = deliver  # type: ignore[method-assign]


# ---- gone without a word


def drop_before_the_commit(plan: Plan) -> None:
    honest = round_runner.RoundRunner._commit

    async def commit(self: Any, lease: Any) -> Any:
        if plan.cheats:
            plan.die(lease.round)
        return await honest(self, lease)

    round_runner.RoundRunner._commit = commit  # type: ignore[method-assign]


def drop_before_the_reduce(plan: Plan) -> None:
    honest = Reduction._attempt

    async def attempt(self: Any, groups: Any, head: Any, roster: Any, update: Any) -> None:
        if plan.cheats:
            plan.die(roster.record.round)
        await honest(self, groups, head, roster, update)

    Reduction._attempt = attempt  # type: ignore[method-assign]


def drop_in_the_gather(plan: Plan) -> None:
    honest = GroupReduce._chunk_frames

    async def chunk_frames(self: GroupReduce, *arguments: Any) -> AsyncIterator[Any]:
        async for frame in honest(self, *arguments):
            yield frame
            if plan.cheats:
                plan.die(self.group.record.round)

    GroupReduce._chunk_frames = chunk_frames  # type: ignore[method-assign]


def drop_in_the_broadcast(plan: Plan) -> None:
    honest = GroupReduce.finish

    async def finish(self: GroupReduce, inclusion: Any) -> Any:
        if plan.cheats:
            plan.die(self.group.record.round)
        return await honest(self, inclusion)

    GroupReduce.finish = finish  # type: ignore[method-assign]
