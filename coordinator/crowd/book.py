"""What may be written into the public record next, by the rules that everybody folds it with.

The book holds the fold of the record (:class:`ledger.fold.Board`), and asks it before it appends.
It is exact by construction: whoever verifies the record asks the same code, of the same leaves, in
the same order. So no leaf of an act is ever written that the fold refuses.

What the fold cannot see is asked here, too: whether the signer's key was delegated what it does
(:mod:`protocol.trust`), and whether the pledge that is revised or made void was the signer's own,
which for an unnamed one only the stored envelopes tell.

Invariants:

* A leaf and the act behind it are written in the caller's transaction, together.
* The same act again gives the same answer and writes nothing.
* The fold follows committed leaves. What it took of a transaction that was undone does not hash to
  the stored tree, and the fold begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger import tree
from ledger.acts import Act, leaf_of, purpose_of
from ledger.authority import load_delegations
from ledger.crowd_records import CampaignLeaf, CrowdLeaf, PledgeLeaf
from ledger.fold import Board
from ledger.log import Log, read_leaves
from ledger.schema import ActRow
from protocol import merkle
from protocol.errors import (
    BadDigest,
    BadRecord,
    BadSignature,
    Conflict,
    NotEnrolled,
    TransientError,
    UsageError,
)
from protocol.identity import PeerId
from protocol.manifest import RunManifest
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire

_DONOR_FIELDS: dict[type[Message], str] = {
    wire.Pledge: "donor",
    wire.TeamFounding: "founder",
    wire.TeamMembership: "donor",
    wire.KeyChange: "old",
    wire.AccountMerge: "donor",
}


@dataclass(frozen=True)
class Recorded:
    """Where an act stands in the record."""

    leaf_index: int
    is_new: bool  # False: it was there already


class Book:
    """The record of one run, and what may come next. Used on one thread at a time."""

    def __init__(self, log: Log, manifest: RunManifest) -> None:
        """Begin with nothing; :meth:`follow` reads the leaves."""
        self._log = log
        self._manifest = manifest
        self._begin()

    def _begin(self) -> None:
        self.board = Board()
        self._edge = tree.Frontier(0, [])

    def follow(self, session: Session, most: int | None = None) -> bool:
        """Fold the leaves that are new.

        Args:
            session: of one transaction.
            most: not more of them than this.

        Returns:
            Whether there are no more.

        Raises:
            TransientError: the record is damaged, or contradicts itself: until it is repaired,
                nothing is added to it here.
        """
        try:
            size = tree.tree_size(session)
            if not self._is_prefix(session, size):
                self._begin()
            start = self.board.size
            end = size if most is None else min(size, start + most)
            for data in read_leaves(session, start, end):
                self.board.apply(data)
                self._edge.push(merkle.leaf_hash(data))
        except (BadRecord, BadDigest) as error:
            raise TransientError(
                f"the public record cannot be read: {error}; the organiser sees what to do with "
                "'barnraise ledger verify'"
            ) from error
        return end == size

    def _is_prefix(self, session: Session, size: int) -> bool:
        """Whether what was folded is still the beginning of the record."""
        folded = self.board.size
        return folded == 0 or (folded <= size and tree.root(session, folded) == self._edge.root())

    # ---- asking ----

    def find(self, session: Session, act: Act) -> Recorded | None:
        """Where this very act is recorded, if it is."""
        index = session.scalar(select(ActRow.leaf_index).where(ActRow.digest == act.digest.hex()))
        return None if index is None else Recorded(index, False)

    def check(self, session: Session, act: Act, now_s: float) -> CrowdLeaf:
        """Insist that an act may be recorded now; the book has followed to the end.

        Returns:
            The leaf that it would leave.

        Raises:
            BadRecord: it is malformed, or no act of this run.
            BadSignature: its signer may not do this.
            NotEnrolled: its signer has no account.
            Conflict: another act is recorded under its natural key.
            UsageError: the record says otherwise, with the reason.
        """
        leaf = leaf_of(act, run_id=self._manifest.run_id, at_s=int(now_s))
        self._check_signer(session, act, now_s)
        self._check_conflict(act)
        self._check_own(session, act)
        try:
            self.board.check_act(leaf)
        except BadRecord as error:
            raise UsageError(f"this cannot be recorded: {error}") from error
        return leaf

    def append(self, session: Session, act: Act, leaf: CrowdLeaf) -> Recorded:
        """Write what :meth:`check` found right, in the same transaction."""
        (index,) = self._log.append(session, [leaf])
        session.add(
            ActRow(
                leaf_index=index,
                digest=act.digest.hex(),
                signer=act.signer,
                public=self.board.crowd.is_public(leaf),
                envelope=act.envelope.SerializeToString(deterministic=True),
            )
        )
        session.flush()
        return Recorded(index, True)

    def record(self, session: Session, act: Act, now_s: float) -> Recorded:
        """Follow, check and append, unless the act is recorded already.

        Raises:
            BadRecord, BadSignature, NotEnrolled, Conflict, UsageError: see :meth:`check`.
        """
        self.follow(session)
        earlier = self.find(session, act)
        if earlier is not None:
            return earlier
        return self.append(session, act, self.check(session, act, now_s))

    def keys_of(self, signer: PeerId) -> tuple[PeerId, ...]:
        """All keys of the person who signs with this one, the oldest last.

        Raises:
            NotEnrolled: it has no account.
            UsageError: it was given up.
        """
        people = self.board.people
        if people.is_given_up(signer):
            raise UsageError(
                f"this key was given up for {people.owner_of(signer)}: act with that one"
            )
        if not people.is_known(signer):
            raise NotEnrolled(
                "only donors with an admitted device may do this: enrol one first "
                "('barnraise worker join')"
            )
        return people.keys_of(signer)

    # ---- steps of a check ----

    def _check_signer(self, session: Session, act: Act, now_s: float) -> None:
        purpose = purpose_of(act)
        if isinstance(act.record, wire.Voiding):
            purpose = self._purpose_of_void(act.record)
        if purpose is not None:
            self._trust(session).require_signer(purpose, act.signer, now_s)
        elif type(act.record) in _DONOR_FIELDS:
            self.keys_of(getattr(act.record, _DONOR_FIELDS[type(act.record)]))

    def _purpose_of_void(self, record: wire.Voiding) -> wire.KeyPurpose | None:
        """A treasurer that was dismissed makes nothing void; a donor needs no delegation."""
        undone = self.board.crowd.voidable.get(record.leaf)
        if undone is None or isinstance(undone.leaf, PledgeLeaf):
            return None
        return wire.KEY_PURPOSE_TREASURER

    def _trust(self, session: Session) -> TrustStore:
        store = TrustStore(self._manifest.run_id, self._manifest.root)
        records = load_delegations(session)
        if records is not None:
            store.add(records.delegations, records.revocations)
        return store

    def _check_conflict(self, act: Act) -> None:
        index = self._holder(act.record)
        if index is not None:
            raise Conflict(
                f"another act is recorded under the same name, as leaf {index}: it stands"
            )

    def _holder(self, record: Any) -> int | None:
        """The leaf that has the natural key of an act."""
        crowd = self.board.crowd
        if isinstance(record, wire.CampaignTerms):
            campaign = crowd.campaigns.campaigns.get(record.campaign.hex())
            return _revision(campaign.revisions if campaign else [], record.revision)
        if isinstance(record, wire.Pledge):
            pledge = crowd.pledges.pledges.get(record.pledge.hex())
            return _revision(pledge.revisions if pledge else [], record.revision)
        if isinstance(record, wire.Donation):
            donation = crowd.pools.donations.get(record.donation.hex())
            return donation.leaf_index if donation else None
        if isinstance(record, wire.Pool):
            pool = crowd.pools.pools.get(record.pool)
            return pool.leaf_index if pool else None
        if isinstance(record, wire.TeamFounding):
            team = crowd.teams.teams.get(record.team.hex())
            return team.leaf_index if team else None
        if isinstance(record, wire.Voiding):
            undone = crowd.voidable.get(record.leaf)
            return undone.voided[0] if undone and undone.voided else None
        return None

    def _check_own(self, session: Session, act: Act) -> None:
        """Insist that a pledge is revised or made void by the person who signed it.

        Money is made void by any treasurer: the one who signed it may be gone.
        """
        record: Any = act.record
        if isinstance(record, wire.Voiding):
            undone = self.board.crowd.voidable.get(record.leaf)
            if undone is None or not isinstance(undone.leaf, PledgeLeaf):
                return
            earlier = record.leaf
        elif isinstance(record, wire.Pledge) and record.pledge.hex() in self._pledges:
            earlier = self._pledges[record.pledge.hex()].leaf_index
        else:
            return
        row = session.get(ActRow, earlier)
        if row is None or not row.signer:
            raise UsageError(f"who signed leaf {earlier} is not known any more: it stands")
        if row.signer not in {act.signer, *self.board.people.keys_of(act.signer)}:
            raise BadSignature(f"leaf {earlier} was signed by somebody else")

    @property
    def _pledges(self) -> Any:
        return self.board.crowd.pledges.pledges


def _revision(
    revisions: list[tuple[int, CampaignLeaf]] | list[tuple[int, PledgeLeaf]], number: int
) -> int | None:
    return next((index for index, leaf in revisions if leaf.revision == number), None)
