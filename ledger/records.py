"""The kinds of leaf.

Invariants:

* A leaf holds key ids, digests and integers: never a name, an address or a float of ours, so a
  profile can be erased and the log still verifies. (The run leaf quotes the run manifest,
  which is public by design.)
* Its bytes are canonical JSON (RFC 8785) and are refused otherwise, or when a field is unknown:
  two programs never read one leaf differently.
* A leaf carries what is needed to recompute its credit, given the run leaf.

Fields that hold digests and ids are hex text; constructors accept ``bytes`` for them too.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

import rfc8785
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from protocol.errors import BadRecord, UsageError
from protocol.identity import PublicKey
from protocol.limits import MAX_LEAF_BYTES
from protocol.manifest import RunManifest, explain_validation

MAX_SAFE_INTEGER = (1 << 53) - 1
"""The largest integer that every JSON reader keeps exactly (RFC 8785 section 3.2.2.3)."""


def _hex(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _key_id(value: str) -> str:
    try:
        PublicKey.from_peer_id(value)
    except BadRecord as error:
        raise ValueError(str(error)) from error
    return value


Digest = Annotated[str, BeforeValidator(_hex), Field(pattern=r"^[0-9a-f]{64}$")]
AssignmentId = Annotated[str, BeforeValidator(_hex), Field(pattern=r"^[0-9a-f]{32}$")]
KeyId = Annotated[str, AfterValidator(_key_id), Field(max_length=64)]
Count = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_SAFE_INTEGER)]


class _Leaf(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    v: Literal[1] = 1
    run_id: Digest
    at_s: Count  # Unix seconds, on the coordinator's clock

    def canonical(self) -> bytes:
        """RFC 8785 bytes: what is hashed, stored and served."""
        return rfc8785.dumps(self.model_dump(mode="json"))


class RunLeaf(_Leaf):
    """Leaf 0: the run, whole. The formula of every later credit follows from its manifest."""

    kind: Literal["run"] = "run"
    manifest: dict[str, Any]  # the run manifest as JSON; its canonical SHA-256 is the run id

    @model_validator(mode="after")
    def _check_digest(self) -> Self:
        if hashlib.sha256(rfc8785.dumps(self.manifest)).hexdigest() != self.run_id:
            raise ValueError("run_id is not the digest of the manifest")
        return self

    @classmethod
    def of(cls, manifest: RunManifest, *, at_s: int) -> RunLeaf:
        """The run leaf of a manifest."""
        raw = json.loads(manifest.canonical())
        return cls(run_id=manifest.run_id.hex(), at_s=at_s, manifest=raw)

    def run_manifest(self) -> RunManifest:
        """The manifest, fully understood.

        Raises:
            BadRecord: this version does not understand it.
        """
        try:
            return RunManifest.from_mapping(self.manifest)
        except UsageError as error:
            raise BadRecord(str(error)) from error


class EnrolLeaf(_Leaf):
    """A device works for a donor from here on."""

    kind: Literal["enrol"] = "enrol"
    worker: KeyId
    donor: KeyId
    device_class: Literal["cpu", "cuda", "mps"]


class RoundLeaf(_Leaf):
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


class CreditLeaf(_Leaf):
    """Work that was accepted, with everything that its credit is computed from."""

    kind: Literal["credit"] = "credit"
    work: Literal["training", "reducing"]
    round: Count
    assignment_id: AssignmentId | None = None  # training: the lease that is paid
    worker: KeyId
    donor: KeyId
    tokens: Count = 0  # training: what is paid for
    chunks: Count = 0  # reducing: signed chunks of the settled result
    microcredits: Count  # by ledger.credit, from tokens or chunks and the run's manifest
    status: Literal["pending"] = "pending"
    contribution_digest: Digest | None = None  # training: SHA-256 of the signed Contribution

    @model_validator(mode="after")
    def _check_work(self) -> Self:
        if self.work == "training":
            if self.assignment_id is None or self.contribution_digest is None:
                raise ValueError("training credit names its assignment and contribution")
            if not self.tokens or self.chunks:
                raise ValueError("training credit counts tokens, and only tokens")
        elif self.assignment_id is not None or self.tokens or not self.chunks:
            raise ValueError("reducing credit counts chunks, and only chunks")
        return self


class ReleaseLeaf(_Leaf):
    """The model was released."""

    kind: Literal["release"] = "release"
    settled_rounds: Count
    state_digest: Digest
    weights_sha256: Digest  # of the released safetensors file
    provenance_sha256: Digest | None = None  # of the signed provenance statement


Leaf = RunLeaf | EnrolLeaf | RoundLeaf | CreditLeaf | ReleaseLeaf

_ANY: TypeAdapter[Leaf] = TypeAdapter(Annotated[Leaf, Field(discriminator="kind")])


def parse_leaf(data: bytes) -> Leaf:
    """Read a leaf from untrusted bytes.

    Raises:
        BadRecord: oversized, not canonical, of unknown kind, or a field is unknown or wrong.
    """
    if len(data) > MAX_LEAF_BYTES:
        raise BadRecord(f"leaf of {len(data)} bytes is over {MAX_LEAF_BYTES}")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"leaf is not JSON: {error}") from error
    try:
        leaf = _ANY.validate_python(raw)
    except ValidationError as error:
        raise BadRecord(explain_validation("leaf", error)) from error
    if leaf.canonical() != data:
        raise BadRecord("leaf is not in canonical form (RFC 8785)")
    return leaf
