"""Signed acts: what is read, what is refused, and what ``ledger verify`` finds when one is forged.

Whoever keeps the record holds the log key and can write any leaf. What it cannot do is sign for a
donor, or for a key that the root never delegated: verification must find each such leaf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from ledger.acts import leaf_of, open_act, purpose_of
from ledger.authority import store_delegations
from ledger.records import MergeLeaf, PledgeLeaf, parse_leaf
from ledger.schema import ActRow, LogLeaf
from ledger.sources import DatabaseSource, Source, TileSource
from ledger.verify import Report, verify
from protocol.envelope import payload_type, pre_authentication_encoding, seal
from protocol.errors import BadDigest, BadRecord, BadSignature, PeerFault
from protocol.wire import records_pb2 as wire


def check(history: Any) -> Report:
    with Session(history.engine) as session:
        return verify(DatabaseSource(session), root=history.manifest.root)


# ---- reading acts ----


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"title": ""}, "has no title"),
        ({"title": "  "}, "has no title"),
        ({"title": "x" * 121}, "title has 121 characters"),
        ({"title": "two\nlines"}, "control character"),
        ({"title": "\u202egnirts"}, "U\\+202E"),
        ({"purpose": "x" * 2001}, "purpose has 2001"),
        ({"purpose": "\x00"}, "control character"),
        ({"organisers": ["x"] * 21}, "21 organisers"),
        ({"organisers": ["x" * 65]}, "organisers has 65"),
        ({"reference_device": "x" * 65}, "reference_device has 65"),
        ({"goal_microcredits": 0}, "goal_microcredits"),
        ({"goal_microcredits": 2**63}, "goal_microcredits"),
        ({"goal_minor": 5}, "currency"),
        ({"currency": "euro"}, "currency"),
        ({"ends_s": 1}, "ends after it starts"),
        ({"when_reached": "explode"}, "when_reached"),
        ({"when_missed": ""}, "when_missed"),
    ],
)
def test_terms_of_a_campaign_are_bounded(
    crowd: Any, crowd_history: Any, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRecord, match=words):
        crowd.leaf(crowd.terms("one", **fields), crowd_history.CAMPAIGNER)


def test_long_texts_may_have_lines(crowd: Any, crowd_history: Any) -> None:
    record = crowd.terms("one", title="Für alle 🎉", purpose="One.\n\n\tTwo.", organisers=["Ünal"])
    assert crowd.leaf(record, crowd_history.CAMPAIGNER).goal_microcredits == 1000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": "x" * 5001}, "text has 5001"),
        ({"title": ""}, "has no title"),
        ({"news": b"short"}, "news is 16 bytes long, not 5"),
        ({"campaign": b""}, "campaign is 16 bytes long, not 0"),
        ({"run_id": bytes(32)}, "another run"),
    ],
)
def test_news_are_bounded(
    crowd: Any, crowd_history: Any, fields: dict[str, Any], words: str
) -> None:
    said = {
        "run_id": crowd.run_id,
        "campaign": crowd.zero,
        "news": bytes(16),
        "title": "News",
        **fields,
    }
    with pytest.raises(BadRecord, match=words):
        crowd.leaf(wire.CampaignNews(**said), crowd_history.CAMPAIGNER)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"display_name": "x" * 257}, "display_name has 257"),
        ({"about": "x" * 513}, "about has 513"),
        ({"url": "javascript:alert(1)"}, "no web address"),
        ({"url": "https://"}, "no web address"),
        ({"url": "https://example.org/a b"}, "no web address"),
        ({"url": "https://[broken"}, "no web address"),
        ({"url": "https://example.org/" + "x" * 256}, "url has"),
    ],
)
def test_profiles_are_bounded(
    crowd: Any, crowd_history: Any, fields: dict[str, Any], words: str
) -> None:
    donor = crowd_history.identity("ada").peer_id
    with pytest.raises(BadRecord, match=words):
        crowd.sign(wire.ProfileUpdate(run_id=crowd.run_id, donor=donor, **fields), "ada")


def test_a_profile_leaves_nothing_in_the_record(crowd: Any, crowd_history: Any) -> None:
    donor = crowd_history.identity("ada").peer_id
    record = wire.ProfileUpdate(
        run_id=crowd.run_id, donor=donor, display_name="Ada", url="https://example.org"
    )
    act = crowd.sign(record, "ada")
    with pytest.raises(BadRecord, match="leaves nothing"):
        leaf_of(act, run_id=crowd.run_id, at_s=0)


def test_other_records_are_no_acts(crowd: Any, crowd_history: Any) -> None:
    with pytest.raises(BadRecord, match="no act"):
        open_act(seal(wire.Heartbeat(), crowd_history.identity("ada")))


@pytest.mark.parametrize(
    "change",
    [
        {"salt": b""},
        {"salt": bytes(17)},
        {"pledge": b""},
        {"visibility": wire.VISIBILITY_UNSPECIFIED},
        {"until_s": 2**60},
        {"microcredits": 2**60},
    ],
)
def test_a_pledge_is_whole(crowd: Any, change: dict[str, Any]) -> None:
    record = crowd.pledged("p", "ada")
    for name, value in change.items():
        setattr(record, name, value)
    with pytest.raises(BadRecord):
        crowd.leaf(record, "ada")


def test_a_visibility_that_does_not_exist_is_refused(crowd: Any) -> None:
    record = crowd.pledged("p", "ada")
    record.ClearField("visibility")
    record.MergeFromString(b"\x40\x09")  # field 8 = 9
    with pytest.raises(BadRecord, match="visibility"):
        crowd.leaf(record, "ada")


def test_nobody_acts_for_a_donor(crowd: Any) -> None:
    for record in (
        crowd.pledged("p", "ada"),
        crowd.founding("red", "ada"),
        crowd.membership("ada"),
        crowd.key_change("ada", "ada2"),
        crowd.account_merge("ada", "bob"),
    ):
        with pytest.raises(BadSignature, match="is signed by its key"):
            crowd.sign(record, "bob")


def test_nobody_takes_an_account_without_consent(crowd: Any) -> None:
    record = crowd.account_merge("ada", "bob")
    record.consent.CopyFrom(crowd.account_merge("ada", "eve").consent)  # by eve
    with pytest.raises(BadSignature, match="the consent of the key that takes"):
        crowd.sign(record, "ada")
    record.ClearField("consent")
    with pytest.raises(BadRecord, match="the consent of the key that takes"):
        crowd.sign(record, "ada")
    other = crowd.account_merge("eve", "bob").consent  # bob's, for somebody else's account
    record.consent.CopyFrom(other)
    with pytest.raises(BadRecord, match="consented to something else"):
        crowd.sign(record, "ada")


_STRANGE = b"\xfa\x07\x05hello"
"""Field 127, which no record has: a text."""


def test_nothing_rides_along_in_an_act(crowd: Any, crowd_history: Any) -> None:
    record = crowd.founding("red", "ada")
    record.MergeFromString(_STRANGE)
    with pytest.raises(BadRecord, match="a TeamFounding with more in it"):
        crowd.sign(record, "ada")
    record = crowd.account_merge("ada", "bob")
    record.consent.MergeFromString(_STRANGE)
    with pytest.raises(BadRecord, match="a AccountMerge with more in it"):
        crowd.sign(record, "ada")
    agreed = wire.KeyConsent.FromString(crowd.account_merge("ada", "bob").consent.payload)
    agreed.MergeFromString(_STRANGE)
    record = crowd.account_merge("ada", "bob")
    record.consent.CopyFrom(seal(agreed, crowd_history.identity("bob")))
    with pytest.raises(BadRecord, match="a KeyConsent with more in it"):
        crowd.sign(record, "ada")


def test_no_field_is_written_twice_in_an_act(crowd: Any, crowd_history: Any) -> None:
    record = crowd.founding("red", "ada")
    hidden = b"\x1a\x05hello"  # a founder before the founder: the last one counts
    payload = hidden + record.SerializeToString(deterministic=True)
    kind, ada = payload_type(wire.TeamFounding), crowd_history.identity("ada")
    signature = ada.sign(pre_authentication_encoding(kind, payload))
    envelope = wire.Envelope(
        payload=payload,
        payload_type=kind,
        signatures=[wire.Signature(sig=signature, keyid=ada.peer_id)],
    )
    assert wire.TeamFounding.FromString(payload) == record
    with pytest.raises(BadRecord, match="with more in it"):
        open_act(envelope)


@pytest.mark.parametrize("visibility", ["private", "secret"])
def test_a_hidden_act_names_nobody(crowd: Any, visibility: str) -> None:
    assert crowd.leaf(crowd.pledged("p", "ada", visibility=visibility), "ada").donor is None
    gift = crowd.gift("g", "ada", visibility=visibility)
    assert crowd.leaf(gift, "treasurer").donor is None


def test_purposes(crowd: Any) -> None:
    campaign, treasurer = wire.KEY_PURPOSE_CAMPAIGN, wire.KEY_PURPOSE_TREASURER
    assert purpose_of(crowd.sign(crowd.terms("one"), "campaigner")) == campaign
    assert purpose_of(crowd.sign(crowd.gift("g"), "treasurer")) == treasurer
    assert purpose_of(crowd.sign(crowd.pooled("pool"), "treasurer")) == treasurer
    assert purpose_of(crowd.sign(crowd.pledged("p", "ada"), "ada")) is None
    assert purpose_of(crowd.sign(crowd.voiding(1), "ada")) is None


def test_bytes_of_every_kind_read_back(crowd: Any, history: Any) -> None:
    crowd.campaign("one", goal_minor=5, currency="EUR", ends_s=history.now_s + 1)
    crowd.pledge("p", "ada", visibility="secret")
    crowd.merge("ada", "bob")
    with Session(history.engine) as session:
        for row in session.query(LogLeaf):
            assert parse_leaf(row.data).canonical() == row.data


# ---- what verification finds ----


@pytest.fixture
def whole(crowd: Any, history: Any) -> dict[str, int]:
    """Leaves by name, of a record that verifies."""
    leaves = {
        "campaign": crowd.campaign("one"),
        "news": crowd.news("Hello"),
        "pledge": crowd.pledge("p", "ada"),
        "secret": crowd.pledge("s", "ada", visibility="secret"),
        "pool": crowd.pool("pool"),
        "donation": crowd.donate("g", "bob", "pool"),
        "void": crowd.void(crowd.donate("h")),
        "team": crowd.team("red", "ada"),
        "membership": crowd.join("bob", "red"),
        "rotation": crowd.rotate("ada", "ada2"),
        "merge": crowd.merge("ada2", "bob"),
    }
    history.enrol("rented", donor="pool")
    assert check(history).crowd.acts == 11
    return leaves


PUBLIC = ("campaign", "news", "pledge", "pool", "donation", "void", "team", "membership", "merge")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_act_that_is_missing(history: Any, whole: dict[str, int], name: str) -> None:
    with Session(history.engine) as session, session.begin():
        session.delete(session.get_one(ActRow, whole[name]))
    with pytest.raises(BadRecord, match=f"leaf {whole[name]}: its signed act is not published"):
        check(history)


def test_a_secret_act_is_not_asked_for(history: Any, whole: dict[str, int]) -> None:
    with Session(history.engine) as session, session.begin():
        session.delete(session.get_one(ActRow, whole["secret"]))
    assert check(history).crowd.unnamed == 1


@pytest.mark.parametrize("name", PUBLIC)
def test_another_act_in_its_place(history: Any, whole: dict[str, int], name: str) -> None:
    other = whole["rotation"]
    with Session(history.engine) as session, session.begin():
        envelope = session.get_one(ActRow, other).envelope
        session.get_one(ActRow, whole[name]).envelope = envelope
    with pytest.raises(BadDigest, match=f"leaf {whole[name]}: the published act is not the one"):
        check(history)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_signature_that_was_touched(history: Any, whole: dict[str, int], name: str) -> None:
    with Session(history.engine) as session, session.begin():
        row = session.get_one(ActRow, whole[name])
        envelope = wire.Envelope.FromString(row.envelope)
        sig = bytearray(envelope.signatures[0].sig)
        sig[5] ^= 1
        envelope.signatures[0].sig = bytes(sig)
        row.envelope = envelope.SerializeToString()
    with pytest.raises(BadSignature, match=f"leaf {whole[name]}"):
        check(history)


def test_an_act_that_is_not_bytes(history: Any, whole: dict[str, int]) -> None:
    with Session(history.engine) as session, session.begin():
        session.connection().exec_driver_sql("UPDATE act SET envelope = 'text'")
    with pytest.raises(BadRecord, match="somebody edited the database"):
        check(history)


def forged(crowd: Any, leaf: Any, act: Any | None = None) -> int:
    """Write a leaf that its act does not give, with the log key; returns its index."""
    index: int = crowd.history.size()
    row = None
    if act is not None:
        row = ActRow(
            leaf_index=index,
            digest=act.digest.hex(),
            signer=act.signer,
            public=True,
            envelope=act.envelope.SerializeToString(),
        )
    crowd.history.write([leaf], lambda session: row is not None and session.add(row))
    return index


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"microcredits": 999_999}, "its microcredits is 999999; in the signed act it is 1000"),
        ({"until_s": 1}, "its until_s is 1"),
        ({"campaign": bytes(16)}, "no campaign"),
        ({"pledge": bytes(16)}, "its pledge is"),
    ],
)
def test_a_leaf_that_says_more_than_was_signed(
    crowd: Any, history: Any, change: dict[str, Any], words: str
) -> None:
    act = crowd.sign(crowd.pledged("p", "ada"), "ada")
    leaf = leaf_of(act, run_id=crowd.run_id, at_s=history.now_s)
    fields = {**leaf.model_dump(), **change}
    index = forged(crowd, PledgeLeaf.model_validate(fields), act)
    with pytest.raises(PeerFault, match=f"leaf {index}: .*{words}"):
        check(history)


def test_a_pledge_in_anothers_name(crowd: Any, crowd_history: Any, history: Any) -> None:
    act = crowd.sign(crowd.pledged("p", "ada"), "ada")
    leaf = leaf_of(act, run_id=crowd.run_id, at_s=history.now_s)
    fields = {**leaf.model_dump(), "donor": crowd_history.identity("bob").peer_id}
    index = forged(crowd, PledgeLeaf.model_validate(fields), act)
    with pytest.raises(BadDigest, match=f"leaf {index}: its donor is"):
        check(history)


def test_accounts_are_not_merged_by_decree(crowd: Any, crowd_history: Any, history: Any) -> None:
    leaf = MergeLeaf(
        run_id=crowd.run_id,
        at_s=history.now_s,
        record_digest=bytes(32),
        donor=crowd_history.identity("ada").peer_id,
        into=crowd_history.identity("bob").peer_id,
    )
    index = forged(crowd, leaf)
    with pytest.raises(BadRecord, match=f"leaf {index}: its signed act is not published"):
        check(history)


def test_a_leaf_of_another_kind_of_act(crowd: Any, crowd_history: Any, history: Any) -> None:
    act = crowd.sign(crowd.key_change("ada", "ada2"), "ada")
    history.enrol("x", donor="ada2")
    leaf = MergeLeaf(
        run_id=crowd.run_id,
        at_s=history.now_s,
        record_digest=act.digest,
        donor=crowd_history.identity("ada").peer_id,
        into=crowd_history.identity("ada2").peer_id,
    )
    index = forged(crowd, leaf, act)
    with pytest.raises(BadDigest, match=f"leaf {index}: the signed act is a key_rotation"):
        check(history)


@pytest.mark.parametrize("signer", ["ada", "treasurer"])
def test_a_campaign_of_somebody_else(crowd: Any, history: Any, signer: str) -> None:
    index = crowd.write(crowd.terms("one"), signer)
    with pytest.raises(BadSignature, match=f"leaf {index}: .* no campaign key of this run then"):
        check(history)


@pytest.mark.parametrize("signer", ["ada", "campaigner"])
def test_a_gift_that_no_treasurer_signed(crowd: Any, history: Any, signer: str) -> None:
    index = crowd.write(crowd.gift("g"), signer)
    with pytest.raises(BadSignature, match=f"leaf {index}: .* no treasurer key of this run then"):
        check(history)


def test_a_gift_made_void_by_its_giver(crowd: Any, history: Any) -> None:
    index = crowd.void(crowd.donate("g", "ada"), "ada")
    with pytest.raises(BadSignature, match=f"leaf {index}: .* no treasurer key"):
        check(history)


def test_a_pledge_made_void_by_somebody_else(crowd: Any, history: Any) -> None:
    index = crowd.void(crowd.pledge("p", "ada"), "bob")
    with pytest.raises(BadSignature, match=f"leaf {index}: .* makes a pledge of"):
        check(history)


def test_a_pledge_made_void_by_the_persons_new_key(crowd: Any, history: Any) -> None:
    pledge = crowd.pledge("p", "ada")
    crowd.rotate("ada", "ada2")
    crowd.void(pledge, "ada2")
    assert check(history).crowd.acts == 3


def test_a_key_signs_only_while_its_delegation_lasts(
    crowd: Any, crowd_history: Any, history: Any
) -> None:
    cashier = crowd_history.identity("cashier")
    crowd.delegated(crowd.delegation(cashier, wire.KEY_PURPOSE_TREASURER, 9, lasts_s=100))
    history.now_s += 100
    crowd.write(crowd.gift("g"), cashier)
    assert check(history).crowd.acts == 2
    history.now_s += 1
    index = crowd.write(crowd.gift("h"), cashier)
    with pytest.raises(BadSignature, match=f"leaf {index}: .* no treasurer key of this run then"):
        check(history)


def test_what_was_signed_before_a_revocation_stands(
    crowd: Any, crowd_history: Any, history: Any
) -> None:
    cashier = crowd_history.identity("cashier")
    crowd.delegated(crowd.delegation(cashier, wire.KEY_PURPOSE_TREASURER, 9))
    crowd.write(crowd.gift("g"), cashier)
    crowd.revoked(9)
    assert check(history).crowd.acts == 3
    index = crowd.write(crowd.gift("h"), cashier)
    with pytest.raises(BadSignature, match=f"leaf {index}: .* no treasurer key"):
        check(history)


def test_a_revocation_without_a_leaf_undoes_all_that_was_signed(
    crowd: Any, crowd_history: Any, history: Any
) -> None:
    index = crowd.donate("g")
    revocation = seal(
        wire.Revocation(run_id=crowd.run_id, serial=3, reason="lost"), crowd_history.ROOT
    )
    with Session(history.engine) as session, session.begin():
        store_delegations(session, [], [revocation])
    with pytest.raises(BadSignature, match=f"leaf {index}: .* no treasurer key"):
        check(history)


def test_a_delegation_that_is_not_the_roots(crowd: Any, crowd_history: Any, history: Any) -> None:
    eve = crowd_history.identity("eve")
    record = wire.Delegation.FromString(
        crowd.delegation(eve, wire.KEY_PURPOSE_TREASURER, 9).payload
    )
    index = crowd.delegated(seal(record, eve))
    with pytest.raises(BadSignature, match=f"leaf {index}: delegated by"):
        check(history)


def test_a_delegation_that_is_not_published(crowd: Any, crowd_history: Any, history: Any) -> None:
    envelope = crowd.delegation(crowd_history.identity("new"), wire.KEY_PURPOSE_TREASURER, 9)
    leaf = leaf_of(open_act(envelope), run_id=crowd.run_id, at_s=history.now_s)
    index = forged(crowd, leaf)
    with pytest.raises(BadRecord, match=f"leaf {index}: it speaks of a delegation"):
        check(history)


def test_acts_of_a_folder(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(path: str, _most_bytes: int) -> bytes | None:
        asked.append(path)
        return b"found" if path == "acts/x001/234" else None

    source: Source = TileSource(fetch)
    assert source.act(1234) == b"found"
    assert source.act(7) is None
    assert asked == ["acts/x001/234", "acts/007"]
