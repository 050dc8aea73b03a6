"""Which keys are one person's, as far as letting in and sending away go.

The public record says who joined whom (:mod:`ledger.people`); this reads the few leaves that do,
without folding the rest.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger.records import KeyRotationLeaf, MergeLeaf, parse_leaf
from ledger.schema import LogLeaf
from protocol.errors import UsageError
from protocol.identity import PeerId

_JOINS = ("key_rotation", "merge")


def require_own_key(session: Session, donor: PeerId) -> None:
    """Insist that a donor's key stands for a person: new devices are enrolled for such only.

    Raises:
        UsageError: it was given up for another one.
    """
    data = session.scalar(
        select(LogLeaf.data).where(LogLeaf.donor == donor, LogLeaf.kind.in_(_JOINS)).limit(1)
    )
    if data is not None:
        raise UsageError(
            f"the key {donor} was given up for {_new_key(data)}: enrol new devices for that one"
        )


def keys_of_person(session: Session, key: PeerId) -> set[PeerId]:
    """All keys of the person behind one of them; of a device's key, that one."""
    joined: dict[PeerId, PeerId] = {}
    for data in session.scalars(select(LogLeaf.data).where(LogLeaf.kind.in_(_JOINS))):
        leaf = parse_leaf(data)
        assert isinstance(leaf, KeyRotationLeaf | MergeLeaf)
        joined[leaf.donor] = _new_key(data)

    def shown(one: PeerId) -> PeerId:
        while one in joined:
            one = joined[one]
        return one

    mine = shown(key)
    return {one for one in {key, *joined, *joined.values()} if shown(one) == mine}


def _new_key(data: bytes) -> PeerId:
    leaf = parse_leaf(data)
    assert isinstance(leaf, KeyRotationLeaf | MergeLeaf)
    return leaf.new if isinstance(leaf, KeyRotationLeaf) else leaf.into
