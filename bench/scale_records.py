"""Sizes of the signed records of a reduce, from real ones of that many members."""

from __future__ import annotations

from functools import cache

from google.protobuf.message import Message

from protocol.envelope import seal
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

_NAME = "12D3KooW" + 44 * "x"  # as long as an Ed25519 PeerID
_ADDRESSES = [
    f"/ip4/203.0.113.7/tcp/31337/p2p/{_NAME}",
    f"/ip6/2001:db8:85a3::8a2e:370:7334/tcp/31337/p2p/{_NAME}",
]
_KEY = Identity.generate()
_ENVELOPE_BYTES = seal(wire.Report(), _KEY).ByteSize() - wire.Report().ByteSize()


def _sealed_bytes(record: Message) -> int:
    """Also of records that are over the limit of what is sealed."""
    return record.ByteSize() + _ENVELOPE_BYTES


@cache
def roster_bytes(members: int, reducers: int, chunks: int) -> int:
    """A sealed Roster; each reducer with an IPv4 and an IPv6 address."""
    record = wire.Roster(
        run_id=bytes(32),
        round=1000,
        attempt=1,
        state_digest=bytes(32),
        members=[
            wire.RosterMember(
                worker=_NAME, assignment_id=bytes(16), weight=1 << 20, commitment_root=bytes(32)
            )
        ]
        * members,
        reducers=[
            wire.ReducerRange(
                reducer=_NAME, first_chunk=chunks, end_chunk=chunks, multiaddrs=_ADDRESSES
            )
        ]
        * reducers,
        codec="int4",
        combine="clipped_mean",
        vector_elements=1 << 27,
        chunk_elements=1 << 17,
        chunk_count=chunks,
        gather_deadline_ms=1 << 41,
        broadcast_deadline_ms=1 << 41,
    )
    return _sealed_bytes(record)


@cache
def inclusion_bytes(members: int) -> int:
    """A sealed InclusionSet."""
    record = wire.InclusionSet(
        run_id=bytes(32), round=1000, attempt=1, group_id=bytes(20), members=[_NAME] * members
    )
    return _sealed_bytes(record)


@cache
def report_bytes(members: int) -> int:
    """A sealed ReducerReport by which all members are complete, with their statements."""
    statement = wire.GatherStatement(
        group_id=bytes(20),
        attempt=1,
        sender=_NAME,
        reducer=_NAME,
        first_chunk=1000,
        end_chunk=1000,
        frames_sha256=bytes(32),
    )
    outcome = wire.GatherOutcome(worker=_NAME, complete=True, statement=seal(statement, _KEY))
    record = wire.ReducerReport(
        run_id=bytes(32),
        round=1000,
        attempt=1,
        group_id=bytes(20),
        reducer=_NAME,
        revision=1 << 31,
        outcomes=[outcome] * members,
    )
    return _sealed_bytes(record)


@cache
def result_bytes() -> int:
    """A sealed ResultChunk: what comes with each chunk of the mean."""
    record = wire.ResultChunk(
        group_id=bytes(20), attempt=1, chunk=1000, sha256=bytes(32), reducer=_NAME
    )
    return _sealed_bytes(record)
