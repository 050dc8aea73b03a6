"""Bringing back what a backup's record lacks, from a copy of the record that is newer.

A mirror, the leaderboard's site or a folder of tiles may hold leaves that were written after the
backup. They are put back as they were, so that heads that were signed meanwhile stay prefixes of
the record; and the database is told what they say of work that it knows.

Invariants:

* Leaves are believed because they extend the backup's own tree, hash to a head that a key of the
  run's root has signed, and contradict none before them (:mod:`ledger.fold`).
* Public acts come back with their leaves.
* Afterwards the database says nothing that the record would refuse: what was judged, published,
  made final or taken back is not judged, published, made final or taken back again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.audit.begin import begin_audit
from coordinator.audit.schema import (
    DECIDED,
    DONE,
    FAILED,
    LAPSED,
    PASSED,
    REFUSED,
    AuditJobRow,
    AuditRow,
    BlockRow,
    ChallengeRow,
    DrawRow,
    OtherCreditRow,
    ProbationRow,
    ReducerAuditRow,
    TrustRow,
)
from coordinator.blocks import AUDIT, ORGANISER
from coordinator.context import RunContext
from coordinator.record import keep_loss
from coordinator.schema import ContributionRow, RoundRow, StateRow
from ledger import tree
from ledger.acts import leaf_of, open_act
from ledger.authority import Delegations, log_keys, store_delegations
from ledger.fold import Board
from ledger.records import ActLeaf, DelegationLeaf, Leaf, VerdictLeaf, parse_leaf
from ledger.schema import ActRow
from ledger.sources import Source
from ledger.tally import Judgement
from protocol import merkle
from protocol.audit_policy import Verdict, Why
from protocol.draw import SEED_BYTES
from protocol.envelope import parse_envelope
from protocol.errors import BadDigest, BadRecord
from protocol.notes import open_checkpoint, read_checkpoint

_PER_APPEND = 1000
_MICRONATS = 1_000_000


@dataclass(frozen=True)
class Recovered:
    """What a copy of the record gave back."""

    leaves: int
    last_round: int  # that it speaks of; -1: none


def recover(context: RunContext, session: Session, source: Source) -> Recovered:
    """Append the leaves that the backup lacks, and tell the database what they say.

    Args:
        context: of the run.
        session: of one transaction on the restored database.
        source: a copy of the record; nothing of it is believed.

    Raises:
        BadDigest: it is another record, or leads to another head.
        BadRecord, BadSignature: it is damaged, or not signed by a key of the run.
        TransientError: it cannot be read.
    """
    note = source.checkpoint()
    head = read_checkpoint(note)
    if head.origin != context.log.origin:
        raise BadRecord(
            f"the copy is of {head.origin!r}, the run's record is {context.log.origin!r}"
        )
    size = tree.tree_size(session)
    board, lost = _read(session, source, head.size, size, head.root)
    open_checkpoint(
        note,
        log_keys(
            _delegations(context, source),
            context.manifest.root,
            head.origin,
            run_id=context.run_id,
            at_s=board.newest_s,
        ),
    )
    if lost:
        leaves = [parse_leaf(data) for data in lost]
        for first in range(0, len(leaves), _PER_APPEND):
            context.log.append(session, leaves[first : first + _PER_APPEND])
        _tell(session, board, size)
        keep_acts(session, source, board, leaves, size)
        records = _delegations(context, source)
        store_delegations(session, records.delegations, records.revocations)
    return Recovered(len(lost), max((*board.rounds, *board.credited, -1)))


def _read(
    session: Session, source: Source, head_size: int, size: int, head_root: bytes
) -> tuple[Board, list[bytes]]:
    """The fold of the copy, and the leaves of it that the backup lacks."""
    board, edge, lost = Board(), tree.Frontier(0, []), list[bytes]()
    for data in source.entries(head_size):
        edge.push(merkle.leaf_hash(data))
        board.apply(data)
        if edge.size > size:
            lost.append(data)
        elif edge.size == min(size, head_size):
            _check_prefix(session, edge)
    if edge.root() != head_root:
        raise BadDigest("the copy's leaves do not hash to the root of its head")
    board.check_merged()
    return board, lost


def _check_prefix(session: Session, edge: tree.Frontier) -> None:
    if edge.root() != tree.root(session, edge.size):
        raise BadDigest(
            f"the first {edge.size} leaves of the copy are not those of the backup: it is a copy "
            "of another history of this run"
        )


def _delegations(context: RunContext, source: Source) -> Delegations:
    published = source.delegations() or Delegations(context.run_id)
    keys = context.keys
    return Delegations(
        context.run_id,
        (*keys.delegations, *published.delegations),
        (*keys.revocations, *published.revocations),
    )


def keep_acts(
    session: Session, source: Source, board: Board, leaves: Sequence[Leaf], start: int
) -> None:
    """Keep the signed acts behind the leaves that came back.

    Of unnamed ones the copy has nothing: their row says only that they are there, so nobody can
    revise them or make them void any more.

    Args:
        session: of one transaction.
        source: the copy of the record.
        board: its fold.
        leaves: that came back.
        start: index of the first one.

    Raises:
        BadRecord, BadSignature: a public act is missing, or another one than its leaf says.
    """
    for index, leaf in enumerate(leaves, start):
        if not isinstance(leaf, ActLeaf) or isinstance(leaf, DelegationLeaf):
            continue  # what the root key signed comes with the delegations
        row = ActRow(leaf_index=index, digest=leaf.record_digest, signer="", public=False)
        row.envelope = b""
        if board.crowd.is_public(leaf):
            data = source.act(index)
            if data is None:
                raise BadRecord(f"the signed act of leaf {index} is not in the copy")
            act = open_act(parse_envelope(data))
            if leaf_of(act, run_id=bytes.fromhex(leaf.run_id), at_s=leaf.at_s) != leaf:
                raise BadRecord(f"the act of leaf {index} is another one than the leaf says")
            row.signer, row.public, row.envelope = act.signer, True, data
        session.add(row)
    session.flush()


# ---- what the leaves say of the database's rows ----


def _tell(session: Session, board: Board, size: int) -> None:
    _tell_rounds(session, board)
    _tell_credit(session, board)
    published = update(DrawRow).where(DrawRow.round.in_(list(board.audits.draws)))
    session.execute(published.values(published=True))
    for index, judgement in board.audits.judgements.items():
        if index >= size:
            _tell_verdict(session, judgement)
    for row in session.scalars(select(TrustRow)):
        worker = board.workers.get(row.worker)
        # The record may know more passes than the database, never fewer (coordinator.audit.trust).
        row.passes = min(row.passes, worker.passes[row.execution] if worker else 0)
    _tell_blocks(session, board)
    session.flush()


def _tell_rounds(session: Session, board: Board) -> None:
    losses = {e.leaf.state_digest: e.leaf.validation_loss_micronats for e in board.rounds.values()}
    for state in session.scalars(select(StateRow).where(StateRow.evaluated.is_(False))).all():
        if state.digest.hex() in losses:
            loss = losses[state.digest.hex()]
            keep_loss(session, state.settled_rounds, None if loss is None else loss / _MICRONATS)
    for row in session.scalars(select(RoundRow).where(RoundRow.ended_at_s.is_not(None))):
        row.logged = row.logged or row.number in board.rounds


def _tell_credit(session: Session, board: Board) -> None:
    for row in session.scalars(select(ContributionRow)):
        credit = board.accounts.by_assignment.get(row.assignment_id.hex())
        if credit is not None:
            # Work of the backup's round that was merged after it has its receipt here, too.
            row.leaf_index, row.credit = credit.index, credit.status
            row.reversed_by = credit.reversed_by
            row.credited_at_s = row.credited_at_s or float(credit.leaf.at_s)
    for other in session.scalars(select(OtherCreditRow)):
        credit = board.accounts.credits[other.leaf_index]
        other.credit, other.reversed_by = credit.status, credit.reversed_by


def _tell_verdict(session: Session, judgement: Judgement) -> None:
    leaf = judgement.leaf
    if leaf.assignment_id is None:
        session.execute(
            update(ReducerAuditRow)
            .where(
                ReducerAuditRow.round == leaf.round,
                ReducerAuditRow.reducer == leaf.worker,
                ReducerAuditRow.chunk == leaf.chunk,
            )
            .values(
                phase=DECIDED,
                verdict=leaf.verdict,
                reason=leaf.reason,
                decided_at_s=float(leaf.at_s),
                leaf_index=judgement.leaf_index,
            )
        )
        return
    assignment_id = bytes.fromhex(leaf.assignment_id)
    for audit in _audits_of(session, assignment_id, leaf, judgement.donor):
        audit.phase, audit.verdict, audit.reason = DECIDED, leaf.verdict, leaf.reason
        audit.decided_at_s, audit.leaf_index = float(leaf.at_s), judgement.leaf_index
        of_audit = AuditJobRow.audit_id == audit.audit_id
        session.execute(update(AuditJobRow).where(of_audit).values(status=DONE))
        asked = ChallengeRow.audit_id == audit.audit_id
        session.execute(update(ChallengeRow).where(asked).values(status=REFUSED))
    unit = session.get(ProbationRow, assignment_id)
    if unit is not None:
        words = {Verdict.PASSED: PASSED, Verdict.FAILED: FAILED}
        unit.status = words.get(Verdict(leaf.verdict), LAPSED)


def _audits_of(
    session: Session, assignment_id: bytes, leaf: VerdictLeaf, donor: str
) -> list[AuditRow]:
    """Open audits of a contribution that the database knows; one is made if there was none yet."""
    rows = session.scalars(select(AuditRow).where(AuditRow.assignment_id == assignment_id)).all()
    if not rows and session.get(ContributionRow, assignment_id) is not None:
        return [
            begin_audit(
                session,
                subject=leaf.subject,
                assignment_id=assignment_id,
                round_=leaf.round,
                worker=leaf.worker,
                donor=donor,
                execution=leaf.execution or "cpu",
                why=Why(leaf.why),
                draw=bytes(SEED_BYTES),
                projection_seed=bytes(SEED_BYTES),
                now_s=float(leaf.at_s),
            )
        ]
    return [row for row in rows if row.phase != DECIDED]


def _tell_blocks(session: Session, board: Board) -> None:
    held = {row.key: row for row in session.scalars(select(BlockRow))}
    for key in held.keys() - board.audits.blocked.keys():
        session.delete(held[key])
    for key in board.audits.blocked.keys() - held.keys():
        leaf = board.audits.blocked[key]
        session.add(
            BlockRow(
                key=key,
                reason=f"the public record says so: {leaf.reason}",
                source=ORGANISER if leaf.reason == "organiser" else AUDIT,
                at_s=float(leaf.at_s),
            )
        )
