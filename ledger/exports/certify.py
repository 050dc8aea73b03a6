"""Makes certificates (:mod:`ledger.exports.certificate`) from the database that holds the log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
from ledger.tally import Status
from protocol.identity import PeerId
from protocol.multiproof import prove_many
from protocol.notes import read_checkpoint

_JOINING = ("enrol", "key_rotation", "merge")
_ROWS = 500


@dataclass(frozen=True)
class State:
    """What became of a credit."""

    status: Status
    changed_by: int | None  # leaf that gave it this status; None: its own


def count_parts(session: Session, keys: Sequence[PeerId], size: int) -> int:
    """How many certificates the history of these keys fills."""
    count = session.scalar(
        select(func.count()).where(
            LogLeaf.donor.in_(keys), LogLeaf.kind == "credit", LogLeaf.leaf_index < size
        )
    )
    return max(1, -(-(count or 0) // CREDITS_PER_PART))


def states_of(
    session: Session, board: Board, *, keys: Sequence[PeerId], part: int
) -> dict[int, State]:
    """The credits that a part is of, by leaf index, as ``board`` has them. Quick: no leaf is read.

    Args:
        session: of the database that holds the log.
        board: the fold.
        keys: all keys of the person.
        part: from 1 on, in the order of the log.
    """
    indexes = session.scalars(
        select(LogLeaf.leaf_index)
        .where(LogLeaf.donor.in_(keys), LogLeaf.kind == "credit", LogLeaf.leaf_index < board.size)
        .order_by(LogLeaf.leaf_index)
        .limit(CREDITS_PER_PART)
        .offset((part - 1) * CREDITS_PER_PART)
    )
    credits = (board.accounts.credits[index] for index in indexes)
    return {credit.index: State(credit.status, credit.changed_by) for credit in credits}


def make_certificate(
    session: Session,
    note: str,
    states: Mapping[int, State],
    *,
    subject: PeerId,
    keys: Sequence[PeerId],
    part: int = 1,
    parts: int = 1,
    claims: dict[str, int] | None = None,
) -> Certificate:
    """One part of a person's certificate.

    Args:
        session: of the database that holds the log.
        note: the signed head that ``states`` are folded to.
        states: the credits of this part (:func:`states_of`).
        subject: the key that the person is shown under.
        keys: all keys of the person.
        part: which part this is, from 1.
        parts: how many there are (:func:`count_parts`).
        claims: amounts to mention that its leaves do not prove.
    """
    size = read_checkpoint(note).size
    changes = {state.changed_by for state in states.values() if state.changed_by is not None}
    leaves = _leaves(session, {0, size - 1, *states, *changes})
    leaves |= _leaves(session, _verdicts(leaves))
    leaves |= _joining(session, keys, size, leaves)
    indexes = sorted(leaves)
    credits = ((index, parse_leaf(leaves[index])) for index in states)
    delegations = load_delegations(session)
    return Certificate(
        subject=subject,
        keys=list(keys),
        part=part,
        parts=parts,
        leaves=[Entry(index=index, leaf=json.loads(leaves[index])) for index in indexes],
        proof=encode_proof(_prove(session, indexes, size)),
        checkpoint=note,
        delegations=json.loads(delegations.log_only().dump()) if delegations else None,
        totals=totals_of(
            (leaf, states[index].status) for index, leaf in credits if isinstance(leaf, CreditLeaf)
        ),
        claims=claims or {},
    )


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
