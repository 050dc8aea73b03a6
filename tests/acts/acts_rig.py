"""Acts over the engine's rig: people who sign, organisers' keys, and a record that is verified."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.crowd.book import Book
from coordinator.crowd.delegations import log_delegations
from coordinator.requests import NonceCache
from ledger.acts import open_act
from ledger.authority import store_delegations
from ledger.fold import Board, fold
from ledger.log import read_leaves
from ledger.schema import ActRow
from ledger.sources import DatabaseSource
from ledger.tree import tree_size
from ledger.verify import verify
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api

DAY_S = 24 * 3600


def key(name: str) -> Identity:
    """The same key for the same name."""
    return Identity.from_seed(hashlib.sha256(name.encode()).digest())


CAMPAIGN, TREASURER = key("campaign"), key("treasurer")


def with_keys(rig: Any) -> Any:
    """The rig of an engine that has the campaign's key; before it is booted."""
    rig.keys = replace(rig.keys, crowd={wire.KEY_PURPOSE_CAMPAIGN: CAMPAIGN})
    return rig


def id_of(name: str) -> bytes:
    """The same 16 bytes for the same name."""
    return hashlib.sha256(name.encode()).digest()[:16]


@dataclass
class Acts:
    """Whoever acts in the run of an engine's rig."""

    rig: Any
    nonces: NonceCache = field(init=False)

    def __post_init__(self) -> None:
        self.nonces = NonceCache(lambda: float(self.rig.now_s))
        self.book = Book(self.rig.log, self.rig.manifest)  # an organiser's

    @property
    def run_id(self) -> bytes:
        return bytes(self.rig.run_id)

    @property
    def zero(self) -> bytes:
        return self.run_id[:16]

    @property
    def now_s(self) -> int:
        return int(self.rig.now_s)

    def vouch(
        self, purpose: wire.KeyPurpose, who: Identity, *, valid_s: int = 10**7, root: Any = None
    ) -> wire.Envelope:
        """The root's word for a key, stored and recorded as a command does."""
        envelope = delegate(
            root or self.rig.keys.root,
            run_id=self.run_id,
            purpose=purpose,
            public_key=who.public.raw,
            serial=secrets.randbits(53),
            not_before_s=self.now_s - 60,
            not_after_s=self.now_s + valid_s,
        )
        self.store([*self.rig.keys.delegations, envelope])
        return envelope

    def store(self, delegations: Any, revocations: Any = ()) -> int:
        """Keep what the root signed; how many leaves it left."""
        with self.rig.database.session() as session:
            store_delegations(session, delegations, revocations)
            return log_delegations(
                self.rig.log,
                session,
                run_id=self.run_id,
                root=self.rig.manifest.root,
                now_s=self.rig.now_s,
            )

    def appoint(self) -> None:
        """A campaign's key and a treasurer."""
        self.vouch(wire.KEY_PURPOSE_CAMPAIGN, CAMPAIGN)
        self.vouch(wire.KEY_PURPOSE_TREASURER, TREASURER)

    # ---- records ----

    def pledge(self, donor: Identity, name: str = "a", **fields: Any) -> wire.Pledge:
        given = {
            "run_id": self.run_id,
            "campaign": self.zero,
            "pledge": id_of(f"pledge {name}"),
            "donor": donor.peer_id,
            "microcredits": 1000,
            "until_s": self.now_s + 30 * DAY_S,
            "visibility": wire.VISIBILITY_PUBLIC,
            "salt": id_of(f"salt {name}"),
        }
        return wire.Pledge(**(given | fields))

    def donation(self, name: str = "a", **fields: Any) -> wire.Donation:
        given = {
            "run_id": self.run_id,
            "campaign": self.zero,
            "donation": id_of(f"donation {name}"),
            "amount_minor": 5000,
            "currency": "EUR",
            "received_s": self.now_s,
            "reference": f"bank:{name}",
            "visibility": wire.VISIBILITY_PUBLIC,
            "salt": id_of(f"salt {name}"),
        }
        return wire.Donation(**(given | fields))

    def pool(self, pool: Identity, **fields: Any) -> wire.Pool:
        given = {
            "run_id": self.run_id,
            "campaign": self.zero,
            "pool": pool.peer_id,
            "currency": "EUR",
            "at_s": self.now_s,
        }
        return wire.Pool(**(given | fields))

    def terms(self, name: str = "a", **fields: Any) -> wire.CampaignTerms:
        given = {
            "run_id": self.run_id,
            "campaign": id_of(f"campaign {name}"),
            "title": "Winter run",
            "purpose": "a model",
            "goal_microcredits": 5,
            "starts_s": self.now_s,
            "when_reached": "continue",
            "when_missed": "close",
        }
        return wire.CampaignTerms(**(given | fields))

    def void(self, leaf: int, reason: str = "mistake") -> wire.Voiding:
        return wire.Voiding(
            run_id=self.run_id, leaf=leaf, reason=reason, salt=secrets.token_bytes(16)
        )

    def team(self, founder: Identity, name: str = "a") -> wire.TeamFounding:
        return wire.TeamFounding(run_id=self.run_id, team=id_of(name), founder=founder.peer_id)

    def membership(self, donor: Identity, name: str | None = "a") -> wire.TeamMembership:
        team = b"" if name is None else id_of(name)
        return wire.TeamMembership(
            run_id=self.run_id, donor=donor.peer_id, team=team, freshness=self.fresh()
        )

    def fresh(self, age_s: float = 0.0) -> wire.Freshness:
        sent_at_ms = int((self.rig.now_s - age_s) * 1000)
        return wire.Freshness(sent_at_ms=sent_at_ms, nonce=secrets.token_bytes(16))

    def consent(self, of: Identity, into: Identity, by: Identity | None = None) -> wire.Envelope:
        record = wire.KeyConsent(run_id=self.run_id, of=of.peer_id, into=into.peer_id)
        return seal(record, by or into)

    def key_change(self, old: Identity, new: Identity, **fields: Any) -> wire.KeyChange:
        given = {
            "run_id": self.run_id,
            "old": old.peer_id,
            "new": new.peer_id,
            "consent": self.consent(old, new),
        }
        return wire.KeyChange(**(given | fields))

    def merge(self, donor: Identity, into: Identity, **fields: Any) -> wire.AccountMerge:
        given = {
            "run_id": self.run_id,
            "donor": donor.peer_id,
            "into": into.peer_id,
            "consent": self.consent(donor, into),
        }
        return wire.AccountMerge(**(given | fields))

    def profile(self, donor: Identity, **fields: Any) -> wire.ProfileUpdate:
        given = {
            "run_id": self.run_id,
            "donor": donor.peer_id,
            "display_name": "Ada",
            "freshness": self.fresh(),
        }
        return wire.ProfileUpdate(**(given | fields))

    # ---- doing it ----

    async def act(self, record: Message | wire.Envelope, signer: Identity | None) -> api.ActReply:
        """As the service hands it on: the envelope opened, the nonce remembered."""
        envelope = record if isinstance(record, wire.Envelope) else None
        if envelope is None:
            assert signer is not None
            envelope = seal(record, signer)
        reply: api.ActReply = await self.rig.engine.act(open_act(envelope), self.nonces.check)
        return reply

    def record(self, record: Message, signer: Identity) -> int:
        """As an organiser's command does; the leaf's index."""
        with self.rig.database.session() as session:
            act = open_act(seal(record, signer))
            index = self.book.record(session, act, self.rig.now_s).leaf_index
        with self.rig.database.session() as session:
            self.rig.log.sign_head(session)
        return index

    # ---- looking ----

    def board(self) -> Board:
        with Session(self.rig.database.engine) as session:
            return fold(read_leaves(session, 0, tree_size(session)))

    def kinds(self) -> list[str]:
        """Of the acts' leaves, delegations left out."""
        with Session(self.rig.database.engine) as session:
            rows = session.scalars(select(ActRow).order_by(ActRow.leaf_index))
            names = [wire.Envelope.FromString(row.envelope).payload_type for row in rows]
        found = [
            name.removeprefix("application/vnd.barnraise.")[: -len("+protobuf")] for name in names
        ]
        return [name for name in found if name not in ("delegation", "revocation")]

    def verify(self) -> None:
        """Everything that is published, as a stranger does; a head covers every leaf."""
        with self.rig.database.session() as session:
            self.rig.log.sign_head(session)
        with Session(self.rig.database.engine) as session:
            report = verify(DatabaseSource(session), root=self.rig.manifest.root)
            assert report.size == tree_size(session)
