"""Certificates: what one person gave, with the proof, in one file that verifies offline.

A certificate is canonical JSON (RFC 8785)::

    {"format": "barnraise-certificate/1", "subject": PEER ID, "keys": [PEER ID, ...],
     "part": 1, "parts": 1, "leaves": [{"index": N, "leaf": {...}}, ...],
     "proof": [BASE64, ...], "checkpoint": NOTE, "delegations": {...},
     "totals": {...}, "claims": {...}}

Invariants:

* ``totals`` follow from ``leaves``, and from nothing else; ``claims`` are the server's word.
* ``proof`` is one proof of all leaves (:mod:`protocol.multiproof`) in the head ``checkpoint``,
  which a key signed that the run's root delegated (``delegations``, as :mod:`ledger.authority`).
* The first leaf of the log is among them, because the formula of every credit follows from it; so
  is the last, whose time dates the log key; and every enrolment and joining of keys that a credit
  needs; and of each credit the leaf that gave it its present status, with the verdict it names.

That nothing was left out cannot be proven by what is there: a leaf that takes credit back could
have been withheld. Only the whole record shows that (``barnraise ledger verify``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ledger.audit_records import FinalLeaf, ReversalLeaf, VerdictLeaf
from ledger.authority import Delegations, log_keys
from ledger.credit import FLOPS_PER_MICROCREDIT, flops_per_token, reducing_microcredits
from ledger.crowd_records import KeyRotationLeaf, MergeLeaf
from ledger.leaf import BaseLeaf, Count, KeyId, Word
from ledger.records import CreditLeaf, EnrolLeaf, RunLeaf, parse_leaf
from ledger.tally import Status, Tally
from protocol import merkle
from protocol.errors import BadRecord, BadSignature, UsageError
from protocol.identity import PeerId
from protocol.manifest import RunManifest, explain_validation
from protocol.multiproof import verify_many
from protocol.notes import Checkpoint, decode_base64, open_checkpoint, read_checkpoint

FORMAT: Final = "barnraise-certificate/1"
CREDITS_PER_PART = 2000
"""A long history comes in several certificates, each whole in itself."""

MAX_CERTIFICATE_BYTES = 16 << 20
MAX_LEAVES = 4 * CREDITS_PER_PART + 1000
MOST_PARTS = 1_000_000
_MAX_STEPS = 64 * MAX_LEAVES
_MAX_CLAIMS = 16

TOTALS = (
    "training_microcredits",
    "reducing_microcredits",
    "probation_microcredits",
    "pending_microcredits",
    "final_microcredits",
    "forfeited_microcredits",
    "unpaid_microcredits",
    "tokens",
    "contributions",
    "chunks",
)
"""What is added up, as :class:`ledger.tally.Tally` does."""


PartNumber = Annotated[int, Field(ge=1, le=MOST_PARTS)]


class Entry(BaseModel):
    """A leaf, and where it is in the log."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    index: Count
    leaf: dict[str, Any]


class Certificate(BaseModel):
    """A certificate, taken apart; nothing of it verified."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["barnraise-certificate/1"] = FORMAT
    subject: KeyId
    keys: Annotated[list[KeyId], Field(min_length=1, max_length=1000)]
    part: PartNumber = 1
    parts: PartNumber = 1
    leaves: Annotated[list[Entry], Field(min_length=1, max_length=MAX_LEAVES)]
    proof: Annotated[list[str], Field(max_length=_MAX_STEPS)]
    checkpoint: str
    delegations: dict[str, Any] | None
    totals: dict[str, Count]
    claims: Annotated[dict[Word, Count], Field(max_length=_MAX_CLAIMS)] = Field(
        description="what these leaves do not prove"
    )

    @classmethod
    def parse(cls, data: bytes) -> Certificate:
        """Take untrusted bytes apart.

        Raises:
            BadRecord: oversized or malformed.
        """
        if len(data) > MAX_CERTIFICATE_BYTES:
            raise BadRecord(f"a certificate is at most {MAX_CERTIFICATE_BYTES} bytes")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadRecord("not a certificate: it is not JSON") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise BadRecord(f"not a certificate: its format is not {FORMAT!r}")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise BadRecord(explain_validation("certificate", error)) from error

    def dump(self) -> bytes:
        """The file."""
        return rfc8785.dumps(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Proven:
    """What a certificate proves."""

    subject: PeerId
    keys: frozenset[PeerId]
    run: RunManifest
    run_id: str
    head: Checkpoint
    newest_s: int
    credits: dict[int, tuple[CreditLeaf, Status]]  # by leaf index
    part: int
    parts: int
    claims: dict[str, int]

    @property
    def totals(self) -> dict[str, int]:
        return totals_of(self.credits.values())


def totals_of(credits: Iterable[tuple[CreditLeaf, Status]]) -> dict[str, int]:
    """Add up credits and what became of them."""
    tally = Tally()
    for leaf, status in credits:
        tally.add(leaf)
        tally.move(leaf.microcredits, "pending", status)
    return {name: getattr(tally, name) for name in TOTALS}


def check_certificate(data: bytes, root: PeerId) -> Proven:
    """Verify a certificate offline, with the fingerprint of the run's root key alone.

    Steps, all of which must hold:

    1. every leaf is one of ours, and of one run, whose root key is ``root``;
    2. a log key that ``root`` delegated, at the time of the newest leaf, signed the head;
    3. the proof leads from the leaves to the head's root;
    4. every credit is the subject's, went to a device enrolled for it, and is what the formula
       gives; the totals are the sums.

    Raises:
        BadRecord, BadSignature, BadDigest: what is wrong with it.
    """
    certificate = Certificate.parse(data)
    leaves = _parsed(certificate)
    run, last = leaves.get(0), max(leaves)
    if not isinstance(run, RunLeaf):
        raise BadRecord("the certificate lacks the log's first leaf, which names the run")
    manifest = run.run_manifest()
    if manifest.root != root:
        raise BadSignature(f"this run's root key is {manifest.root}, not the one that was given")
    if any(leaf.run_id != run.run_id for leaf in leaves.values()):
        raise BadRecord("the certificate mixes leaves of several runs")
    newest_s = max(leaf.at_s for leaf in leaves.values())
    head = _signed_head(certificate, manifest, run.run_id, newest_s)
    if last != head.size - 1:
        raise BadRecord("the certificate lacks the newest leaf, whose time dates the log key")
    verify_many(
        {index: merkle.leaf_hash(leaf.canonical()) for index, leaf in leaves.items()},
        head.size,
        [decode_base64(step) for step in certificate.proof],
        head.root,
    )
    keys = _joined_keys(certificate, leaves)
    credits = _credits(leaves, keys, manifest)
    proven = Proven(
        certificate.subject,
        keys,
        manifest,
        run.run_id,
        head,
        newest_s,
        credits,
        certificate.part,
        certificate.parts,
        certificate.claims,
    )
    if proven.totals != certificate.totals:
        raise BadRecord("the certificate's totals are not the sums of its leaves")
    return proven


def _parsed(certificate: Certificate) -> dict[int, BaseLeaf]:
    leaves: dict[int, BaseLeaf] = {}
    for entry in certificate.leaves:
        try:
            leaf = parse_leaf(_canonical(entry.leaf))
        except BadRecord as error:
            raise BadRecord(f"leaf {entry.index}: {error}") from error
        if leaves.setdefault(entry.index, leaf) is not leaf:
            raise BadRecord(f"the certificate lists leaf {entry.index} twice")
    return leaves


def _canonical(said: dict[str, Any]) -> bytes:
    try:
        return rfc8785.dumps(said)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise BadRecord("part of the certificate has no canonical form") from error


def _signed_head(
    certificate: Certificate, manifest: RunManifest, run_id: str, at_s: int
) -> Checkpoint:
    origin = read_checkpoint(certificate.checkpoint).origin
    if origin != manifest.origin:
        raise BadRecord(f"the head is of {origin!r}, the run of {manifest.origin!r}")
    if certificate.delegations is None:
        raise BadSignature("the certificate lacks the log key's delegations")
    records = Delegations.parse(_canonical(certificate.delegations))
    keys = log_keys(records, manifest.root, origin, run_id=bytes.fromhex(run_id), at_s=at_s)
    return open_checkpoint(certificate.checkpoint, keys)


def _joined_keys(certificate: Certificate, leaves: Mapping[int, BaseLeaf]) -> frozenset[PeerId]:
    """The subject's keys, each led to it by a leaf."""
    becomes: dict[PeerId, PeerId] = {}
    for _, leaf in sorted(leaves.items()):
        if isinstance(leaf, KeyRotationLeaf):
            becomes[leaf.donor] = leaf.new
        elif isinstance(leaf, MergeLeaf):
            becomes[leaf.donor] = leaf.into
    if len(set(certificate.keys)) != len(certificate.keys):
        raise BadRecord("the certificate lists a key twice")
    for key in certificate.keys:
        seen = {key}
        at = key
        while at != certificate.subject:
            at = becomes.get(at, key)
            if at in seen:
                raise BadRecord(f"no leaf joins the key {key} to {certificate.subject}")
            seen.add(at)
    return frozenset(certificate.keys)


def _credits(
    leaves: Mapping[int, BaseLeaf], keys: frozenset[PeerId], manifest: RunManifest
) -> dict[int, tuple[CreditLeaf, Status]]:
    """The credits, checked, with the status that the last leaf on each gives it."""
    enrolled: set[tuple[PeerId, PeerId]] = set()
    credits: dict[int, tuple[CreditLeaf, Status]] = {}
    for index, leaf in sorted(leaves.items()):
        if isinstance(leaf, EnrolLeaf):
            enrolled.add((leaf.worker, leaf.donor))
        elif isinstance(leaf, CreditLeaf):
            if leaf.donor not in keys:
                raise BadRecord(f"leaf {index} credits {leaf.donor}, who is somebody else")
            if (leaf.worker, leaf.donor) not in enrolled:
                raise BadRecord(f"leaf {index} credits a device that no leaf enrols before it")
            _check_amount(index, leaf, manifest)
            credits[index] = leaf, "pending"
        elif isinstance(leaf, FinalLeaf | ReversalLeaf):
            status = _status(index, leaf, leaves)
            for named in leaf.credits:
                if named in credits:
                    credits[named] = credits[named][0], status
    return credits


def _status(index: int, leaf: FinalLeaf | ReversalLeaf, leaves: Mapping[int, BaseLeaf]) -> Status:
    if isinstance(leaf, FinalLeaf):
        return "final"
    if leaf.restored:
        return "pending"
    verdict = leaves.get(leaf.verdict_leaf)
    if not isinstance(verdict, VerdictLeaf):
        raise BadRecord(f"leaf {index} names a verdict that the certificate lacks")
    return "forfeited" if verdict.verdict == "failed" else "unpaid"


def _check_amount(index: int, leaf: CreditLeaf, manifest: RunManifest) -> None:
    if leaf.work == "reducing":
        expected = reducing_microcredits(leaf.chunks, manifest.update.chunk_elements)
    else:
        try:
            flops = flops_per_token(manifest.model_config_json, manifest.sequence_length)
        except UsageError as error:
            raise BadRecord(str(error)) from error
        expected = leaf.tokens * flops // FLOPS_PER_MICROCREDIT
    if leaf.microcredits != expected:
        raise BadRecord(
            f"leaf {index} credits {leaf.microcredits} microcredits; the formula gives {expected}"
        )


def encode_proof(steps: Sequence[bytes]) -> list[str]:
    """The proof as a certificate holds it."""
    return [base64.b64encode(step).decode() for step in steps]
