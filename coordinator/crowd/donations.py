"""Donations of money: from what arrived to what the treasurer signs.

Invariants:

* A donation's id follows from the treasurer's key and the reference of the payment, and from
  nothing else: the same import twice records nothing twice. Nobody else can compute it, so the ids
  of unnamed donations lead to no payment.
* A payment is recorded once, whoever signs it: its reference is looked up, too.
* What was given back is made void; it is not taken out of the record.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.crowd.opencollective import ID_KINDS, Export, Gift, IdKind
from ledger.fold import Board
from ledger.pools import Donation
from ledger.schema import ActRow
from protocol.envelope import payload_type, seal
from protocol.errors import UsageError
from protocol.identity import Identity, PeerId
from protocol.wire import records_pb2 as wire

Visibility = Literal["public", "private", "secret"]
VISIBILITIES: dict[Visibility, wire.Visibility] = {
    "public": wire.VISIBILITY_PUBLIC,
    "private": wire.VISIBILITY_PRIVATE,
    "secret": wire.VISIBILITY_SECRET,
}
_ID_BYTES = SALT_BYTES = 16
_DONATION = payload_type(wire.Donation)


@dataclass(frozen=True)
class Payment:
    """Money that arrived, as the treasurer knows of it."""

    reference: str
    amount_minor: int
    currency: str
    received_s: int
    donor: PeerId = ""  # empty: nobody that the record knows
    visibility: Visibility = "public"
    line: int | None = None  # of the file that it came from
    name: str = ""  # for the treasurer's eyes; not recorded

    @classmethod
    def of(cls, gift: Gift, donors: Mapping[str, PeerId], least: Visibility) -> Payment:
        """A gift of an export. Whoever gave it unnamed stays so; ``least`` hides others, too."""
        hidden: Visibility = "private" if gift.private and least == "public" else least
        return cls(
            reference=gift.reference,
            amount_minor=gift.amount_minor,
            currency=gift.currency,
            received_s=gift.received_s,
            donor=donors.get(gift.giver, ""),
            visibility=hidden,
            line=gift.line,
            name=gift.name or gift.giver,
        )


@dataclass(frozen=True)
class Books:
    """What the treasurer's acts go into."""

    run_id: bytes
    campaign: bytes
    pool: PeerId = ""  # empty: for the campaign's other costs


def donation_id(treasurer: Identity, run_id: bytes, reference: str) -> bytes:
    """Names the donation of a payment, to whoever has the treasurer's key.

    Ed25519 signs the same bytes the same way (RFC 8032), which makes a keyed hash of it. No signed
    record begins like this.
    """
    message = b"barnraise donation id\0" + run_id + reference.encode()
    return sha256(treasurer.sign(message)).digest()[:_ID_BYTES]


def sign_donation(payment: Payment, books: Books, treasurer: Identity) -> wire.Envelope:
    """The treasurer's word that money arrived."""
    record = wire.Donation(
        run_id=books.run_id,
        campaign=books.campaign,
        donation=donation_id(treasurer, books.run_id, payment.reference),
        donor=payment.donor,
        pool=books.pool,
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        received_s=payment.received_s,
        reference=payment.reference,
        visibility=VISIBILITIES[payment.visibility],
        salt=secrets.token_bytes(SALT_BYTES),
    )
    return seal(record, treasurer)


def sign_void(run_id: bytes, leaf: int, reason: str, key: Identity) -> wire.Envelope:
    """The word of who signed a leaf's act that it counts no more."""
    salt = secrets.token_bytes(SALT_BYTES)
    return seal(wire.Voiding(run_id=run_id, leaf=leaf, reason=reason, salt=salt), key)


@dataclass(frozen=True)
class Known:
    """A donation in the record, with what its signed act says besides."""

    donation: Donation
    signer: PeerId
    act: wire.Donation | None  # None: erased


def known_donations(session: Session, board: Board) -> list[Known]:
    """Every donation of the record, in its order."""
    by_leaf = {found.leaf_index: found for found in board.crowd.pools.donations.values()}
    rows = session.execute(
        select(ActRow.leaf_index, ActRow.signer, ActRow.envelope).order_by(ActRow.leaf_index)
    )
    return [
        Known(by_leaf[index], signer, _opened(envelope))
        for index, signer, envelope in rows
        if index in by_leaf
    ]


def _opened(data: bytes) -> wire.Donation | None:
    envelope = wire.Envelope.FromString(data)
    if envelope.payload_type != _DONATION:
        return None
    return wire.Donation.FromString(envelope.payload)


@dataclass(frozen=True)
class Plan:
    """What an import would do."""

    new: list[Payment] = field(default_factory=list)
    known: list[Payment] = field(default_factory=list)  # recorded already
    voids: list[Known] = field(default_factory=list)  # given back since they were recorded
    ignored: int = 0  # rows that are no gifts

    def sign(self, books: Books, treasurer: Identity) -> list[wire.Envelope]:
        """Every act that the import takes."""
        acts = [sign_donation(payment, books, treasurer) for payment in self.new]
        return acts + [
            sign_void(books.run_id, known.donation.leaf_index, "refunded", treasurer)
            for known in self.voids
        ]


def plan_import(
    export: Export,
    known: Sequence[Known],
    *,
    donors: Mapping[str, PeerId],
    visibility: Visibility,
    id_of: Callable[[str], bytes],
) -> Plan:
    """Compare an export with the record.

    Args:
        export: as it was read.
        known: donations of the record.
        donors: donor keys by handle.
        visibility: of gifts whose givers hide nothing.
        id_of: id of the donation of a reference.
    """
    by_reference = {one.act.reference: one for one in known if one.act is not None}
    by_id = {one.donation.leaf.donation: one for one in known}

    def find(reference: str) -> Known | None:
        return by_reference.get(reference) or by_id.get(id_of(reference).hex())

    plan = Plan(ignored=export.ignored)
    for gift in export.gifts:
        payment = Payment.of(gift, donors, visibility)
        (plan.new if find(gift.reference) is None else plan.known).append(payment)
    for reference in sorted(export.refunded):
        found = find(reference)
        if found is not None and found.donation.voided is None:
            plan.voids.append(found)
    return plan


def choose_id_kind(offered: Sequence[IdKind], known: Sequence[Known]) -> IdKind:
    """The kind of id that earlier imports went by, or else the best that the export has.

    Raises:
        UsageError: the export does not have the kind that was used before.
    """
    used = used_id_kinds(known)
    for kind in offered:
        if not used or kind in used:
            return kind
    raise UsageError(
        f"earlier imports name payments by the column {_columns(used)}, which this export does "
        "not have: export it with that column, or every donation would be recorded twice"
    )


def check_id_kind(reference: str, used: set[IdKind]) -> None:
    """Insist that a payment of an export is named as earlier imports named theirs.

    Args:
        reference: of the payment.
        used: :func:`used_id_kinds`.

    Raises:
        UsageError: it is not.
    """
    kind = _kind(reference)
    if kind is not None and used and kind not in used:
        raise UsageError(
            f"it names a payment by the column {_columns({kind})}, earlier imports by "
            f"{_columns(used)}: have an export signed with that column and without this one, or "
            "every donation would be recorded twice"
        )


def used_id_kinds(known: Sequence[Known]) -> set[IdKind]:
    """Kinds of id that earlier imports went by."""
    kinds = (_kind(one.act.reference) for one in known if one.act is not None)
    return {kind for kind in kinds if kind is not None}


def _columns(kinds: set[IdKind]) -> str:
    return " or ".join(ID_KINDS[kind][0] for kind in ID_KINDS if kind in kinds)


def _kind(reference: str) -> IdKind | None:
    """By the longest prefix that fits."""
    fitting = [kind for kind, (_, _, prefix) in ID_KINDS.items() if reference.startswith(prefix)]
    return max(fitting, key=lambda kind: len(ID_KINDS[kind][2]), default=None)
