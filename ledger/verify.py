"""Replay of a whole log with no trust in who serves it.

Steps, all of which must hold (:func:`verify`):

1. every leaf parses, and contradicts none before it: enrolment, order of rounds, nothing paid
   twice, credit recomputed from the leaf's tokens and the run's formula, draws recomputed from the
   chain that the run leaf fixed, credit final or taken back only as the audits allow, campaigns,
   pledges, money, teams and joined keys by their rules (:mod:`ledger.fold`); and what all persons
   have together is what was credited;
2. the leaves hash to the root of the head, and to every published hash in between;
3. the head is signed by a key that the run's root key delegated, or by the key that was given;
4. the earlier head that was given is a prefix: nothing was rewritten since;
5. every public act is there, signed by the right key, and says what its leaf says
   (:mod:`ledger.act_check`);
6. every total on the leaderboard equals the fold, to the unit.

Without a root fingerprint or key, step 3 starts from the root that the run leaf itself names. That
proves the record whole and of one root, not whose root it is: the report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ledger import tree
from ledger.act_check import ActCheck
from ledger.authority import log_keys
from ledger.fold import Board
from ledger.records import ActLeaf
from ledger.sources import PublishedBoard, PublishedTotals, Source
from ledger.standing import standings
from protocol import merkle
from protocol.audit_policy import Verdict
from protocol.errors import BadDigest, BadRecord, BadSignature
from protocol.identity import PeerId
from protocol.manifest import RunManifest
from protocol.notes import Checkpoint, NoteKey, open_checkpoint, read_checkpoint

Trust = Literal["given root", "given key", "root named by the record"]
Progress = Callable[[int, int], None]
"""``(leaves done, leaves in all)``"""

_SHOWN = (Verdict.PASSED, Verdict.FAILED, Verdict.INCONCLUSIVE, Verdict.UNAVAILABLE)


@dataclass(frozen=True)
class AuditReport:
    """What the record says of audits; every draw among them was recomputed."""

    draws: int  # published, and checked
    awaited: int  # rounds that paid for training, whose draw is not published yet
    selected: int  # contributions, by these draws
    open: int  # of these, without a verdict yet
    passed: int
    failed: int
    inconclusive: int
    unavailable: int
    other: int  # unproven, lost by the organiser, overturned
    audited_tokens: int  # of merged contributions that have a verdict


@dataclass(frozen=True)
class CrowdReport:
    """What the record says of people besides training."""

    campaigns: int  # the manifest's own among them
    pledges: int  # that were made
    donations: int
    pools: int
    teams: int
    acts: int  # public ones, each checked against its leaf and its signature
    unnamed: int  # acts of private and secret pledges and gifts: nobody can check these


@dataclass(frozen=True)
class Report:
    """What a successful verification found."""

    origin: str
    size: int
    root: str  # hex
    run_id: str
    trust: Trust
    root_fingerprint: PeerId
    donors: int  # persons
    devices: int
    rounds: int
    merged_tokens: int
    credited_tokens: int
    pending_microcredits: int
    final_microcredits: int
    forfeited_microcredits: int
    unpaid_microcredits: int
    audits: AuditReport
    crowd: CrowdReport
    old_size: int | None  # of the earlier head that it extends
    board_compared: bool  # a published leaderboard was equal to the fold


def verify(
    source: Source,
    *,
    root: PeerId | None = None,
    vkey: str | None = None,
    old_checkpoint: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Verify everything that ``source`` publishes.

    Args:
        source: where the log lies.
        root: fingerprint of the run's root key, from the join link.
        vkey: instead, the log's verifier key.
        old_checkpoint: a signed head seen earlier.
        progress: told how far the replay is.

    Raises:
        BadRecord, BadDigest, BadSignature: what is wrong; names the leaf where there is one.
        TransientError: the source could not be read.
    """
    published = source.board()  # first: the head that is read next covers it
    note = source.checkpoint()
    head = read_checkpoint(note)
    old = read_checkpoint(old_checkpoint) if old_checkpoint is not None else None
    _check_sizes(head, old, published)
    board, acts, old_at_s = _replay(source, head, old, published, progress)
    assert board.manifest is not None
    _check_names(board.manifest, head, root)
    open_checkpoint(note, _believed_keys(source, board, vkey, board.newest_s))
    if old_checkpoint is not None:
        open_checkpoint(old_checkpoint, _believed_keys(source, board, vkey, old_at_s))
    trust: Trust = "given key" if vkey else "given root" if root else "root named by the record"
    return Report(
        origin=head.origin,
        size=head.size,
        root=head.root.hex(),
        run_id=board.run_id,
        trust=trust,
        root_fingerprint=board.manifest.root,
        donors=sum(1 for _ in board.people.owners()),
        devices=len(board.workers),
        rounds=len(board.rounds),
        merged_tokens=board.merged_tokens,
        credited_tokens=board.total.tokens,
        pending_microcredits=board.total.pending_microcredits,
        final_microcredits=board.total.final_microcredits,
        forfeited_microcredits=board.total.forfeited_microcredits,
        unpaid_microcredits=board.total.unpaid_microcredits,
        audits=_audit_report(board),
        crowd=_crowd_report(board, acts),
        old_size=old.size if old else None,
        board_compared=published is not None,
    )


def _audit_report(board: Board) -> AuditReport:
    audits = board.audits
    said = {word: audits.verdicts[word] for word in _SHOWN}
    return AuditReport(
        draws=len(audits.draws),
        awaited=board.awaited_draws,
        selected=audits.selected,
        open=audits.unaudited,
        passed=said[Verdict.PASSED],
        failed=said[Verdict.FAILED],
        inconclusive=said[Verdict.INCONCLUSIVE],
        unavailable=said[Verdict.UNAVAILABLE],
        other=audits.verdicts.total() - sum(said.values()),
        audited_tokens=audits.audited_tokens,
    )


def _crowd_report(board: Board, acts: ActCheck) -> CrowdReport:
    crowd = board.crowd
    return CrowdReport(
        campaigns=len(crowd.campaigns.campaigns),
        pledges=len(crowd.pledges.pledges),
        donations=len(crowd.pools.donations),
        pools=len(crowd.pools.pools),
        teams=len(crowd.teams.teams),
        acts=acts.checked,
        unnamed=acts.unnamed,
    )


def _check_sizes(head: Checkpoint, old: Checkpoint | None, board: PublishedBoard | None) -> None:
    if head.size == 0:
        raise BadRecord("the log is empty: not even its run was recorded")
    if old is not None and old.origin != head.origin:
        raise BadRecord(f"the earlier head is of {old.origin!r}, this log is {head.origin!r}")
    if old is not None and old.size > head.size:
        raise BadDigest(f"the log shrank: it had {old.size} leaves and now has {head.size}")
    if board is not None and board.size > head.size:
        raise BadDigest(
            f"the leaderboard counts {board.size} leaves, but the signed head only {head.size}"
        )


def _replay(
    source: Source,
    head: Checkpoint,
    old: Checkpoint | None,
    published: PublishedBoard | None,
    progress: Progress,
) -> tuple[Board, ActCheck, int]:
    """The fold of all leaves, their acts, and the newest time under the earlier head."""
    board, edge, check = Board(), tree.Frontier(0, []), source.check()
    acts = ActCheck(source, board)
    old_at_s = 0

    def at_this_size() -> None:
        if old is not None and edge.size == old.size and edge.root() != old.root:
            raise BadDigest(
                f"history was rewritten: the first {old.size} leaves are not those of the "
                "earlier head"
            )
        if published is not None and edge.size == published.size:
            _compare(board, published)

    at_this_size()
    for data in source.entries(head.size):
        made = edge.push(merkle.leaf_hash(data))
        leaf = board.apply(data)
        check.add(leaf, made)
        if isinstance(leaf, ActLeaf):
            acts.add(edge.size - 1, leaf)
        at_this_size()
        if old is not None and edge.size == max(1, old.size):
            old_at_s = board.newest_s
        progress(edge.size, head.size)
    check.finish()
    acts.finish()
    if edge.root() != head.root:
        raise BadDigest(f"the {head.size} leaves do not hash to the root of the signed head")
    board.check_merged()
    board.check_sums()
    return board, acts, old_at_s


def _compare(board: Board, published: PublishedBoard) -> None:
    """Insist that the leaderboard shows the fold."""
    fold = {
        person.owner: PublishedTotals(
            person.pending_microcredits,
            person.final_microcredits,
            person.forfeited_microcredits,
            person.own.tokens,
        )
        for person in (standings(board) if board.size else ())
    }
    for key in fold.keys() | published.donors.keys():
        if fold.get(key) != published.donors.get(key):
            raise BadDigest(
                f"the leaderboard shows {published.donors.get(key)} for donor {key}; "
                f"the first {board.size} leaves give {fold.get(key)}"
            )
    total = board.total
    totals = PublishedTotals(
        total.pending_microcredits,
        total.final_microcredits,
        total.forfeited_microcredits,
        board.merged_tokens,
    )
    if totals != published.total:
        raise BadDigest(
            f"the campaign page shows {published.total}; the first {board.size} leaves give "
            f"{totals}"
        )


def _check_names(manifest: RunManifest, head: Checkpoint, root: PeerId | None) -> None:
    if head.origin != manifest.origin:
        raise BadRecord(f"the head is of {head.origin!r}, the run of {manifest.origin!r}")
    if root is not None and root != manifest.root:
        raise BadSignature(
            f"leaf 0: this run's root key is {manifest.root}, not the one that was given"
        )


def _believed_keys(source: Source, board: Board, vkey: str | None, at_s: int) -> list[NoteKey]:
    """Keys that may sign a head whose newest leaf is of ``at_s``."""
    if vkey is not None:
        return [NoteKey.parse(vkey)]
    delegations = source.delegations()
    if delegations is None:
        raise BadSignature("no delegations are published with this log: give its --vkey")
    assert board.manifest is not None
    return log_keys(
        delegations,
        board.manifest.root,
        board.manifest.origin,
        run_id=bytes.fromhex(board.run_id),
        at_s=at_s,
    )
