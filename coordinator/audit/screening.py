"""Layer 3: who stands out among the members of a reduce, by what its reducers measured anyway.

Invariants:

* It raises the chance of an audit. It never pays, and it never punishes: a reducer that lies here
  brings an audit on an honest member, which that member passes.
* Robust: location and spread are median and MAD over the members, so a minority of them can neither
  hide behind its own deviation nor make the others stand out.
* Members that are all alike do not stand out, however small their spread: it has a floor.
* What reducers can store is bounded: ranges of one reducer do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.audit.schema import ScreeningRow
from coordinator.context import RunContext
from coordinator.evidence import keep_evidence
from coordinator.reports import read_roster
from coordinator.schema import RosterRow
from coordinator.turn import Turn, current_roster
from protocol.envelope import Signed
from protocol.errors import BadRecord, Conflict, ProtocolError, TooLate
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

LEAST_MEMBERS = 4
"""Of fewer, a median says nothing about who is the odd one out."""

MAX_Z = 6.0
"""Robust standard deviations; honest members of a normal spread get there once in 5e8."""

NORM_FLOOR = 0.02
"""Least spread of the log norm: 12 % of the length always pass."""

COSINE_FLOOR = 0.01
"""Least spread of the cosine to the mean."""

_COSINE_SLACK = 1e-3
_TINY = np.float64(1e-30)
_MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

FloatMatrix = NDArray[np.float32]
Deviations = NDArray[np.float64]

_log = structlog.get_logger()


@dataclass(frozen=True)
class Measured:
    """What one reducer signed: float32 ``[chunks, members]`` each."""

    norms: FloatMatrix
    cosines: FloatMatrix


def accept_screening(
    turn: Turn, signed: Signed[wire.Screening]
) -> service_pb2.ScreeningReply | ProtocolError:
    """Keep what a reducer of the running reduce measured in its range.

    Args:
        turn: the caller's transaction.
        signed: verified; its signer is who it says.

    Returns:
        The reply, or the error to raise once evidence is committed.

    Raises:
        TooLate: of a reduce that is over.
        BadRecord: not from a reducer, not about its range, or not finite numbers of that size.
    """
    record = signed.record
    roster_row = current_roster(turn.session, turn.reducing.machine)
    if roster_row is None or roster_row.group_id != record.group_id:
        raise TooLate("a screening of a reduce that is over: drop it")
    if roster_row.inclusion is None:
        raise BadRecord("a screening before its inclusion set is signed")
    _check_range(roster_row, record)
    read_measured(record, _included(roster_row))
    known = turn.session.get(ScreeningRow, (record.group_id, signed.signer, record.first_chunk))
    if known is not None:
        if wire.Envelope.FromString(known.envelope).payload == signed.envelope.payload:
            return service_pb2.ScreeningReply()
        keep_evidence(turn.session, "screening", known.envelope, signed, turn.now_s)
        return Conflict("another screening of this range is kept: both are evidence now")
    _require_new_range(turn.session, record)
    turn.session.add(
        ScreeningRow(
            group_id=record.group_id,
            reducer=signed.signer,
            first_chunk=record.first_chunk,
            end_chunk=record.end_chunk,
            envelope=signed.envelope.SerializeToString(),
        )
    )
    turn.session.flush()
    return service_pb2.ScreeningReply()


def read_measured(record: wire.Screening, members: int) -> Measured:
    """Parse the numbers of a screening.

    Raises:
        BadRecord: wrong size, not finite, a negative norm, or a cosine beyond one.
    """
    if record.members != members:
        raise BadRecord(f"a screening of {record.members} members, where {members} are included")
    shape = (record.end_chunk - record.first_chunk, members)
    norms, cosines = _floats(record.norms, shape), _floats(record.cosines, shape)
    if (norms < 0).any():
        raise BadRecord("a norm is negative")
    if (np.abs(cosines) > 1 + _COSINE_SLACK).any():
        raise BadRecord("a cosine is beyond one")
    return Measured(norms, cosines)


def outliers(session: Session, context: RunContext, group_id: bytes) -> set[str]:
    """Members of a reduce that stand out by the length or the direction of their updates.

    Args:
        session: in a transaction.
        context: of the run.
        group_id: of the reduce; chunks that nobody measured are left out.
    """
    roster_row = session.scalars(select(RosterRow).where(RosterRow.group_id == group_id)).one()
    assert roster_row.inclusion is not None
    payload = wire.Envelope.FromString(roster_row.inclusion).payload
    members = list(wire.InclusionSet.FromString(payload).members)
    rows = session.scalars(
        select(ScreeningRow)
        .where(ScreeningRow.group_id == group_id)
        .order_by(ScreeningRow.first_chunk)
    ).all()
    if len(members) < LEAST_MEMBERS or not rows:
        return set()
    measured = [
        read_measured(
            wire.Screening.FromString(wire.Envelope.FromString(row.envelope).payload), len(members)
        )
        for row in rows
    ]
    odd = stand_out(measured)
    found = {member for member, is_odd in zip(members, odd, strict=True) if is_odd}
    if found:
        _log.info("screening_outliers", group=group_id.hex()[:16], workers=sorted(found))
    return found


def stand_out(measured: list[Measured]) -> NDArray[np.bool_]:
    """Which members are beyond :data:`MAX_Z` in log norm or cosine, pooled over chunks.

    Args:
        measured: of at least one chunk, all of the same members.

    Returns:
        One flag for each member.
    """
    norms = np.concatenate([part.norms for part in measured]).astype(np.float64)
    cosines = np.concatenate([part.cosines for part in measured]).astype(np.float64)
    by_norm = _robust_z(np.log(np.maximum(norms, _TINY)), NORM_FLOOR)
    by_cosine = _robust_z(cosines, COSINE_FLOOR)
    odd: NDArray[np.bool_] = (np.abs(by_norm) > MAX_Z) | (np.abs(by_cosine) > MAX_Z)
    return odd


def _robust_z(values: Deviations, floor: float) -> Deviations:
    """Pooled deviation of each member in robust standard deviations.

    Chunks differ in size and meaning, so each is centred on its own median first; the mean over
    them then notices a single chunk that is far out as well as many that are a little.
    """
    pooled = (values - np.median(values, axis=1, keepdims=True)).mean(axis=0)
    centred = pooled - np.median(pooled)
    spread = _MAD_TO_SIGMA * np.median(np.abs(centred))
    z: Deviations = centred / max(float(spread), floor)
    return z


def _included(row: RosterRow) -> int:
    assert row.inclusion is not None
    payload = wire.Envelope.FromString(row.inclusion).payload
    return len(wire.InclusionSet.FromString(payload).members)


def _check_range(row: RosterRow, record: wire.Screening) -> None:
    roster = read_roster(row)
    share = next((r for r in roster.reducers if r.reducer == record.reducer), None)
    if share is None or record.attempt != roster.attempt:
        raise BadRecord("a screening from somebody who reduces nothing in this group")
    if not share.first_chunk <= record.first_chunk < record.end_chunk <= share.end_chunk:
        raise BadRecord("a screening of chunks that are not in the reducer's range")


def _require_new_range(session: Session, record: wire.Screening) -> None:
    """Ranges that overlap could say one thing many times, and fill the database."""
    overlapping = session.scalars(
        select(ScreeningRow.first_chunk).where(
            ScreeningRow.group_id == record.group_id,
            ScreeningRow.reducer == record.reducer,
            ScreeningRow.first_chunk < record.end_chunk,
            ScreeningRow.end_chunk > record.first_chunk,
        )
    ).first()
    if overlapping is not None:
        raise BadRecord("a screening of chunks that another one is about")


def _floats(data: bytes, shape: tuple[int, int]) -> FloatMatrix:
    chunks, members = shape
    if len(data) != 4 * chunks * members:
        raise BadRecord(f"{chunks} chunks of {members} members are {chunks * members} float32")
    values = np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise BadRecord("a screening holds a number that is not finite")
    return values
