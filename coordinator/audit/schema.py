"""The tables of the audits, on the same metadata as the coordinator's.

Invariants that the database itself enforces:

* one audit for a contribution, and one more for each appeal; one job of an ordinal for an audit;
* one answer for a challenge; one projection of a chunk range, one opened chunk of a member, for
  an audit;
* signed records are kept as the bytes that were signed.

Times are seconds since the epoch (``_s``). Digests and ids are raw bytes.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Float, ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from ledger.schema import Base

WAITING, OPENING, DECIDED = "waiting", "opening", "decided"
"""Phases of an audit: for projections and replays, for opened chunks, over."""

QUEUED, RUNNING, DONE = "queued", "running", "done"
"""Status of an audit job."""

ASKED, ANSWERED, REFUSED, SILENT = "asked", "answered", "refused", "silent"
"""Status of a challenge. REFUSED: nothing to show, or what was shown proves nothing."""

PENDING, FINAL, FORFEITED, UNPAID = "pending", "final", "forfeited", "unpaid"
"""Status of a contribution's credit."""

ISSUED, COMMITTED, PASSED, FAILED, LAPSED = "issued", "committed", "passed", "failed", "lapsed"
"""Status of a probation unit. LAPSED: it was not done, or nothing could be decided by it."""


class DrawRow(Base):
    """The draw of a settled round; its preimage is published once nobody can profit from it."""

    __tablename__ = "draws"

    round: Mapped[int] = mapped_column(ForeignKey("rounds.number"), primary_key=True)
    inclusion_digest: Mapped[bytes] = mapped_column(LargeBinary)
    group_id: Mapped[bytes] = mapped_column(LargeBinary)
    published: Mapped[bool] = mapped_column(default=False, comment="its leaf is in the log")


class TrustRow(Base):
    """Consecutive audited passes of a device in an execution class. Absent: none."""

    __tablename__ = "trust"

    worker: Mapped[str] = mapped_column(String(64), primary_key=True)
    execution: Mapped[str] = mapped_column(String(16), primary_key=True)
    passes: Mapped[int] = mapped_column(default=0)
    audits: Mapped[int] = mapped_column(default=0, comment="decided, whatever the verdict")
    watch: Mapped[str] = mapped_column(
        String(32), default="", comment="a Why that makes the next audit certain"
    )


class AuditRow(Base):
    """The audit of one contribution: merged, or a probation unit."""

    __tablename__ = "audits"

    audit_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    subject: Mapped[str] = mapped_column(String(16), comment="training | probation")
    assignment_id: Mapped[bytes] = mapped_column(LargeBinary, index=True)
    appeal: Mapped[int] = mapped_column(default=0, comment="0: the first audit; then 1, 2 ...")
    round: Mapped[int] = mapped_column(index=True)
    group_id: Mapped[bytes] = mapped_column(LargeBinary, default=b"", comment="of the reduce")
    worker: Mapped[str] = mapped_column(String(64), index=True)
    donor: Mapped[str] = mapped_column(String(64), index=True)
    execution: Mapped[str] = mapped_column(String(16), comment="of the contribution")
    why: Mapped[str] = mapped_column(String(32), comment="protocol.audit_policy.Why")
    projection_seed: Mapped[bytes] = mapped_column(LargeBinary)
    draw: Mapped[bytes] = mapped_column(LargeBinary, comment="draws the chunks to open")
    second: Mapped[bool] = mapped_column(default=False, comment="a second auditor was drawn")
    phase: Mapped[str] = mapped_column(String(16), index=True)
    chunks: Mapped[str] = mapped_column(Text, default="[]", comment="JSON: to open, once drawn")
    verdict: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="", comment="stable word")
    created_at_s: Mapped[float] = mapped_column()
    phase_since_s: Mapped[float] = mapped_column()
    decided_at_s: Mapped[float | None] = mapped_column()
    record: Mapped[bytes | None] = mapped_column(LargeBinary, comment="signed Verdict")
    leaf_index: Mapped[int | None] = mapped_column(BigInteger, comment="of the verdict in the log")

    __table_args__ = (UniqueConstraint("assignment_id", "appeal"),)


class AuditJobRow(Base):
    """One replay, to be done by any auditor that fits."""

    __tablename__ = "audit_jobs"

    job_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    audit_id: Mapped[bytes] = mapped_column(ForeignKey("audits.audit_id"), index=True)
    ordinal: Mapped[int] = mapped_column(comment="1, 2, 3 within the audit")
    avoid_executions: Mapped[str] = mapped_column(
        Text, default="[]", comment="JSON: another class if there is one; appeals insist"
    )
    insists: Mapped[bool] = mapped_column(default=False, comment="wait for another class")
    avoid_auditors: Mapped[str] = mapped_column(Text, default="[]", comment="JSON of PeerIDs")
    status: Mapped[str] = mapped_column(String(16), index=True)
    auditor: Mapped[str | None] = mapped_column(String(64))
    leased_until_s: Mapped[float | None] = mapped_column()
    attempts: Mapped[int] = mapped_column(default=0)
    created_at_s: Mapped[float] = mapped_column()
    finished_at_s: Mapped[float | None] = mapped_column()
    result: Mapped[bytes | None] = mapped_column(LargeBinary, comment="signed AuditResult")
    blob: Mapped[str] = mapped_column(Text, default="", comment="its encoded update, until decided")

    __table_args__ = (UniqueConstraint("audit_id", "ordinal"),)


class AuditorRow(Base):
    """An auditor process that was heard of."""

    __tablename__ = "auditors"

    auditor: Mapped[str] = mapped_column(String(64), primary_key=True, comment="PeerID")
    execution: Mapped[str] = mapped_column(String(16))
    last_seen_s: Mapped[float] = mapped_column()
    jobs_done: Mapped[int] = mapped_column(default=0)
    outvoted: Mapped[int] = mapped_column(default=0, comment="two others agreed against it")
    suspended_reason: Mapped[str | None] = mapped_column(Text)


class ChallengeRow(Base):
    """What somebody is asked to show, with its next heartbeat."""

    __tablename__ = "challenges"

    challenge_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    audit_id: Mapped[bytes] = mapped_column(
        LargeBinary, index=True, comment="of an audit or of a reducer audit"
    )
    kind: Mapped[int] = mapped_column(comment="service_pb2.ChallengeKind")
    asked: Mapped[str] = mapped_column(String(64), index=True, comment="who is to answer")
    members: Mapped[str] = mapped_column(Text, comment="JSON: whose chunks")
    group_id: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    assignment_id: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    first_chunk: Mapped[int] = mapped_column(default=0)
    end_chunk: Mapped[int] = mapped_column(default=0)
    chunks: Mapped[str] = mapped_column(Text, default="[]", comment="JSON list of chunk numbers")
    projection_seed: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    status: Mapped[str] = mapped_column(String(16), index=True)
    asked_at_s: Mapped[float] = mapped_column()
    answer_digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    answer: Mapped[bytes | None] = mapped_column(LargeBinary, comment="signed ChallengeAnswer")


class OpeningRow(Base):
    """An encoded chunk that was shown, proven to be part of a member's commitment."""

    __tablename__ = "openings"

    audit_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    member: Mapped[str] = mapped_column(String(64), primary_key=True)
    chunk: Mapped[int] = mapped_column(primary_key=True)
    encoded: Mapped[bytes] = mapped_column(LargeBinary)
    proof: Mapped[bytes] = mapped_column(LargeBinary, comment="audit path, hashes concatenated")


class ReducerAuditRow(Base):
    """The audit of one result chunk: its inputs are collected, its combination recomputed."""

    __tablename__ = "reducer_audits"

    audit_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    round: Mapped[int] = mapped_column(index=True)
    group_id: Mapped[bytes] = mapped_column(LargeBinary)
    chunk: Mapped[int] = mapped_column()
    ordinal: Mapped[int] = mapped_column(default=0, comment="0: as drawn; then further evidence")
    reducer: Mapped[str] = mapped_column(String(64), index=True)
    phase: Mapped[str] = mapped_column(String(16), index=True, comment="opening | decided")
    verdict: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at_s: Mapped[float] = mapped_column()
    decided_at_s: Mapped[float | None] = mapped_column()
    record: Mapped[bytes | None] = mapped_column(LargeBinary, comment="signed Verdict")
    leaf_index: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (UniqueConstraint("group_id", "chunk", "ordinal"),)


class ScreeningRow(Base):
    """What one reducer measured of the members' inputs, as it was signed."""

    __tablename__ = "screenings"

    group_id: Mapped[bytes] = mapped_column(ForeignKey("rosters.group_id"), primary_key=True)
    reducer: Mapped[str] = mapped_column(String(64), primary_key=True)
    first_chunk: Mapped[int] = mapped_column(primary_key=True)
    end_chunk: Mapped[int] = mapped_column()
    envelope: Mapped[bytes] = mapped_column(LargeBinary)


class ProbationRow(Base):
    """A new key's first unit: on a published state, audited, never merged."""

    __tablename__ = "probations"

    assignment_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    worker: Mapped[str] = mapped_column(ForeignKey("workers.worker"), index=True)
    round: Mapped[int] = mapped_column(comment="whose base weights it starts from")
    settled_rounds: Mapped[int] = mapped_column(comment="of that state")
    status: Mapped[str] = mapped_column(String(16), index=True)
    issued_at_s: Mapped[float] = mapped_column()
    deadline_s: Mapped[float] = mapped_column()
    envelope: Mapped[bytes] = mapped_column(LargeBinary, comment="signed Assignment")
    contribution: Mapped[bytes | None] = mapped_column(LargeBinary, comment="signed Contribution")
    contribution_digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    leaf_index: Mapped[int | None] = mapped_column(BigInteger, comment="of its credit")


class OtherCreditRow(Base):
    """Credit that is not a merged contribution's: for reducing, or for a probation unit."""

    __tablename__ = "other_credits"

    leaf_index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    work: Mapped[str] = mapped_column(String(16), comment="reducing | probation")
    round: Mapped[int] = mapped_column(index=True)
    worker: Mapped[str] = mapped_column(String(64))
    donor: Mapped[str] = mapped_column(String(64), index=True)
    microcredits: Mapped[int] = mapped_column(BigInteger)
    credit: Mapped[str] = mapped_column(String(16), index=True, comment="as of a contribution")
    reversed_by: Mapped[int | None] = mapped_column(BigInteger)
    credited_at_s: Mapped[float] = mapped_column()


class BlockRow(Base):
    """A key, of a device or of a donor, that takes no part any more."""

    __tablename__ = "blocks"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(String(16), comment="audit | organiser")
    at_s: Mapped[float] = mapped_column()


class SuspensionRow(Base):
    """A member that is left out of reducing for a while; its credit is untouched."""

    __tablename__ = "suspensions"

    worker: Mapped[str] = mapped_column(String(64), primary_key=True)
    withheld: Mapped[int] = mapped_column(default=0, comment="consecutive reduces not delivered")
    until_round: Mapped[int] = mapped_column(default=0, comment="from this one on it is welcome")
    lone_round: Mapped[int | None] = mapped_column(
        comment="when it alone last lacked a member that all others held"
    )
    reason: Mapped[str] = mapped_column(Text, default="")


class InviteRow(Base):
    __tablename__ = "invites"

    token_sha256: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    note: Mapped[str] = mapped_column(Text, default="")
    uses_left: Mapped[int] = mapped_column()
    expires_at_s: Mapped[float | None] = mapped_column()


class ToleranceRow(Base):
    """The calibrated bounds of the run; the only row has id 1."""

    __tablename__ = "tolerances"

    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    document: Mapped[str] = mapped_column(Text, comment="JSON of protocol.tolerance.ToleranceTable")
    made_at_s: Mapped[float] = mapped_column(Float)
