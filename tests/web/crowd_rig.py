"""Signed acts of every kind, in a record that is being written (:mod:`ledger.acts`)."""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf.message import Message

from ledger.acts import leaf_of, open_act
from ledger.schema import ActRow
from protocol.envelope import seal
from protocol.identity import Identity
from protocol.trust import delegate
from protocol.wire import records_pb2 as wire

HOSTILE_TEXT = "<script>document.title='owned'</script>\"><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def key(name: str) -> Identity:
    """The same key for the same name, as History's."""
    return Identity.from_seed(hashlib.sha256(name.encode()).digest())


def act_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def record(history: Any, act: Message, signer: Identity, *, public: bool = True) -> int:
    """Sign an act and record it; returns its leaf's index."""
    return record_envelope(history, seal(act, signer), public=public)


def record_envelope(history: Any, envelope: wire.Envelope, *, public: bool = True) -> int:
    opened = open_act(envelope)
    leaf = leaf_of(opened, run_id=history.manifest.run_id, at_s=history.now_s)
    index: int = history.size()
    row = ActRow(
        leaf_index=index,
        digest=opened.digest.hex(),
        signer=opened.signer,
        public=public,
        envelope=envelope.SerializeToString(deterministic=True),
    )
    history.write([leaf], lambda session: session.add(row))
    return index


def every_kind(history: Any, root: Identity) -> dict[str, int]:
    """An act of every kind, with hostile texts where there are texts; leaf indexes by name."""
    run_id, now_s = history.manifest.run_id, history.now_s
    ada, cyd, dee, new = key("ada"), key("cyd"), key("dee"), key("dee-new")
    organiser, treasurer = key("organiser"), key("treasurer")
    campaign = act_id("campaign")
    consent = wire.KeyConsent(run_id=run_id, of=dee.peer_id, into=new.peer_id)
    merged = wire.KeyConsent(run_id=run_id, of=cyd.peer_id, into=ada.peer_id)
    salt = bytes(16)
    made: dict[str, int] = {}
    history.enrol("cyd")
    history.enrol("dee")
    history.enrol("pool")
    for serial, (purpose, whose) in enumerate(
        ((wire.KEY_PURPOSE_CAMPAIGN, organiser), (wire.KEY_PURPOSE_TREASURER, treasurer)), start=2
    ):
        envelope = delegate(
            root,
            run_id=run_id,
            purpose=purpose,
            public_key=whose.public.raw,
            serial=serial,
            not_before_s=now_s - 60,
            not_after_s=now_s + 365 * 86_400,
        )
        made[f"delegation {serial}"] = record_envelope(history, envelope)
    terms = wire.CampaignTerms(
        run_id=run_id,
        campaign=campaign,
        title=HOSTILE_TEXT,
        purpose=HOSTILE_TEXT,
        goal_microcredits=10**6,
        goal_minor=5000,
        currency="EUR",
        starts_s=now_s,
        when_reached="continue",
        when_missed="close",
        organisers=[HOSTILE_TEXT[:39]],
    )
    news = wire.CampaignNews(
        run_id=run_id,
        campaign=campaign,
        news=act_id("news"),
        title=HOSTILE_TEXT,
        text=HOSTILE_TEXT,
        at_s=now_s,
    )
    pledge: dict[str, Any] = {
        "run_id": run_id,
        "campaign": campaign,
        "microcredits": 500,
        "until_s": now_s + 86_400,
        "salt": salt,
    }
    donation: dict[str, Any] = {
        "run_id": run_id,
        "campaign": campaign,
        "pool": key("pool").peer_id,
        "amount_minor": 1000,
        "currency": "EUR",
        "received_s": now_s,
        "salt": salt,
    }
    signed: list[tuple[str, Message, Identity, bool]] = [
        ("campaign", terms, organiser, True),
        ("news", news, organiser, True),
        (
            "pledge",
            wire.Pledge(
                **pledge,
                pledge=act_id("p"),
                donor=ada.peer_id,
                visibility=wire.VISIBILITY_PUBLIC,
            ),
            ada,
            True,
        ),
        (
            "private pledge",
            wire.Pledge(
                **pledge,
                pledge=act_id("q"),
                donor=dee.peer_id,
                visibility=wire.VISIBILITY_PRIVATE,
            ),
            dee,
            False,
        ),
        (
            "pool",
            wire.Pool(
                run_id=run_id,
                campaign=campaign,
                pool=key("pool").peer_id,
                currency="EUR",
                at_s=now_s,
            ),
            treasurer,
            True,
        ),
        (
            "donation",
            wire.Donation(
                **donation,
                donation=act_id("d"),
                donor=ada.peer_id,
                reference="bank:1",
                visibility=wire.VISIBILITY_PUBLIC,
            ),
            treasurer,
            True,
        ),
        (
            "secret donation",
            wire.Donation(
                **donation,
                donation=act_id("e"),
                reference="bank:2",
                visibility=wire.VISIBILITY_SECRET,
            ),
            treasurer,
            False,
        ),
        (
            "team",
            wire.TeamFounding(run_id=run_id, team=act_id("t"), founder=ada.peer_id),
            ada,
            True,
        ),
        (
            "membership",
            wire.TeamMembership(run_id=run_id, donor=dee.peer_id, team=act_id("t")),
            dee,
            True,
        ),
        (
            "key_rotation",
            wire.KeyChange(
                run_id=run_id, old=dee.peer_id, new=new.peer_id, consent=seal(consent, new)
            ),
            dee,
            True,
        ),
        (
            "merge",
            wire.AccountMerge(
                run_id=run_id,
                donor=cyd.peer_id,
                into=ada.peer_id,
                consent=seal(merged, ada),
            ),
            cyd,
            True,
        ),
    ]
    for name, act, signer, public in signed:
        made[name] = record(history, act, signer, public=public)
    void = wire.Voiding(run_id=run_id, leaf=made["donation"], reason="refunded", salt=salt)
    made["void"] = record(history, void, treasurer)
    end = wire.CampaignEnd(run_id=run_id, campaign=campaign, outcome="closed", at_s=now_s)
    made["campaign_end"] = record(history, end, organiser)
    return made
