"""The kinds of leaf.

Invariants:

* A leaf holds key ids, digests and integers: never a name, an address or a float of ours, so a
  profile can be erased and the log still verifies. (The run leaf quotes the run manifest,
  which is public by design.)
* Its bytes are canonical JSON (RFC 8785) and are refused otherwise, or when a field is unknown:
  two programs never read one leaf differently.
* A leaf carries what is needed to recompute its credit, given the run leaf.

What audits leave is in :mod:`ledger.audit_records`, what people do besides training in
:mod:`ledger.crowd_records`; every kind can be imported from here.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

import rfc8785
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ledger.audit_records import BlockLeaf, DrawLeaf, FinalLeaf, ReversalLeaf, VerdictLeaf
from ledger.crowd_records import (
    ActLeaf,
    CampaignEndLeaf,
    CampaignLeaf,
    CrowdLeaf,
    DelegationLeaf,
    DonationLeaf,
    KeyRotationLeaf,
    MembershipLeaf,
    MergeLeaf,
    NewsLeaf,
    PledgeLeaf,
    PoolLeaf,
    TeamLeaf,
    VoidLeaf,
)
from ledger.leaf import (
    MAX_CREDITS_IN_LEAF,
    MAX_SAFE_INTEGER,
    AssignmentId,
    BaseLeaf,
    Count,
    Digest,
    Execution,
    KeyId,
    Positive,
    Ppm,
)
from protocol.draw import CHAIN_ROUNDS
from protocol.errors import BadRecord, UsageError
from protocol.limits import MAX_LEAF_BYTES
from protocol.manifest import RunManifest, explain_validation

__all__ = [
    "MAX_CREDITS_IN_LEAF",
    "MAX_SAFE_INTEGER",
    "ActLeaf",
    "BlockLeaf",
    "CampaignEndLeaf",
    "CampaignLeaf",
    "CreditLeaf",
    "CrowdLeaf",
    "DelegationLeaf",
    "DonationLeaf",
    "DrawLeaf",
    "EnrolLeaf",
    "FinalLeaf",
    "KeyRotationLeaf",
    "Leaf",
    "MembershipLeaf",
    "MergeLeaf",
    "NewsLeaf",
    "PledgeLeaf",
    "PoolLeaf",
    "ReleaseLeaf",
    "RestoreLeaf",
    "ReversalLeaf",
    "RoundLeaf",
    "RunLeaf",
    "TeamLeaf",
    "VerdictLeaf",
    "VoidLeaf",
    "parse_leaf",
]


class RunLeaf(BaseLeaf):
    """Leaf 0: the run, whole. The formula of every later credit follows from its manifest."""

    kind: Literal["run"] = "run"
    manifest: dict[str, Any]  # the run manifest as JSON; its canonical SHA-256 is the run id
    draw_tip: Digest  # of the chain that fixes every draw of the run (protocol.draw)
    draw_rounds: Annotated[Positive, Field(le=CHAIN_ROUNDS)] = CHAIN_ROUNDS  # that it is good for

    @model_validator(mode="after")
    def _check_digest(self) -> Self:
        if hashlib.sha256(rfc8785.dumps(self.manifest)).hexdigest() != self.run_id:
            raise ValueError("run_id is not the digest of the manifest")
        return self

    def canonical(self) -> bytes:
        """RFC 8785 bytes; a manifest is any JSON, with fractions too."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @classmethod
    def of(cls, manifest: RunManifest, *, at_s: int, draw_tip: bytes) -> RunLeaf:
        """The run leaf of a manifest, and of the chain whose tip is ``draw_tip``."""
        raw = json.loads(manifest.canonical())
        return cls(run_id=manifest.run_id.hex(), at_s=at_s, manifest=raw, draw_tip=draw_tip.hex())

    def run_manifest(self) -> RunManifest:
        """The manifest, fully understood.

        Raises:
            BadRecord: this version does not understand it.
        """
        try:
            return RunManifest.from_mapping(self.manifest)
        except UsageError as error:
            raise BadRecord(str(error)) from error


class EnrolLeaf(BaseLeaf):
    """A device works for a donor from here on."""

    kind: Literal["enrol"] = "enrol"
    worker: KeyId
    donor: KeyId
    device_class: Literal["cpu", "cuda", "mps"]


class RoundLeaf(BaseLeaf):
    """A round is over. The last round leaf gives the state of the run."""

    kind: Literal["round"] = "round"
    round: Count
    outcome: Literal["settled", "skipped"]
    state_digest: Digest  # after the round; unchanged by a skipped one
    merged_tokens: Count  # of the run so far, not of the round
    roster_digest: Digest | None = None  # None: skipped before there was one
    result_digest: Digest | None = None  # RFC 6962 root over the encoded result chunks
    members: Count  # merged members
    validation_loss_micronats: Count | None = None  # mean per predicted token
    started_at_s: Count
    ended_at_s: Count


class CreditLeaf(BaseLeaf):
    """Work that was accepted, with everything that its credit is computed from."""

    kind: Literal["credit"] = "credit"
    work: Literal["training", "probation", "reducing"]
    round: Count
    assignment_id: AssignmentId | None = None  # training, probation: the lease that is paid
    worker: KeyId
    donor: KeyId
    tokens: Count = 0  # training, probation: what is paid for
    chunks: Count = 0  # reducing: signed chunks of the settled result
    microcredits: Count  # by ledger.credit, from tokens or chunks and the run's manifest
    status: Literal["pending"] = "pending"  # what becomes of it, later leaves say
    contribution_digest: Digest | None = None  # training, probation: SHA-256 of the Contribution
    execution: Execution | None = None  # training, probation: as the Contribution says
    audit_ppm: Ppm | None = (
        None  # training, probation: the chance that it is audited, in millionths
    )

    @model_validator(mode="after")
    def _check_work(self) -> Self:
        audited = (self.assignment_id, self.contribution_digest, self.execution, self.audit_ppm)
        if self.work == "reducing":
            if any(field is not None for field in audited) or self.tokens or not self.chunks:
                raise ValueError("reducing credit counts chunks, and only chunks")
            return self
        if None in audited:
            raise ValueError(
                f"{self.work} credit names its assignment and contribution, with its execution "
                "and its chance of an audit"
            )
        if not self.tokens or self.chunks:
            raise ValueError(f"{self.work} credit counts tokens, and only tokens")
        return self


class ReleaseLeaf(BaseLeaf):
    """The model was released."""

    kind: Literal["release"] = "release"
    settled_rounds: Count
    state_digest: Digest
    weights_sha256: Digest  # of the released safetensors file
    provenance_sha256: Digest | None = None  # of the signed provenance statement


class RestoreLeaf(BaseLeaf):
    """The run goes on from a backup: what came after the backup is lost to the model.

    Rounds between the one before this leaf and ``next_round`` were lost, or never were. Leaves from
    ``log_size`` on to this one were brought back from a copy of the record: their credit stands.
    """

    kind: Literal["restore"] = "restore"
    log_size: Positive  # leaves of the backup
    next_round: Annotated[Positive, Field(lt=CHAIN_ROUNDS)]
    settled_rounds: Count
    state_digest: Digest  # that the run goes on from
    merged_tokens: Count  # in that state


Leaf = (
    RunLeaf
    | EnrolLeaf
    | RoundLeaf
    | CreditLeaf
    | DrawLeaf
    | VerdictLeaf
    | FinalLeaf
    | ReversalLeaf
    | BlockLeaf
    | ReleaseLeaf
    | RestoreLeaf
    | CrowdLeaf
)

_ANY: TypeAdapter[Leaf] = TypeAdapter(Annotated[Leaf, Field(discriminator="kind")])


def parse_leaf(data: bytes) -> Leaf:
    """Read a leaf from untrusted bytes.

    Raises:
        BadRecord: oversized, not canonical, of unknown kind, or a field is unknown or wrong.
    """
    if len(data) > MAX_LEAF_BYTES:
        raise BadRecord(f"leaf of {len(data)} bytes is over {MAX_LEAF_BYTES}")
    try:
        leaf = _ANY.validate_json(data)
    except ValidationError as error:
        raise BadRecord(explain_validation("leaf", error)) from error
    if leaf.canonical() != data:
        raise BadRecord("leaf is not in canonical form (RFC 8785)")
    return leaf
