"""Ledger and coordinator tables

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "control",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.LargeBinary(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("finished", sa.Boolean(), nullable=False),
        sa.Column("alive_at_s", sa.Double(), nullable=False, comment="to know the downtime"),
        sa.CheckConstraint("id = 1", name=op.f("ck_control_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_control")),
    )
    op.create_table(
        "delegations",
        sa.Column(
            "digest", sa.String(length=64), nullable=False, comment="SHA-256 of the envelope, hex"
        ),
        sa.Column(
            "revocation",
            sa.Boolean(),
            nullable=False,
            comment="true: a Revocation, false: a Delegation",
        ),
        sa.Column("envelope", sa.LargeBinary(), nullable=False, comment="barnraise.v1.Envelope"),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_delegations")),
    )
    op.create_table(
        "evidence",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column(
            "kind", sa.String(length=32), nullable=False, comment="contribution, result, report ..."
        ),
        sa.Column("signer", sa.String(length=64), nullable=False),
        sa.Column("first", sa.LargeBinary(), nullable=False, comment="envelope"),
        sa.Column("second", sa.LargeBinary(), nullable=False, comment="envelope"),
        sa.Column("seen_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evidence")),
    )
    with op.batch_alter_table("evidence", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_evidence_signer"), ["signer"], unique=False)

    op.create_table(
        "intervals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("stop", sa.BigInteger(), nullable=False),
        sa.Column("previous_stop", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("assignment_id", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "(state = 'leased') = (assignment_id IS NOT NULL)",
            name=op.f("ck_intervals_leased_to_one"),
        ),
        sa.CheckConstraint(
            "state IN ('free', 'leased', 'consumed')", name=op.f("ck_intervals_known_state")
        ),
        sa.CheckConstraint(
            "(start = 0 AND previous_stop IS NULL) OR (start > 0 AND previous_stop IS NOT NULL AND previous_stop = start)",
            name=op.f("ck_intervals_chained"),
        ),
        sa.CheckConstraint("start < stop", name=op.f("ck_intervals_not_empty")),
        sa.ForeignKeyConstraint(
            ["epoch", "previous_stop"],
            ["intervals.epoch", "intervals.stop"],
            name="fk_intervals_chain",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_intervals")),
        sa.UniqueConstraint("epoch", "start", name="uq_intervals_start"),
        sa.UniqueConstraint("epoch", "stop", name="uq_intervals_stop"),
    )
    with op.batch_alter_table("intervals", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_intervals_assignment_id"), ["assignment_id"], unique=False
        )
        batch_op.create_index("ix_intervals_chain", ["epoch", "previous_stop"], unique=False)

    op.create_table(
        "log_head",
        sa.Column(
            "tree_size",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="leaves under the head",
        ),
        sa.Column("checkpoint", sa.Text(), nullable=False, comment="C2SP tlog-checkpoint, signed"),
        sa.Column("signed_at_s", sa.BigInteger(), nullable=False, comment="Unix seconds"),
        sa.PrimaryKeyConstraint("tree_size", name=op.f("pk_log_head")),
    )
    op.create_table(
        "log_leaf",
        sa.Column(
            "leaf_index",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="0-based, without gaps",
        ),
        sa.Column("kind", sa.String(length=16), nullable=False, comment="kind of leaf"),
        sa.Column(
            "data", sa.LargeBinary(), nullable=False, comment="RFC 8785 JSON: what is hashed"
        ),
        sa.Column("round", sa.BigInteger(), nullable=True, comment="round the leaf speaks of"),
        sa.Column(
            "donor", sa.String(length=64), nullable=True, comment="PeerID of the donor it speaks of"
        ),
        sa.Column(
            "assignment_id", sa.String(length=32), nullable=True, comment="hex, of training credit"
        ),
        sa.PrimaryKeyConstraint("leaf_index", name=op.f("pk_log_leaf")),
    )
    with op.batch_alter_table("log_leaf", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_log_leaf_assignment_id"), ["assignment_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_log_leaf_donor"), ["donor"], unique=False)
        batch_op.create_index(batch_op.f("ix_log_leaf_kind"), ["kind"], unique=False)
        batch_op.create_index(batch_op.f("ix_log_leaf_round"), ["round"], unique=False)

    op.create_table(
        "log_node",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False, comment="0: leaves"),
        sa.Column(
            "position",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="first leaf >> level",
        ),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False, comment="SHA-256"),
        sa.PrimaryKeyConstraint("level", "position", name=op.f("pk_log_node")),
    )
    op.create_table(
        "profile",
        sa.Column(
            "donor", sa.String(length=64), nullable=False, comment="PeerID of the donor's key"
        ),
        sa.Column(
            "display_name",
            sa.String(length=64),
            nullable=False,
            comment="as given; hostile until escaped",
        ),
        sa.Column("updated_at_s", sa.BigInteger(), nullable=False, comment="Unix seconds"),
        sa.PrimaryKeyConstraint("donor", name=op.f("pk_profile")),
    )
    op.create_table(
        "run_page",
        sa.Column("run_id", sa.String(length=64), nullable=False, comment="hex"),
        sa.Column("join_link", sa.Text(), nullable=False, comment="barnraise://..."),
        sa.Column("notes", sa.Text(), nullable=False, comment="organiser's public words"),
        sa.Column("updated_at_s", sa.BigInteger(), nullable=False, comment="Unix seconds"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_page")),
    )
    op.create_table(
        "states",
        sa.Column("settled_rounds", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("weights_root", sa.LargeBinary(), nullable=False),
        sa.Column("momentum_root", sa.LargeBinary(), nullable=False),
        sa.Column("merged_tokens", sa.BigInteger(), nullable=False),
        sa.Column("weights_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("weights_bytes", sa.BigInteger(), nullable=False),
        sa.Column("momentum_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("momentum_bytes", sa.BigInteger(), nullable=False),
        sa.Column("validation_loss", sa.Double(), nullable=True, comment="mean nats per token"),
        sa.Column("evaluated", sa.Boolean(), nullable=False, comment="false: the loss is to come"),
        sa.Column("saved_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("settled_rounds", name=op.f("pk_states")),
        sa.UniqueConstraint("digest", name=op.f("uq_states_digest")),
    )
    op.create_table(
        "workers",
        sa.Column("worker", sa.String(length=64), nullable=False, comment="PeerID"),
        sa.Column("donor", sa.String(length=64), nullable=False),
        sa.Column("device_class", sa.String(length=16), nullable=False),
        sa.Column("device_name", sa.String(length=128), nullable=False),
        sa.Column("display_name", sa.String(length=64), nullable=False, comment="erasable profile"),
        sa.Column("client_version", sa.String(length=64), nullable=False),
        sa.Column("anchor", sa.Boolean(), nullable=False),
        sa.Column("client_mode", sa.Boolean(), nullable=False, comment="no inbound port"),
        sa.Column("multiaddrs", sa.Text(), nullable=False, comment="JSON list of strings"),
        sa.Column("blocked_reason", sa.Text(), nullable=True),
        sa.Column("enrolled_at_s", sa.Double(), nullable=False),
        sa.Column("admission", sa.LargeBinary(), nullable=True, comment="signed Admission"),
        sa.Column("last_seen_s", sa.Double(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False, comment="WorkerPhase as last reported"),
        sa.Column("phase_reason", sa.Text(), nullable=False),
        sa.Column("steps_done", sa.BigInteger(), nullable=False),
        sa.Column("reported_tokens_per_s", sa.Double(), nullable=False, comment="a hint"),
        sa.Column(
            "measured_tokens_per_s", sa.Double(), nullable=False, comment="accepted work only"
        ),
        sa.PrimaryKeyConstraint("worker", name=op.f("pk_workers")),
    )
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_workers_donor"), ["donor"], unique=False)

    op.create_table(
        "rounds",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("machine", sa.Text(), nullable=False, comment="coordinator.round_state.dump"),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column(
            "settled_rounds", sa.Integer(), nullable=False, comment="the state it starts from"
        ),
        sa.Column("head", sa.LargeBinary(), nullable=False, comment="signed RunHead"),
        sa.Column("opened_at_s", sa.Double(), nullable=False),
        sa.Column("ended_at_s", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("members", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("roster_digest", sa.LargeBinary(), nullable=True),
        sa.Column("result_digest", sa.LargeBinary(), nullable=True),
        sa.Column("logged", sa.Boolean(), nullable=False, comment="its leaf is in the log"),
        sa.ForeignKeyConstraint(
            ["settled_rounds"],
            ["states.settled_rounds"],
            name=op.f("fk_rounds_settled_rounds_states"),
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_rounds")),
    )
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rounds_phase"), ["phase"], unique=False)

    op.create_table(
        "assignments",
        sa.Column("assignment_id", sa.LargeBinary(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("start_batch", sa.BigInteger(), nullable=False),
        sa.Column("stop_batch", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("leased_at_s", sa.Double(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False, comment="signed Assignment"),
        sa.ForeignKeyConstraint(
            ["round"], ["rounds.number"], name=op.f("fk_assignments_round_rounds")
        ),
        sa.ForeignKeyConstraint(
            ["worker"], ["workers.worker"], name=op.f("fk_assignments_worker_workers")
        ),
        sa.PrimaryKeyConstraint("assignment_id", name=op.f("pk_assignments")),
        sa.UniqueConstraint("round", "worker", name=op.f("uq_assignments_round")),
    )
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.create_index("ix_assignments_worker", ["worker"], unique=False)

    op.create_table(
        "reports",
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="another attempt, other bytes"),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("state_digest", sa.LargeBinary(), nullable=False),
        sa.Column(
            "agrees", sa.Boolean(), nullable=True, comment="unknown until the round has settled"
        ),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["round"], ["rounds.number"], name=op.f("fk_reports_round_rounds")),
        sa.PrimaryKeyConstraint("round", "attempt", "worker", name=op.f("pk_reports")),
    )
    op.create_table(
        "rosters",
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("group_id", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("inclusion", sa.LargeBinary(), nullable=True, comment="signed InclusionSet"),
        sa.ForeignKeyConstraint(["round"], ["rounds.number"], name=op.f("fk_rosters_round_rounds")),
        sa.PrimaryKeyConstraint("round", "attempt", name=op.f("pk_rosters")),
        sa.UniqueConstraint("group_id", name=op.f("uq_rosters_group_id")),
    )
    op.create_table(
        "contributions",
        sa.Column("assignment_id", sa.LargeBinary(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("commitment_root", sa.LargeBinary(), nullable=False),
        sa.Column(
            "digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the signed payload"
        ),
        sa.Column("mean_loss", sa.Double(), nullable=False),
        sa.Column("received_at_s", sa.Double(), nullable=False),
        sa.Column("leaf_index", sa.BigInteger(), nullable=True, comment="its credit in the log"),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assignment_id"],
            ["assignments.assignment_id"],
            name=op.f("fk_contributions_assignment_id_assignments"),
        ),
        sa.ForeignKeyConstraint(
            ["round"], ["rounds.number"], name=op.f("fk_contributions_round_rounds")
        ),
        sa.PrimaryKeyConstraint("assignment_id", name=op.f("pk_contributions")),
    )
    with op.batch_alter_table("contributions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_contributions_round"), ["round"], unique=False)

    op.create_table(
        "reducer_reports",
        sa.Column("group_id", sa.LargeBinary(), nullable=False),
        sa.Column("reducer", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["rosters.group_id"], name=op.f("fk_reducer_reports_group_id_rosters")
        ),
        sa.PrimaryKeyConstraint("group_id", "reducer", "revision", name=op.f("pk_reducer_reports")),
    )
    op.create_table(
        "results",
        sa.Column("group_id", sa.LargeBinary(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("reducer", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("encoded", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["group_id"], ["rosters.group_id"], name=op.f("fk_results_group_id_rosters")
        ),
        sa.PrimaryKeyConstraint("group_id", "chunk", name=op.f("pk_results")),
    )
    op.create_table(
        "challenges",
        sa.Column("challenge_id", sa.LargeBinary(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("assignment_id", sa.LargeBinary(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("chunks", sa.Text(), nullable=False, comment="JSON list of chunk numbers"),
        sa.Column("valid", sa.Boolean(), nullable=True, comment="null until answered"),
        sa.Column("answer_digest", sa.LargeBinary(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True, comment="signed ChallengeAnswer"),
        sa.Column("drawn_at_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assignment_id"],
            ["contributions.assignment_id"],
            name=op.f("fk_challenges_assignment_id_contributions"),
        ),
        sa.ForeignKeyConstraint(
            ["round"], ["rounds.number"], name=op.f("fk_challenges_round_rounds")
        ),
        sa.PrimaryKeyConstraint("challenge_id", name=op.f("pk_challenges")),
    )
    with op.batch_alter_table("challenges", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_challenges_worker"), ["worker"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("challenges", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_challenges_worker"))

    op.drop_table("challenges")
    op.drop_table("results")
    op.drop_table("reducer_reports")
    with op.batch_alter_table("contributions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_contributions_round"))

    op.drop_table("contributions")
    op.drop_table("rosters")
    op.drop_table("reports")
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.drop_index("ix_assignments_worker")

    op.drop_table("assignments")
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rounds_phase"))

    op.drop_table("rounds")
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_workers_donor"))

    op.drop_table("workers")
    op.drop_table("states")
    op.drop_table("run_page")
    op.drop_table("profile")
    op.drop_table("log_node")
    with op.batch_alter_table("log_leaf", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_log_leaf_round"))
        batch_op.drop_index(batch_op.f("ix_log_leaf_kind"))
        batch_op.drop_index(batch_op.f("ix_log_leaf_donor"))
        batch_op.drop_index(batch_op.f("ix_log_leaf_assignment_id"))

    op.drop_table("log_leaf")
    op.drop_table("log_head")
    with op.batch_alter_table("intervals", schema=None) as batch_op:
        batch_op.drop_index("ix_intervals_chain")
        batch_op.drop_index(batch_op.f("ix_intervals_assignment_id"))

    op.drop_table("intervals")
    with op.batch_alter_table("evidence", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_evidence_signer"))

    op.drop_table("evidence")
    op.drop_table("delegations")
    op.drop_table("control")
