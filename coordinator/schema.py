"""The coordinator's tables, on the ledger's metadata: one database, one transaction for both.

Invariants that the database itself enforces:

* ``intervals`` cut each epoch into a gapless chain that begins at batch 0: ``start`` and ``stop``
  are unique within the epoch, and each interval but the first begins where another stops (a
  foreign key on itself; Kuznetsov's "contiguous time periods"). So each inner batch lies in
  exactly one interval, which is free, leased to exactly one assignment, or consumed: never two.
* One assignment for a worker in a round, one contribution for an assignment, one roster for an
  attempt, one result for a chunk of a group, one report for a member and round.
* Signed records are kept as the bytes that were signed; columns repeat what queries need.

Times are seconds since the epoch (``_s``). Digests and ids are raw bytes.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from ledger.schema import Base

FREE, LEASED, CONSUMED = "free", "leased", "consumed"
"""States of an interval."""

TRAINING, COMMITTED, EXPIRED, MERGED, UNMERGED = (
    "training",
    "committed",
    "expired",
    "merged",
    "unmerged",
)
"""Ways of an assignment: training -> committed -> merged | unmerged, or training -> expired."""


class WorkerRow(Base):
    """A device that has been enrolled, and what it last said of itself."""

    __tablename__ = "workers"

    worker: Mapped[str] = mapped_column(String(64), primary_key=True, comment="PeerID")
    donor: Mapped[str] = mapped_column(String(64), index=True)
    device_class: Mapped[str] = mapped_column(String(16))
    device_name: Mapped[str] = mapped_column(String(128), default="")
    display_name: Mapped[str] = mapped_column(String(64), default="", comment="erasable profile")
    client_version: Mapped[str] = mapped_column(String(64), default="")
    anchor: Mapped[bool] = mapped_column(default=False)
    client_mode: Mapped[bool] = mapped_column(default=True, comment="no inbound port")
    multiaddrs: Mapped[str] = mapped_column(Text, default="[]", comment="JSON list of strings")
    enrolled_at_s: Mapped[float] = mapped_column()
    enrolled_from: Mapped[str] = mapped_column(
        String(64), default="", index=True, comment="keyed hash of the first address: for quotas"
    )
    approved: Mapped[bool] = mapped_column(default=True, comment="false: the organiser has to")
    admission: Mapped[bytes | None] = mapped_column(LargeBinary, comment="signed Admission")
    last_seen_s: Mapped[float] = mapped_column(default=0.0)
    phase: Mapped[int] = mapped_column(default=0, comment="WorkerPhase as last reported")
    phase_reason: Mapped[str] = mapped_column(Text, default="")
    steps_done: Mapped[int] = mapped_column(BigInteger, default=0)
    reported_tokens_per_s: Mapped[float] = mapped_column(default=0.0, comment="a hint")
    measured_tokens_per_s: Mapped[float] = mapped_column(default=0.0, comment="accepted work only")


class ControlRow(Base):
    """What the whole run is doing; the only row has id 1."""

    __tablename__ = "control"

    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    run_id: Mapped[bytes] = mapped_column(LargeBinary)
    paused: Mapped[bool] = mapped_column(default=False)
    finished: Mapped[bool] = mapped_column(default=False)
    alive_at_s: Mapped[float] = mapped_column(default=0.0, comment="to know the downtime")
    finality_at_s: Mapped[float] = mapped_column(default=0.0, comment="last look at pending credit")

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class StateRow(Base):
    """A model state; the newest one is what the next round starts from."""

    __tablename__ = "states"

    settled_rounds: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    weights_root: Mapped[bytes] = mapped_column(LargeBinary)
    momentum_root: Mapped[bytes] = mapped_column(LargeBinary)
    merged_tokens: Mapped[int] = mapped_column(BigInteger)
    weights_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    weights_bytes: Mapped[int] = mapped_column(BigInteger)
    momentum_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    momentum_bytes: Mapped[int] = mapped_column(BigInteger)
    validation_loss: Mapped[float | None] = mapped_column(comment="mean nats per token")
    evaluated: Mapped[bool] = mapped_column(default=False, comment="false: the loss is to come")
    saved_at_s: Mapped[float] = mapped_column()


class RoundRow(Base):
    """A round: the state machine as JSON (read and written only whole) and its outcome."""

    __tablename__ = "rounds"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    machine: Mapped[str] = mapped_column(Text, comment="coordinator.round_state.dump")
    phase: Mapped[str] = mapped_column(String(16), index=True)
    settled_rounds: Mapped[int] = mapped_column(
        ForeignKey("states.settled_rounds"), comment="the state it starts from"
    )
    settled_after: Mapped[int | None] = mapped_column(
        comment="settled rounds of the run when it ended, itself included"
    )
    head: Mapped[bytes] = mapped_column(LargeBinary, comment="signed RunHead")
    opened_at_s: Mapped[float] = mapped_column()
    ended_at_s: Mapped[float | None] = mapped_column()
    reason: Mapped[str] = mapped_column(Text, default="")
    members: Mapped[int] = mapped_column(default=0)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    roster_digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    result_digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    logged: Mapped[bool] = mapped_column(default=False, comment="its leaf is in the log")


class IntervalRow(Base):
    """Inner batches [start, stop) of an epoch, all free, leased to one assignment, or consumed."""

    __tablename__ = "intervals"

    id: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column()
    start: Mapped[int] = mapped_column(BigInteger)
    stop: Mapped[int] = mapped_column(BigInteger)
    previous_stop: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(8))
    assignment_id: Mapped[bytes | None] = mapped_column(LargeBinary, index=True)

    __table_args__ = (
        Index("ix_intervals_chain", "epoch", "previous_stop"),
        # A free gap is found without a look at what thousands of members hold.
        Index(
            "ix_intervals_free",
            "epoch",
            "start",
            sqlite_where=text("state = 'free'"),
            postgresql_where=text("state = 'free'"),
        ),
        UniqueConstraint("epoch", "start", name="uq_intervals_start"),
        UniqueConstraint("epoch", "stop", name="uq_intervals_stop"),
        ForeignKeyConstraint(
            ["epoch", "previous_stop"],
            ["intervals.epoch", "intervals.stop"],
            name="fk_intervals_chain",
            deferrable=True,
            initially="DEFERRED",
        ),
        CheckConstraint("start < stop", name="not_empty"),
        CheckConstraint(
            # A check that is NULL passes in SQL, hence the IS NOT NULL.
            "(start = 0 AND previous_stop IS NULL)"
            " OR (start > 0 AND previous_stop IS NOT NULL AND previous_stop = start)",
            name="chained",
        ),
        CheckConstraint("(state = 'leased') = (assignment_id IS NOT NULL)", name="leased_to_one"),
        CheckConstraint("state IN ('free', 'leased', 'consumed')", name="known_state"),
    )


class AssignmentRow(Base):
    __tablename__ = "assignments"

    assignment_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    round: Mapped[int] = mapped_column(ForeignKey("rounds.number"))
    worker: Mapped[str] = mapped_column(ForeignKey("workers.worker"))
    epoch: Mapped[int] = mapped_column()
    start_batch: Mapped[int] = mapped_column(BigInteger)
    stop_batch: Mapped[int] = mapped_column(BigInteger)
    seed: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    leased_at_s: Mapped[float] = mapped_column()
    envelope: Mapped[bytes] = mapped_column(LargeBinary, comment="signed Assignment")

    __table_args__ = (UniqueConstraint("round", "worker"), Index("ix_assignments_worker", "worker"))


class ContributionRow(Base):
    __tablename__ = "contributions"

    assignment_id: Mapped[bytes] = mapped_column(
        ForeignKey("assignments.assignment_id"), primary_key=True
    )
    round: Mapped[int] = mapped_column(ForeignKey("rounds.number"), index=True)
    worker: Mapped[str] = mapped_column(String(64))
    steps: Mapped[int] = mapped_column()
    tokens: Mapped[int] = mapped_column(BigInteger)
    commitment_root: Mapped[bytes] = mapped_column(LargeBinary, index=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, comment="SHA-256 of the signed payload")
    mean_loss: Mapped[float] = mapped_column()
    received_at_s: Mapped[float] = mapped_column()
    execution: Mapped[str] = mapped_column(String(16), default="cpu", comment="as it was signed")
    leaf_index: Mapped[int | None] = mapped_column(BigInteger, comment="its credit in the log")
    chance_ppm: Mapped[int | None] = mapped_column(comment="of an audit, once merged")
    credit: Mapped[str] = mapped_column(
        String(16), default="", index=True, comment="coordinator.audit.schema; empty: unmerged"
    )
    credited_at_s: Mapped[float | None] = mapped_column()
    reversed_by: Mapped[int | None] = mapped_column(BigInteger, comment="leaf of the verdict")
    envelope: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (Index("ix_contributions_worker", "worker", "round"),)


class RosterRow(Base):
    __tablename__ = "rosters"

    round: Mapped[int] = mapped_column(ForeignKey("rounds.number"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    inclusion: Mapped[bytes | None] = mapped_column(LargeBinary, comment="signed InclusionSet")


class ReducerReportRow(Base):
    __tablename__ = "reducer_reports"

    group_id: Mapped[bytes] = mapped_column(ForeignKey("rosters.group_id"), primary_key=True)
    reducer: Mapped[str] = mapped_column(String(64), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)


class ResultRow(Base):
    """A result chunk; its bytes are dropped once the round has ended, the signature is kept."""

    __tablename__ = "results"

    group_id: Mapped[bytes] = mapped_column(ForeignKey("rosters.group_id"), primary_key=True)
    chunk: Mapped[int] = mapped_column(primary_key=True)
    reducer: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[bytes] = mapped_column(LargeBinary)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    encoded: Mapped[bytes | None] = mapped_column(LargeBinary)


class ReportRow(Base):
    """What a member says its state is after a round; it never decides anything."""

    __tablename__ = "reports"

    round: Mapped[int] = mapped_column(ForeignKey("rounds.number"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, comment="another attempt, other bytes")
    worker: Mapped[str] = mapped_column(String(64), primary_key=True)
    state_digest: Mapped[bytes] = mapped_column(LargeBinary)
    agrees: Mapped[bool | None] = mapped_column(comment="unknown until the round has settled")
    envelope: Mapped[bytes] = mapped_column(LargeBinary)


class EvidenceRow(Base):
    """Two different signed records under one natural key."""

    __tablename__ = "evidence"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), comment="contribution, result, report ...")
    signer: Mapped[str] = mapped_column(String(64), index=True)
    first: Mapped[bytes] = mapped_column(LargeBinary, comment="envelope")
    second: Mapped[bytes] = mapped_column(LargeBinary, comment="envelope")
    seen_at_s: Mapped[float] = mapped_column()
