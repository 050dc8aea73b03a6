"""Audits: draws, replays, verdicts, trust, probation, blocks

Challenges of an earlier version decided nothing: their table is made anew.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_table("challenges")
    op.create_table(
        "auditors",
        sa.Column("auditor", sa.String(length=64), nullable=False, comment="PeerID"),
        sa.Column("execution", sa.String(length=16), nullable=False),
        sa.Column("last_seen_s", sa.Double(), nullable=False),
        sa.Column("jobs_done", sa.Integer(), nullable=False),
        sa.Column("outvoted", sa.Integer(), nullable=False, comment="two others agreed against it"),
        sa.Column("suspended_reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("auditor", name=op.f("pk_auditors")),
    )
    op.create_table(
        "audits",
        sa.Column("audit_id", sa.LargeBinary(), nullable=False),
        sa.Column("subject", sa.String(length=16), nullable=False, comment="training | probation"),
        sa.Column("assignment_id", sa.LargeBinary(), nullable=False),
        sa.Column(
            "appeal", sa.Integer(), nullable=False, comment="0: the first audit; then 1, 2 ..."
        ),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("group_id", sa.LargeBinary(), nullable=False, comment="of the reduce"),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("donor", sa.String(length=64), nullable=False),
        sa.Column("execution", sa.String(length=16), nullable=False, comment="of the contribution"),
        sa.Column("why", sa.String(length=32), nullable=False, comment="protocol.audit_policy.Why"),
        sa.Column("projection_seed", sa.LargeBinary(), nullable=False),
        sa.Column("draw", sa.LargeBinary(), nullable=False, comment="draws the chunks to open"),
        sa.Column("second", sa.Boolean(), nullable=False, comment="a second auditor was drawn"),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("chunks", sa.Text(), nullable=False, comment="JSON: to open, once drawn"),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False, comment="stable word"),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.Column("phase_since_s", sa.Double(), nullable=False),
        sa.Column("decided_at_s", sa.Double(), nullable=True),
        sa.Column("record", sa.LargeBinary(), nullable=True, comment="signed Verdict"),
        sa.Column(
            "leaf_index", sa.BigInteger(), nullable=True, comment="of the verdict in the log"
        ),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_audits")),
        sa.UniqueConstraint("assignment_id", "appeal", name=op.f("uq_audits_assignment_id")),
    )
    with op.batch_alter_table("audits", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_audits_assignment_id"), ["assignment_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_audits_donor"), ["donor"], unique=False)
        batch_op.create_index(batch_op.f("ix_audits_phase"), ["phase"], unique=False)
        batch_op.create_index(batch_op.f("ix_audits_round"), ["round"], unique=False)
        batch_op.create_index(batch_op.f("ix_audits_worker"), ["worker"], unique=False)

    op.create_table(
        "blocks",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False, comment="audit | organiser"),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_blocks")),
    )
    op.create_table(
        "challenges",
        sa.Column("challenge_id", sa.LargeBinary(), nullable=False),
        sa.Column(
            "audit_id",
            sa.LargeBinary(),
            nullable=False,
            comment="of an audit or of a reducer audit",
        ),
        sa.Column("kind", sa.Integer(), nullable=False, comment="service_pb2.ChallengeKind"),
        sa.Column("asked", sa.String(length=64), nullable=False, comment="who is to answer"),
        sa.Column("members", sa.Text(), nullable=False, comment="JSON: whose chunks"),
        sa.Column("group_id", sa.LargeBinary(), nullable=False),
        sa.Column("assignment_id", sa.LargeBinary(), nullable=False),
        sa.Column("first_chunk", sa.Integer(), nullable=False),
        sa.Column("end_chunk", sa.Integer(), nullable=False),
        sa.Column("chunks", sa.Text(), nullable=False, comment="JSON list of chunk numbers"),
        sa.Column("projection_seed", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("asked_at_s", sa.Double(), nullable=False),
        sa.Column("answer_digest", sa.LargeBinary(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True, comment="signed ChallengeAnswer"),
        sa.PrimaryKeyConstraint("challenge_id", name=op.f("pk_challenges")),
    )
    with op.batch_alter_table("challenges", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_challenges_asked"), ["asked"], unique=False)
        batch_op.create_index(batch_op.f("ix_challenges_audit_id"), ["audit_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_challenges_status"), ["status"], unique=False)

    op.create_table(
        "invites",
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("expires_at_s", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_invites")),
    )
    op.create_table(
        "openings",
        sa.Column("audit_id", sa.LargeBinary(), nullable=False),
        sa.Column("member", sa.String(length=64), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("encoded", sa.LargeBinary(), nullable=False),
        sa.Column(
            "proof", sa.LargeBinary(), nullable=False, comment="audit path, hashes concatenated"
        ),
        sa.PrimaryKeyConstraint("audit_id", "member", "chunk", name=op.f("pk_openings")),
    )
    op.create_table(
        "other_credits",
        sa.Column("leaf_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("work", sa.String(length=16), nullable=False, comment="reducing | probation"),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("donor", sa.String(length=64), nullable=False),
        sa.Column("microcredits", sa.BigInteger(), nullable=False),
        sa.Column("credit", sa.String(length=16), nullable=False, comment="as of a contribution"),
        sa.Column("reversed_by", sa.BigInteger(), nullable=True),
        sa.Column("credited_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("leaf_index", name=op.f("pk_other_credits")),
    )
    with op.batch_alter_table("other_credits", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_other_credits_credit"), ["credit"], unique=False)
        batch_op.create_index(batch_op.f("ix_other_credits_donor"), ["donor"], unique=False)
        batch_op.create_index(batch_op.f("ix_other_credits_round"), ["round"], unique=False)

    op.create_table(
        "reducer_audits",
        sa.Column("audit_id", sa.LargeBinary(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("group_id", sa.LargeBinary(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column(
            "ordinal", sa.Integer(), nullable=False, comment="0: as drawn; then further evidence"
        ),
        sa.Column("reducer", sa.String(length=64), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False, comment="opening | decided"),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.Column("decided_at_s", sa.Double(), nullable=True),
        sa.Column("record", sa.LargeBinary(), nullable=True, comment="signed Verdict"),
        sa.Column("leaf_index", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_reducer_audits")),
        sa.UniqueConstraint(
            "group_id", "chunk", "ordinal", name=op.f("uq_reducer_audits_group_id")
        ),
    )
    with op.batch_alter_table("reducer_audits", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_reducer_audits_phase"), ["phase"], unique=False)
        batch_op.create_index(batch_op.f("ix_reducer_audits_reducer"), ["reducer"], unique=False)
        batch_op.create_index(batch_op.f("ix_reducer_audits_round"), ["round"], unique=False)

    op.create_table(
        "suspensions",
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column(
            "withheld", sa.Integer(), nullable=False, comment="consecutive reduces not delivered"
        ),
        sa.Column(
            "until_round", sa.Integer(), nullable=False, comment="from this one on it is welcome"
        ),
        sa.Column(
            "lone_round",
            sa.Integer(),
            nullable=True,
            comment="when it alone last lacked a member that all others held",
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("worker", name=op.f("pk_suspensions")),
    )
    op.create_table(
        "tolerances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column(
            "document",
            sa.Text(),
            nullable=False,
            comment="JSON of protocol.tolerance.ToleranceTable",
        ),
        sa.Column("made_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tolerances")),
    )
    op.create_table(
        "trust",
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("execution", sa.String(length=16), nullable=False),
        sa.Column("passes", sa.Integer(), nullable=False),
        sa.Column("audits", sa.Integer(), nullable=False, comment="decided, whatever the verdict"),
        sa.Column(
            "watch",
            sa.String(length=32),
            nullable=False,
            comment="a Why that makes the next audit certain",
        ),
        sa.PrimaryKeyConstraint("worker", "execution", name=op.f("pk_trust")),
    )
    op.create_table(
        "audit_jobs",
        sa.Column("job_id", sa.LargeBinary(), nullable=False),
        sa.Column("audit_id", sa.LargeBinary(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="1, 2, 3 within the audit"),
        sa.Column(
            "avoid_executions",
            sa.Text(),
            nullable=False,
            comment="JSON: another class if there is one; appeals insist",
        ),
        sa.Column("insists", sa.Boolean(), nullable=False, comment="wait for another class"),
        sa.Column("avoid_auditors", sa.Text(), nullable=False, comment="JSON of PeerIDs"),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("auditor", sa.String(length=64), nullable=True),
        sa.Column("leased_until_s", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.Column("finished_at_s", sa.Double(), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=True, comment="signed AuditResult"),
        sa.Column("blob", sa.Text(), nullable=False, comment="its encoded update, until decided"),
        sa.ForeignKeyConstraint(
            ["audit_id"], ["audits.audit_id"], name=op.f("fk_audit_jobs_audit_id_audits")
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_audit_jobs")),
        sa.UniqueConstraint("audit_id", "ordinal", name=op.f("uq_audit_jobs_audit_id")),
    )
    with op.batch_alter_table("audit_jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_jobs_audit_id"), ["audit_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_jobs_status"), ["status"], unique=False)

    op.create_table(
        "probations",
        sa.Column("assignment_id", sa.LargeBinary(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column(
            "round", sa.Integer(), nullable=False, comment="whose base weights it starts from"
        ),
        sa.Column("settled_rounds", sa.Integer(), nullable=False, comment="of that state"),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("issued_at_s", sa.Double(), nullable=False),
        sa.Column("deadline_s", sa.Double(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False, comment="signed Assignment"),
        sa.Column("contribution", sa.LargeBinary(), nullable=True, comment="signed Contribution"),
        sa.Column("contribution_digest", sa.LargeBinary(), nullable=True),
        sa.Column("leaf_index", sa.BigInteger(), nullable=True, comment="of its credit"),
        sa.ForeignKeyConstraint(
            ["worker"], ["workers.worker"], name=op.f("fk_probations_worker_workers")
        ),
        sa.PrimaryKeyConstraint("assignment_id", name=op.f("pk_probations")),
    )
    with op.batch_alter_table("probations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_probations_status"), ["status"], unique=False)
        batch_op.create_index(batch_op.f("ix_probations_worker"), ["worker"], unique=False)

    op.create_table(
        "draws",
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("inclusion_digest", sa.LargeBinary(), nullable=False),
        sa.Column("group_id", sa.LargeBinary(), nullable=False),
        sa.Column("published", sa.Boolean(), nullable=False, comment="its leaf is in the log"),
        sa.ForeignKeyConstraint(["round"], ["rounds.number"], name=op.f("fk_draws_round_rounds")),
        sa.PrimaryKeyConstraint("round", name=op.f("pk_draws")),
    )
    op.create_table(
        "screenings",
        sa.Column("group_id", sa.LargeBinary(), nullable=False),
        sa.Column("reducer", sa.String(length=64), nullable=False),
        sa.Column("first_chunk", sa.Integer(), nullable=False),
        sa.Column("end_chunk", sa.Integer(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["rosters.group_id"], name=op.f("fk_screenings_group_id_rosters")
        ),
        sa.PrimaryKeyConstraint("group_id", "reducer", "first_chunk", name=op.f("pk_screenings")),
    )
    with op.batch_alter_table("contributions", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column(
                "execution",
                sa.String(length=16),
                nullable=False,
                server_default="cpu",
                comment="as it was signed",
            )
        )
        batch_op.add_column(
            sa.Column("chance_ppm", sa.Integer(), nullable=True, comment="of an audit, once merged")
        )
        batch_op.add_column(
            sa.Column(
                "credit",
                sa.String(length=16),
                nullable=False,
                server_default="",
                comment="coordinator.audit.schema; empty: unmerged",
            )
        )
        batch_op.add_column(sa.Column("credited_at_s", sa.Double(), nullable=True))
        batch_op.add_column(
            sa.Column("reversed_by", sa.BigInteger(), nullable=True, comment="leaf of the verdict")
        )
        batch_op.create_index(
            batch_op.f("ix_contributions_commitment_root"), ["commitment_root"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_contributions_credit"), ["credit"], unique=False)
        batch_op.create_index("ix_contributions_worker", ["worker", "round"], unique=False)

    with op.batch_alter_table("control", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column(
                "finality_at_s",
                sa.Double(),
                nullable=False,
                server_default="0",
                comment="last look at pending credit",
            )
        )

    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column(
                "enrolled_from",
                sa.String(length=64),
                nullable=False,
                server_default="",
                comment="keyed hash of the first address: for quotas",
            )
        )
        batch_op.add_column(
            sa.Column(
                "approved",
                sa.Boolean(),
                nullable=False,
                server_default="1",
                comment="false: the organiser has to",
            )
        )
        batch_op.create_index(
            batch_op.f("ix_workers_enrolled_from"), ["enrolled_from"], unique=False
        )
        batch_op.drop_column("blocked_reason")
