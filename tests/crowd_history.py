"""What people do besides training, signed for real and recorded in a ``ledger_history.History``."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy.orm import Session

from ledger.acts import Act, leaf_of, open_act
from ledger.authority import store_delegations
from ledger.campaigns import campaign_zero
from ledger.fold import Board, fold
from ledger.log import read_leaves
from ledger.records import CrowdLeaf
from ledger.schema import ActRow
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

Record = Any
YEAR_S = 365 * 86_400


def identity(name: str) -> Identity:
    """The same key for the same name, as in ``ledger_history``."""
    return Identity.from_seed(hashlib.sha256(name.encode()).digest())


def name_id(name: str) -> bytes:
    """Id of a campaign, pledge, donation or team."""
    return hashlib.sha256(f"id {name}".encode()).digest()[:16]


def salt(name: str) -> bytes:
    return hashlib.sha256(f"salt {name}".encode()).digest()[:16]


ROOT = Identity.from_seed(bytes(32))
CAMPAIGNER = identity("campaigner")
TREASURER = identity("treasurer")
_VISIBILITY = {
    "public": wire.VISIBILITY_PUBLIC,
    "private": wire.VISIBILITY_PRIVATE,
    "secret": wire.VISIBILITY_SECRET,
}


class CrowdHistory:
    """Every method makes one act, signs it, and writes its leaf and its row; returns the index."""

    def __init__(self, history: Any) -> None:
        self.history = history
        self.run_id: bytes = history.manifest.run_id
        self.zero = bytes.fromhex(campaign_zero(self.run_id.hex()))
        self.public: dict[int, bool] = {}
        self.acts = 0
        self.appoint()

    def appoint(self) -> None:
        """Delegate a campaign key and a treasurer's key; without leaves."""
        with Session(self.history.engine) as session, session.begin():
            store_delegations(
                session,
                [
                    self.delegation(CAMPAIGNER, wire.KEY_PURPOSE_CAMPAIGN, 2),
                    self.delegation(TREASURER, wire.KEY_PURPOSE_TREASURER, 3),
                ],
            )

    def delegation(
        self, key: Identity, purpose: wire.KeyPurpose, serial: int, *, lasts_s: int = YEAR_S
    ) -> wire.Envelope:
        return delegate(
            ROOT,
            run_id=self.run_id,
            purpose=purpose,
            public_key=key.public.raw,
            serial=serial,
            not_before_s=self.history.now_s - 60,
            not_after_s=self.history.now_s + lasts_s,
        )

    def leaf(self, record: Record, signer: Identity | str) -> CrowdLeaf:
        """The leaf of an act, not written."""
        return leaf_of(self.sign(record, signer), run_id=self.run_id, at_s=self.history.now_s)

    def sign(self, record: Record, signer: Identity | str) -> Act:
        key = identity(signer) if isinstance(signer, str) else signer
        return open_act(seal(record, key))

    def write(self, record: Record, signer: Identity | str) -> int:
        """Sign an act and record it, whatever the rules say of it."""
        return self.record(self.sign(record, signer))

    def record(self, act: Act) -> int:
        """The act's leaf and row."""
        leaf = leaf_of(act, run_id=self.run_id, at_s=self.history.now_s)
        index: int = self.history.size()
        if isinstance(act.record, wire.Voiding):
            public = self.public.get(act.record.leaf, True)
        else:
            public = getattr(leaf, "visibility", "public") == "public"
        self.public[index] = public
        row = ActRow(
            leaf_index=index,
            digest=act.digest.hex(),
            signer=act.signer,
            public=public,
            envelope=act.envelope.SerializeToString(deterministic=True),
        )
        self.history.write([leaf], lambda session: session.add(row))
        return index

    def write_all(self, acts: list[tuple[Record, Identity | str]]) -> None:
        """Leaves of many acts, without their envelopes."""
        self.history.write([self.leaf(record, signer) for record, signer in acts])

    def board(self) -> Board:
        """The fold of all that was written."""
        with Session(self.history.engine) as session:
            return fold(read_leaves(session, 0, self.history.size()))

    # ---- records ----

    def delegated(self, envelope: wire.Envelope) -> int:
        """Publish a delegation, and record it."""
        return self._published(envelope, revocation=False)

    def revoked(self, serial: int) -> int:
        """Publish a revocation, and record it."""
        record = wire.Revocation(run_id=self.run_id, serial=serial, reason="gone")
        return self._published(seal(record, ROOT), revocation=True)

    def _published(self, envelope: wire.Envelope, *, revocation: bool) -> int:
        kept = ([], [envelope]) if revocation else ([envelope], [])
        with Session(self.history.engine) as session, session.begin():
            store_delegations(session, *kept)
        return self.record(open_act(envelope))

    def terms(self, name: str, **fields: Any) -> wire.CampaignTerms:
        said = {
            "title": f"Campaign {name}",
            "purpose": "More of it.",
            "goal_microcredits": 1000,
            "starts_s": self.history.now_s,
            "when_reached": "continue",
            "when_missed": "continue",
            **fields,
        }
        return wire.CampaignTerms(run_id=self.run_id, campaign=name_id(name), **said)

    def pledged(self, name: str, donor: str, **fields: Any) -> wire.Pledge:
        said = {
            "campaign": self.zero,
            "microcredits": 1000,
            "until_s": self.history.now_s + YEAR_S,
            "visibility": "public",
            **fields,
        }
        said["visibility"] = _VISIBILITY[said["visibility"]]
        return wire.Pledge(
            run_id=self.run_id,
            pledge=name_id(name),
            donor=identity(donor).peer_id,
            salt=salt(name),
            **said,
        )

    def pooled(self, pool: str, **fields: Any) -> wire.Pool:
        said = {"campaign": self.zero, "currency": "EUR", "at_s": self.history.now_s, **fields}
        return wire.Pool(run_id=self.run_id, pool=identity(pool).peer_id, **said)

    def gift(self, name: str, donor: str = "", pool: str = "", **fields: Any) -> wire.Donation:
        said = {
            "campaign": self.zero,
            "amount_minor": 1000,
            "currency": "EUR",
            "received_s": self.history.now_s,
            "reference": f"bank:{name}",
            "visibility": "public",
            **fields,
        }
        said["visibility"] = _VISIBILITY[said["visibility"]]
        return wire.Donation(
            run_id=self.run_id,
            donation=name_id(name),
            donor=identity(donor).peer_id if donor else "",
            pool=identity(pool).peer_id if pool else "",
            salt=salt(name),
            **said,
        )

    def voiding(self, leaf: int, reason: str = "mistake") -> wire.Voiding:
        return wire.Voiding(run_id=self.run_id, leaf=leaf, reason=reason, salt=salt(f"void {leaf}"))

    def founding(self, name: str, founder: str) -> wire.TeamFounding:
        return wire.TeamFounding(
            run_id=self.run_id, team=name_id(name), founder=identity(founder).peer_id
        )

    def membership(self, donor: str, team: str = "") -> wire.TeamMembership:
        self.acts += 1
        return wire.TeamMembership(
            run_id=self.run_id,
            donor=identity(donor).peer_id,
            team=name_id(team) if team else b"",
            freshness=wire.Freshness(nonce=salt(f"nonce {self.acts}")),
        )

    def _consent(self, old: str, new: str) -> wire.Envelope:
        consent = wire.KeyConsent(
            run_id=self.run_id, of=identity(old).peer_id, into=identity(new).peer_id
        )
        return seal(consent, identity(new))

    def key_change(self, old: str, new: str) -> wire.KeyChange:
        return wire.KeyChange(
            run_id=self.run_id,
            old=identity(old).peer_id,
            new=identity(new).peer_id,
            consent=self._consent(old, new),
        )

    def account_merge(self, donor: str, into: str) -> wire.AccountMerge:
        return wire.AccountMerge(
            run_id=self.run_id,
            donor=identity(donor).peer_id,
            into=identity(into).peer_id,
            consent=self._consent(donor, into),
        )

    # ---- recorded ----

    def campaign(self, name: str, **fields: Any) -> int:
        return self.write(self.terms(name, **fields), CAMPAIGNER)

    def end(self, name: str, outcome: str = "closed") -> int:
        record = wire.CampaignEnd(
            run_id=self.run_id, campaign=name_id(name), outcome=outcome, at_s=self.history.now_s
        )
        return self.write(record, CAMPAIGNER)

    def news(self, title: str, campaign: bytes | None = None, text: str = "It goes well.") -> int:
        record = wire.CampaignNews(
            run_id=self.run_id,
            campaign=campaign or self.zero,
            news=name_id(title),
            title=title,
            text=text,
            at_s=self.history.now_s,
        )
        return self.write(record, CAMPAIGNER)

    def pledge(self, name: str, donor: str, **fields: Any) -> int:
        return self.write(self.pledged(name, donor, **fields), donor)

    def pool(self, pool: str, **fields: Any) -> int:
        return self.write(self.pooled(pool, **fields), TREASURER)

    def donate(self, name: str, donor: str = "", pool: str = "", **fields: Any) -> int:
        return self.write(self.gift(name, donor, pool, **fields), TREASURER)

    def void(self, leaf: int, signer: Identity | str = TREASURER) -> int:
        return self.write(self.voiding(leaf), signer)

    def team(self, name: str, founder: str) -> int:
        return self.write(self.founding(name, founder), founder)

    def join(self, donor: str, team: str = "") -> int:
        return self.write(self.membership(donor, team), donor)

    def rotate(self, old: str, new: str) -> int:
        return self.write(self.key_change(old, new), old)

    def merge(self, donor: str, into: str) -> int:
        return self.write(self.account_merge(donor, into), donor)
