"""Makes certificates (:mod:`ledger.exports.certificate`) from the database that holds the log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ledger import tree
from ledger.audit_records import ReversalLeaf
from ledger.authority import load_delegations
from ledger.exports.certificate import (
    CREDITS_PER_PART,
    Certificate,
    Entry,
    encode_proof,
    totals_of,
)
from ledger.fold import Board
from ledger.records import CreditLeaf, parse_leaf
from ledger.schema import LogLeaf
from protocol.identity import PeerId
from protocol.multiproof import prove_many
from protocol.notes import read_checkpoint

_JOINING = ("enrol", "key_rotation", "merge")
_ROWS = 500


def count_parts(session: Session, keys: Sequence[PeerId], size: int) -> int:
    """How many certificates the history of these keys fills."""
    count = session.scalar(
        select(func.count()).where(
            LogLeaf.donor.in_(keys), LogLeaf.kind == "credit", LogLeaf.leaf_index < size
        )
    )
    return max(1, -(-(count or 0) // CREDITS_PER_PART))


def make_certificate(
    session: Session,
    board: Board,
    note: str,
    *,
    subject: PeerId,
    keys: Sequence[PeerId],
    part: int = 1,
    claims: dict[str, int] | None = None,
) -> Certificate:
    """One part of a person's certificate, under the head ``note`` that ``board`` is folded to.

    Args:
        session: of the database that holds the log.
        board: the fold; says which leaf gave each credit its present status.
        note: the signed head.
        subject: the key that the person is shown under.
        keys: all keys of the person.
        part: from 1 on, in the order of the log.
        claims: amounts to mention that its leaves do not prove.
    """
    size = read_checkpoint(note).size
    credits = _credits_of(session, keys, size, part)
    leaves = _leaves(session, {0, size - 1, *credits, *_changes(board, credits)})
    leaves |= _leaves(session, _verdicts(leaves))
    leaves |= _joining(session, keys, size, leaves)
    indexes = sorted(leaves)
    delegations = load_delegations(session)
    return Certificate(
        subject=subject,
        keys=list(keys),
        part=part,
        parts=count_parts(session, keys, size),
        leaves=[Entry(index=index, leaf=json.loads(leaves[index])) for index in indexes],
        proof=encode_proof(_prove(session, indexes, size)),
        checkpoint=note,
        delegations=json.loads(delegations.log_only().dump()) if delegations else None,
        totals=totals_of(
            (leaf, board.accounts.credits[index].status)
            for index, leaf in ((index, parse_leaf(leaves[index])) for index in credits)
            if isinstance(leaf, CreditLeaf)
        ),
        claims=claims or {},
    )


def _credits_of(session: Session, keys: Sequence[PeerId], size: int, part: int) -> list[int]:
    return list(
        session.scalars(
            select(LogLeaf.leaf_index)
            .where(LogLeaf.donor.in_(keys), LogLeaf.kind == "credit", LogLeaf.leaf_index < size)
            .order_by(LogLeaf.leaf_index)
            .limit(CREDITS_PER_PART)
            .offset((part - 1) * CREDITS_PER_PART)
        )
    )


def _changes(board: Board, credits: Iterable[int]) -> set[int]:
    changed = (board.accounts.credits[index].changed_by for index in credits)
    return {index for index in changed if index is not None}


def _verdicts(leaves: dict[int, bytes]) -> set[int]:
    parsed = (parse_leaf(data) for data in leaves.values())
    return {leaf.verdict_leaf for leaf in parsed if isinstance(leaf, ReversalLeaf)}


def _joining(
    session: Session, keys: Sequence[PeerId], size: int, leaves: dict[int, bytes]
) -> dict[int, bytes]:
    """Enrolments of the credited devices, and what joins the keys."""
    devices = {
        (leaf.worker, leaf.donor)
        for leaf in (parse_leaf(data) for data in leaves.values())
        if isinstance(leaf, CreditLeaf)
    }
    rows = session.execute(
        select(LogLeaf.leaf_index, LogLeaf.data)
        .where(LogLeaf.donor.in_(keys), LogLeaf.kind.in_(_JOINING), LogLeaf.leaf_index < size)
        .order_by(LogLeaf.leaf_index)
    )
    kept: dict[int, bytes] = {}
    for index, data in rows:
        named = json.loads(data)
        if named["kind"] == "enrol":
            pair = named["worker"], named["donor"]
            if pair not in devices:
                continue
            devices.remove(pair)  # its first enrolment comes before all of its credit
        kept[index] = data
    return kept


def _leaves(session: Session, indexes: Iterable[int]) -> dict[int, bytes]:
    wanted = sorted(indexes)
    found: dict[int, bytes] = {}
    for first in range(0, len(wanted), _ROWS):
        rows = session.execute(
            select(LogLeaf.leaf_index, LogLeaf.data).where(
                LogLeaf.leaf_index.in_(wanted[first : first + _ROWS])
            )
        )
        found.update((row.leaf_index, row.data) for row in rows)
    return found


def _prove(session: Session, indexes: Sequence[int], size: int) -> list[bytes]:
    """The proof, read in two goes: first which nodes it takes, then their hashes at once."""
    ranges: list[tuple[int, int]] = []

    def note(start: int, end: int) -> bytes:
        ranges.append((start, end))
        return b""

    prove_many(indexes, size, note)
    nodes = tree.load_nodes(
        session, (node for start, end in ranges for node in tree.cover(start, end))
    )
    return [tree.combine([nodes[node] for node in tree.cover(*span)]) for span in ranges]
