"""The kinds of leaf that audits leave, and what became of credit.

Invariants:

* Nothing is edited: credit becomes final, is reversed or restored by a leaf of its own, which
  names the leaves that it is about by their index.
* Reasons are stable words, never free text: whatever somebody wrote stays outside the log.

What may follow what is the fold's to judge (:mod:`ledger.fold`).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from ledger.leaf import (
    AssignmentId,
    BaseLeaf,
    Count,
    Digest,
    Execution,
    KeyId,
    LeafIndexes,
    VerdictWord,
    Word,
)


class DrawLeaf(BaseLeaf):
    """The preimage that a settled round used up: who was audited can be recomputed from here on."""

    kind: Literal["draw"] = "draw"
    round: Count
    preimage: Digest  # of protocol.draw: leads to the run leaf's draw_tip
    inclusion_digest: Digest  # SHA-256 of the signed InclusionSet's payload


class VerdictLeaf(BaseLeaf):
    """What an audit said."""

    kind: Literal["verdict"] = "verdict"
    round: Count
    subject: Literal["training", "probation", "reducing"]
    worker: KeyId  # who is judged
    execution: Execution | None = None  # training, probation: of the contribution
    assignment_id: AssignmentId | None = None  # training, probation
    chunk: Count | None = None  # reducing
    verdict: VerdictWord  # protocol.audit_policy.Verdict
    reason: Word
    why: Word  # protocol.audit_policy.Why: why it was audited
    record_digest: Digest  # SHA-256 of the signed Verdict's payload

    @model_validator(mode="after")
    def _check_subject(self) -> Self:
        if self.subject == "reducing":
            if self.chunk is None or self.assignment_id is not None or self.execution is not None:
                raise ValueError("a verdict on reducing names its chunk, and no assignment")
        elif self.chunk is not None or self.assignment_id is None or self.execution is None:
            raise ValueError("a verdict on training names its assignment and execution, no chunk")
        return self


class FinalLeaf(BaseLeaf):
    """Pending credit that nothing can take away any more, but proof that the work was false."""

    kind: Literal["final"] = "final"
    donor: KeyId
    credits: LeafIndexes  # of credit leaves, ascending


class ReversalLeaf(BaseLeaf):
    """Credit that is taken back because of a verdict, or given back when that is overturned."""

    kind: Literal["reversal"] = "reversal"
    donor: KeyId
    credits: LeafIndexes  # of credit leaves, ascending
    reason: Word
    verdict_leaf: Count  # that explains it: failed or unavailable; restored: overturned
    restored: bool = False  # pending again
    microcredits: Count  # of these credits together


class BlockLeaf(BaseLeaf):
    """A key, of a device or of a donor, that takes no part any more, or does again."""

    kind: Literal["block"] = "block"
    key: KeyId
    blocked: bool
    reason: Word
