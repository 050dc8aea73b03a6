"""The coordinator's part in a reduce of real peers: the run's keys, rosters, inclusion sets."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from protocol.envelope import open_envelope, seal
from protocol.identity import Identity
from protocol.trust import TrustStore, delegate
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire

_DAY_S = 86_400
GROUP_ID_BYTES = 20


class PlayedCoordinator:
    """Signs for a run that nobody else knows of."""

    def __init__(self) -> None:
        self._run_id, self._round_key = os.urandom(32), Identity.generate()
        self._root = Identity.generate()

    def told(self) -> dict[str, str]:
        """What members must know of the run, for :func:`trust_in`."""
        delegation = delegate(
            self._root,
            run_id=self._run_id,
            purpose=wire.KEY_PURPOSE_ROUND,
            public_key=self._round_key.public.raw,
            serial=1,
            not_before_s=0,
            not_after_s=int(time.time()) + _DAY_S,
        )
        return {
            "run_id": self._run_id.hex(),
            "root": self._root.peer_id,
            "delegation": delegation.SerializeToString().hex(),
        }

    def roster(
        self,
        round_: int,
        roots: Mapping[str, bytes],
        reducers: Sequence[wire.ReducerRange],
        layout: ChunkLayout,
        codec: Any,
        *,
        patience_s: float,
        assignment_id: bytes = b"",
    ) -> wire.Envelope:
        """Sign one.

        Args:
            round_: its number.
            roots: each member's commitment.
            reducers: who they are, and their shares.
            layout: of the vector.
            codec: of the chunks.
            patience_s: how long each phase may take.
            assignment_id: of every member, where sizes should be those of real rosters.
        """
        patience_ms, now_ms = int(1000 * patience_s), int(time.time() * 1000)
        members = [
            wire.RosterMember(
                worker=name, weight=1, commitment_root=root, assignment_id=assignment_id
            )
            for name, root in roots.items()
        ]
        roster = wire.Roster(
            run_id=self._run_id,
            round=round_,
            attempt=1,
            members=members,
            reducers=reducers,
            codec=codec,
            combine="mean",
            vector_elements=layout.elements,
            chunk_elements=layout.chunk_elements,
            chunk_count=layout.count,
            gather_deadline_ms=now_ms + patience_ms,
            broadcast_deadline_ms=now_ms + 2 * patience_ms,
        )
        return seal(roster, self._round_key)

    def inclusion(self, roster: wire.Envelope) -> wire.Envelope:
        """All of a roster's members."""
        signed = open_envelope(roster, wire.Roster)
        inclusion = wire.InclusionSet(
            run_id=self._run_id,
            round=signed.record.round,
            attempt=1,
            group_id=signed.digest[:GROUP_ID_BYTES],
            members=[member.worker for member in signed.record.members],
        )
        return seal(inclusion, self._round_key)


def trust_in(told: Mapping[str, Any]) -> TrustStore:
    """A member's, by what :meth:`PlayedCoordinator.told` says."""
    trust = TrustStore(bytes.fromhex(told["run_id"]), told["root"])
    trust.add([wire.Envelope.FromString(bytes.fromhex(told["delegation"]))])
    return trust
