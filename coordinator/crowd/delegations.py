"""What the root key vouches for, and takes back, is in the public record for all to see.

Invariants:

* Every delegation that is stored (:func:`ledger.authority.store_delegations`) gets one leaf, with
  the next thing that is written; what its key signs comes after it.
* A certificate's own delegation is not stored, and has none: it signs nothing that is kept.
* Serials of earlier versions may be larger than an integer of a leaf: those have none, until the
  keys are renewed.

Only delegations bear on whether another may come, so nothing else of the record is read here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.keys import KeyRing
from ledger.acts import Act, leaf_of, open_act
from ledger.authority import load_delegations, store_delegations
from ledger.leaf import MAX_SAFE_INTEGER
from ledger.log import Log
from ledger.records import DelegationLeaf, parse_leaf
from ledger.schema import ActRow, LogLeaf
from protocol.identity import PeerId
from protocol.wire import records_pb2 as wire


@dataclass
class _Logged:
    digests: set[str] = field(default_factory=set)
    delegated: set[int] = field(default_factory=set)
    revoked: set[int] = field(default_factory=set)

    def take(self, leaf: DelegationLeaf) -> None:
        self.digests.add(leaf.record_digest)
        (self.revoked if leaf.revoked else self.delegated).add(leaf.serial)

    def may_come(self, leaf: DelegationLeaf) -> bool:
        """As :class:`ledger.crowd.Crowd` decides."""
        if leaf.record_digest in self.digests:
            return False
        if leaf.revoked:
            return leaf.serial in self.delegated and leaf.serial not in self.revoked
        return leaf.serial not in self.delegated


def log_delegations(
    log: Log, session: Session, *, run_id: bytes, root: PeerId, now_s: float
) -> int:
    """Append the leaves of delegations and revocations that have none.

    Args:
        log: of the run.
        session: of one transaction; the run has its leaf.
        run_id: of the run.
        root: its root key; what another key signed is left out.
        now_s: POSIX time.

    Returns:
        How many there were.
    """
    records = load_delegations(session)
    if records is None:
        return 0
    logged = _logged(session)
    acts = [open_act(envelope) for envelope in (*records.delegations, *records.revocations)]
    count = 0
    for act in sorted(acts, key=_order):
        if act.record.serial > MAX_SAFE_INTEGER:
            continue
        leaf = leaf_of(act, run_id=run_id, at_s=int(now_s))
        assert isinstance(leaf, DelegationLeaf)
        if act.signer != root or not logged.may_come(leaf):
            continue
        (index,) = log.append(session, [leaf])
        session.add(
            ActRow(
                leaf_index=index,
                digest=act.digest.hex(),
                signer=act.signer,
                public=True,
                envelope=act.envelope.SerializeToString(deterministic=True),
            )
        )
        logged.take(leaf)
        count += 1
    session.flush()
    return count


def keep_delegations(log: Log, session: Session, ring: KeyRing, now_s: float) -> None:
    """Publish what the root key signed, and record it, together.

    A revocation that was published and not recorded would take back all that its key ever signed:
    nobody could tell what came before it.
    """
    store_delegations(session, ring.delegations, ring.revocations)
    log_delegations(log, session, run_id=ring.run_id, root=ring.root_id, now_s=now_s)


def _logged(session: Session) -> _Logged:
    logged = _Logged()
    for data in session.scalars(select(LogLeaf.data).where(LogLeaf.kind == "delegation")):
        leaf = parse_leaf(data)
        assert isinstance(leaf, DelegationLeaf)
        logged.take(leaf)
    return logged


def _order(act: Act) -> tuple[bool, int, int]:
    """Delegations before revocations, the oldest first."""
    record = act.record
    if isinstance(record, wire.Delegation):
        return False, record.not_before_s, record.serial
    assert isinstance(record, wire.Revocation)
    return True, 0, record.serial
