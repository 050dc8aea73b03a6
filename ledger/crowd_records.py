"""The kinds of leaf that people leave besides training: campaigns, pledges, money, teams, keys.

Each repeats the numbers of a signed act (``protocol/wire/records.proto``) and names it by
``record_digest``: SHA-256 of its signed payload.

Invariants:

* A public act is published whole beside the log, and its leaf names who did it. Of a private or
  secret one the log has the numbers and the salted digest, and nobody's key.
* Nothing is edited: a later revision replaces an earlier one, a ``void`` undoes a leaf, and both
  stay to be seen.

What may follow what is the fold's to judge (:mod:`ledger.crowd`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ledger.leaf import AssignmentId, BaseLeaf, Count, Digest, KeyId, Positive, Word

ActId = AssignmentId
"""16 bytes, hex: of a campaign, pledge, donation or team."""

Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
Visibility = Literal["public", "private", "secret"]
Outcome = Literal["reached", "missed", "closed"]
AtEnd = Literal["continue", "close"]


class ActLeaf(BaseLeaf):
    """A leaf that stands for a signed act."""

    record_digest: Digest  # SHA-256 of the signed act's payload


class DelegationLeaf(ActLeaf):
    """The root key vouches for a key, or no longer."""

    kind: Literal["delegation"] = "delegation"
    purpose: Literal["round", "log", "tls", "campaign", "treasurer"] | None = None
    key_digest: Digest | None = None  # SHA-256 of the public key
    serial: Count
    not_before_s: Count | None = None
    not_after_s: Count | None = None
    revoked: bool = False  # of this serial; then there is nothing but the serial

    @model_validator(mode="after")
    def _check_revoked(self) -> Self:
        told = (self.purpose, self.key_digest, self.not_before_s, self.not_after_s)
        if any((field is None) != self.revoked for field in told):
            raise ValueError("a delegation has purpose, key and window; a revocation has none")
        return self


class CampaignLeaf(ActLeaf):
    """A campaign begins, or has new terms."""

    kind: Literal["campaign"] = "campaign"
    campaign: ActId
    revision: Count
    goal_microcredits: Positive
    goal_minor: Positive | None = None  # of money
    currency: Currency | None = None
    starts_s: Count
    ends_s: Count | None = None
    when_reached: AtEnd
    when_missed: AtEnd

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        if self.goal_minor is not None and self.currency is None:
            raise ValueError("a goal of money has a currency")
        if self.ends_s is not None and self.ends_s <= self.starts_s:
            raise ValueError("a campaign ends after it starts")
        return self


class CampaignEndLeaf(ActLeaf):
    """A campaign is over: what is credited from here on does not count for it."""

    kind: Literal["campaign_end"] = "campaign_end"
    campaign: ActId
    outcome: Outcome


class NewsLeaf(ActLeaf):
    """The organisers said something; its text is published beside the log."""

    kind: Literal["news"] = "news"
    campaign: ActId


class PledgeLeaf(ActLeaf):
    """Compute is promised; a later revision of the same pledge replaces this one."""

    kind: Literal["pledge"] = "pledge"
    campaign: ActId
    pledge: ActId
    revision: Count
    donor: KeyId | None = None  # public ones only
    microcredits: Count  # 0: withdrawn
    until_s: Count
    visibility: Visibility

    @model_validator(mode="after")
    def _check_donor(self) -> Self:
        if (self.donor is not None) != (self.visibility == "public"):
            raise ValueError("a pledge names its donor exactly if it is public")
        return self


class PoolLeaf(ActLeaf):
    """Credit of this donor's devices, which money pays, belongs to who gave the money."""

    kind: Literal["pool"] = "pool"
    campaign: ActId
    pool: KeyId
    currency: Currency
    treasurer: KeyId


class DonationLeaf(ActLeaf):
    """Money arrived."""

    kind: Literal["donation"] = "donation"
    campaign: ActId
    donation: ActId
    donor: KeyId | None = None  # public ones only, of somebody the record knows
    pool: KeyId | None = None
    amount_minor: Positive
    currency: Currency
    received_s: Count
    visibility: Visibility
    treasurer: KeyId

    @model_validator(mode="after")
    def _check_donor(self) -> Self:
        if self.donor is not None and self.visibility != "public":
            raise ValueError("only a public donation names its donor")
        return self


class VoidLeaf(ActLeaf):
    """An earlier pledge, donation or pool counts no more, from here on."""

    kind: Literal["void"] = "void"
    leaf: Count
    reason: Word


class TeamLeaf(ActLeaf):
    """A team is founded; its name is a profile, outside the log."""

    kind: Literal["team"] = "team"
    team: ActId
    donor: KeyId  # its founder


class MembershipLeaf(ActLeaf):
    """A donor is of a team, or of none, from here on: later credit counts for that team."""

    kind: Literal["membership"] = "membership"
    donor: KeyId
    team: ActId | None = None


class KeyRotationLeaf(ActLeaf):
    """A donor's account goes on under a new key, which had none."""

    kind: Literal["key_rotation"] = "key_rotation"
    donor: KeyId  # the old key
    new: KeyId


class MergeLeaf(ActLeaf):
    """Two accounts are one person's: they are counted under the second key."""

    kind: Literal["merge"] = "merge"
    donor: KeyId  # the key that is given up
    into: KeyId


CrowdLeaf = (
    DelegationLeaf
    | CampaignLeaf
    | CampaignEndLeaf
    | NewsLeaf
    | PledgeLeaf
    | PoolLeaf
    | DonationLeaf
    | VoidLeaf
    | TeamLeaf
    | MembershipLeaf
    | KeyRotationLeaf
    | MergeLeaf
)
