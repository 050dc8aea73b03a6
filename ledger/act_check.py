"""Every public act against its leaf, when a record is verified.

What must hold of the leaf of an act that is public (:meth:`ledger.crowd.Crowd.is_public`):

1. its signed act is published, and is the one that the leaf names by digest;
2. the leaf is what that act leaves (:func:`ledger.acts.leaf_of`), field by field;
3. the right key signed: the donor's own; for campaigns, news, money, pools and what makes them void
   a key that the root key had delegated for it at the leaf's time, and had not revoked by an
   earlier leaf; for a delegation the root key itself. A void of a pledge is signed by a key of the
   person whose pledge it is.

A revocation carries no time: where it has no leaf, nothing that its key ever signed stands.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

from ledger.acts import Act, leaf_of, open_act, purpose_of
from ledger.authority import Delegations
from ledger.fold import Board
from ledger.pledges import Pledge
from ledger.records import ActLeaf, DelegationLeaf, VoidLeaf
from protocol.envelope import open_envelope, parse_envelope
from protocol.errors import BadDigest, BadRecord, BadSignature, PeerFault
from protocol.identity import PeerId, PublicKey
from protocol.wire import records_pb2 as wire


@dataclass(frozen=True)
class _Signed:
    """An act of a delegated key."""

    leaf_index: int
    at_s: int
    purpose: wire.KeyPurpose
    signer: PeerId


class ActSource(Protocol):
    """Where acts, and who may sign them, are read from: a :class:`ledger.sources.Source`, say."""

    def act(self, index: int) -> bytes | None: ...

    def delegations(self) -> Delegations | None: ...


class ActCheck:
    """Takes every leaf behind the fold, and keeps what only the end of the record can tell."""

    def __init__(self, source: ActSource, board: Board) -> None:
        self._source = source
        self._board = board
        self._delegated: list[_Signed] = []
        self._records: Delegations | None = None
        self._by_digest: dict[str, wire.Envelope] = {}
        self.checked = 0  # acts that were there and right
        self.unnamed = 0  # acts that nobody may see

    def add(self, index: int, leaf: ActLeaf) -> None:
        """Check the act behind a leaf that the fold has just taken.

        Raises:
            BadRecord, BadDigest, BadSignature: naming the leaf.
        """
        if not self._board.crowd.is_public(leaf):
            self.unnamed += 1
            return
        try:
            act = open_act(self._envelope(index, leaf))
            self._compare(act, leaf)
            self._check_signer(index, act, leaf)
        except PeerFault as error:
            raise type(error)(f"leaf {index}: {error}") from error
        self.checked += 1

    def finish(self) -> None:
        """Check the delegated keys, now that every revocation is known.

        Raises:
            BadSignature: naming the leaf whose act a key signed that was not delegated.
        """
        if not self._delegated:
            return
        records, revoked = self._delegations()
        for signed in self._delegated:
            key = PublicKey.from_peer_id(signed.signer).raw
            if not any(
                record.not_before_s <= signed.at_s <= record.not_after_s
                and self._stood(record.serial, revoked, signed.leaf_index)
                for record in records[signed.purpose, key]
            ):
                name = wire.KeyPurpose.Name(signed.purpose).removeprefix("KEY_PURPOSE_").lower()
                raise BadSignature(
                    f"leaf {signed.leaf_index}: its act is signed by {signed.signer}, which was "
                    f"no {name} key of this run then"
                )
        self._records = None  # the record may go on, and new keys with it

    def _envelope(self, index: int, leaf: ActLeaf) -> wire.Envelope:
        if isinstance(leaf, DelegationLeaf):
            self._need_delegations()
            found = self._by_digest.get(leaf.record_digest)
            if found is None:
                raise BadRecord("it speaks of a delegation that is not published")
            return found
        data = self._source.act(index)
        if data is None:
            raise BadRecord("its signed act is not published: nothing shows that somebody did it")
        return parse_envelope(data)

    def _compare(self, act: Act, leaf: ActLeaf) -> None:
        if act.digest.hex() != leaf.record_digest:
            raise BadDigest("the published act is not the one that it names")
        made = leaf_of(act, run_id=bytes.fromhex(leaf.run_id), at_s=leaf.at_s)
        if made == leaf:
            return
        if type(made) is not type(leaf):
            raise BadDigest(f"the signed act is a {made.kind}")
        names = type(leaf).model_fields
        name = next(name for name in names if getattr(made, name) != getattr(leaf, name))
        says, signed = getattr(leaf, name), getattr(made, name)
        raise BadDigest(f"its {name} is {says!r}; in the signed act it is {signed!r}")

    def _check_signer(self, index: int, act: Act, leaf: ActLeaf) -> None:
        """Donors' own signatures :func:`open_act` has checked; this is about the others."""
        purpose = purpose_of(act)
        if isinstance(leaf, DelegationLeaf):
            root = self._board.manifest.root if self._board.manifest else ""
            if act.signer != root:
                raise BadSignature(f"delegated by {act.signer}, not by the root key {root}")
        elif isinstance(leaf, VoidLeaf):
            undone = self._board.crowd.voidable[leaf.leaf]
            if isinstance(undone, Pledge):
                self._check_same_person(act.signer, undone.leaf.donor or "")
            else:
                purpose = wire.KEY_PURPOSE_TREASURER
        if purpose is not None:
            self._delegated.append(_Signed(index, leaf.at_s, purpose, act.signer))

    def _check_same_person(self, signer: PeerId, donor: PeerId) -> None:
        people = self._board.people
        if people.owner_of(signer) != people.owner_of(donor):
            raise BadSignature(f"{signer} makes a pledge of {donor} void")

    def _stood(self, serial: int, revoked: set[int], index: int) -> bool:
        """Whether a delegation was not revoked before a leaf."""
        if serial not in revoked:
            return True
        entry = self._board.crowd.revocations.get(serial)
        return entry is not None and entry[0] > index

    def _delegations(
        self,
    ) -> tuple[dict[tuple[int, bytes], list[wire.Delegation]], set[int]]:
        """The root key's delegations by purpose and key, and serials that it revoked."""
        published = self._need_delegations()
        assert self._board.manifest is not None
        root = self._board.manifest.root
        run_id = bytes.fromhex(self._board.run_id)
        records: dict[tuple[int, bytes], list[wire.Delegation]] = defaultdict(list)
        for envelope in published.delegations:
            record = open_envelope(envelope, wire.Delegation, signer=root).record
            if record.run_id == run_id:
                records[record.purpose, record.public_key].append(record)
        revocations = [
            open_envelope(envelope, wire.Revocation, signer=root).record
            for envelope in published.revocations
        ]
        return records, {record.serial for record in revocations if record.run_id == run_id}

    def _need_delegations(self) -> Delegations:
        if self._records is None:
            self._records = self._source.delegations()
            if self._records is None:
                raise BadSignature("no delegations are published with this log: who may act in it?")
            for envelope in (*self._records.delegations, *self._records.revocations):
                self._by_digest[hashlib.sha256(envelope.payload).hexdigest()] = envelope
        return self._records
