"""What a roster fixes for one attempt at a reduce, checked once and then relied upon.

Invariants: members and reducers are unique, weights positive, the reducers' ranges cover every
chunk once in order, and sizes follow from the roster alone. No I/O, no clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from protocol.envelope import Signed
from protocol.errors import BadRecord
from protocol.identity import PublicKey
from protocol.limits import (
    MAX_CHUNK_ELEMENTS,
    MAX_MULTIADDR_CHARS,
    MAX_MULTIADDRS,
    MAX_ROSTER_MEMBERS,
    MAX_VECTOR_ELEMENTS,
)
from protocol.manifest import Codec, CombineRule
from protocol.merkle import HASH_BYTES
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

GROUP_ID_BYTES = 20


def group_id(roster: Signed[wire.Roster]) -> bytes:
    """First 20 bytes of the SHA-256 of the roster's payload (protocol section 7)."""
    return roster.digest[:GROUP_ID_BYTES]


@dataclass(frozen=True)
class Group:
    """A checked roster; build with :meth:`of`."""

    roster: Signed[wire.Roster]
    group_id: bytes
    layout: ChunkLayout
    codec: Codec
    combine: CombineRule
    members: Mapping[str, wire.RosterMember]  # in roster order
    reducers: Sequence[wire.ReducerRange]

    @classmethod
    def of(cls, roster: Signed[wire.Roster]) -> Group:
        """Check a roster whose signature has been verified.

        Raises:
            BadRecord: it contradicts itself or is over a limit.
        """
        record = roster.record
        layout = _layout(record)
        if record.gather_deadline_ms >= record.broadcast_deadline_ms:
            raise BadRecord("a roster whose broadcast ends before its gather")
        return cls(
            roster=roster,
            group_id=group_id(roster),
            layout=layout,
            codec=cast(Codec, _one_of(record.codec, get_args(Codec))),
            combine=cast(CombineRule, _one_of(record.combine, get_args(CombineRule))),
            members=_members(record),
            reducers=_reducers(record),
        )

    @property
    def record(self) -> wire.Roster:
        return self.roster.record

    def range_of(self, peer_id: str) -> wire.ReducerRange | None:
        """The range that a peer reduces, if any."""
        return next((r for r in self.reducers if r.reducer == peer_id), None)

    def reducer_of(self, chunk: int) -> str:
        """The PeerID that must sign the result of a chunk."""
        at = bisect_right(self.reducers, chunk, key=lambda r: r.first_chunk) - 1
        return self.reducers[at].reducer

    def statement(
        self, sender: str, item: wire.ReducerRange, frames_sha256: bytes
    ) -> wire.GatherStatement:
        """What a sender signs when it has sent a range's chunks to their reducer.

        Args:
            frames_sha256: over its encoded chunks of the range, in order.
        """
        return wire.GatherStatement(
            group_id=self.group_id,
            attempt=self.record.attempt,
            sender=sender,
            reducer=item.reducer,
            first_chunk=item.first_chunk,
            end_chunk=item.end_chunk,
            frames_sha256=frames_sha256,
        )

    def encoded_bytes(self, chunk: int) -> int:
        return self.layout.encoded_bytes(self.codec, chunk)

    def included(self, inclusion: Signed[wire.InclusionSet]) -> list[wire.RosterMember]:
        """The members of an inclusion set, in roster order.

        Raises:
            BadRecord: it is not of this group, or names others, or another order.
        """
        record, mine = inclusion.record, self.record
        if (record.run_id, record.round, record.attempt, record.group_id) != (
            mine.run_id,
            mine.round,
            mine.attempt,
            self.group_id,
        ):
            raise BadRecord("an inclusion set of another group")
        chosen = set(record.members)
        members = [member for name, member in self.members.items() if name in chosen]
        if not members or [member.worker for member in members] != list(record.members):
            raise BadRecord("an inclusion set must be a part of the roster, in its order")
        return members


def _layout(record: wire.Roster) -> ChunkLayout:
    size = record.chunk_elements
    if not 1 <= size <= MAX_CHUNK_ELEMENTS or size & (size - 1):
        raise BadRecord(f"chunks of {size} elements: must be a power of two, at most 2^18")
    if not 1 <= record.vector_elements <= MAX_VECTOR_ELEMENTS:
        raise BadRecord(f"a vector of {record.vector_elements} elements is out of bounds")
    layout = ChunkLayout(record.vector_elements, size)
    if record.chunk_count != layout.count:
        raise BadRecord(f"a roster of {record.chunk_count} chunks where there are {layout.count}")
    return layout


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise BadRecord(f"{value[:40]!r} is not one of {', '.join(known)}: update the program")
    return value


def _members(record: wire.Roster) -> dict[str, wire.RosterMember]:
    if not 1 <= len(record.members) <= MAX_ROSTER_MEMBERS:
        raise BadRecord(f"a roster of {len(record.members)} members is out of bounds")
    members = {member.worker: member for member in record.members}
    if len(members) != len(record.members):
        raise BadRecord("a roster names a member twice")
    for name, member in members.items():
        PublicKey.from_peer_id(name)
        if not member.weight or len(member.commitment_root) != HASH_BYTES:
            raise BadRecord(f"a roster without weight or commitment for {name}")
    return members


def _reducers(record: wire.Roster) -> list[wire.ReducerRange]:
    reducers, expected = list(record.reducers), 0
    if len({r.reducer for r in reducers}) != len(reducers):
        raise BadRecord("a roster gives a reducer two ranges")
    for item in reducers:
        PublicKey.from_peer_id(item.reducer)
        if item.first_chunk != expected or item.end_chunk <= item.first_chunk:
            raise BadRecord("the reducers' ranges must follow each other without gap")
        if len(item.multiaddrs) > MAX_MULTIADDRS or any(
            len(address) > MAX_MULTIADDR_CHARS for address in item.multiaddrs
        ):
            raise BadRecord(f"too many or too long addresses for {item.reducer}")
        expected = item.end_chunk
    if expected != record.chunk_count:
        raise BadRecord("the reducers' ranges do not cover the vector")
    return reducers
