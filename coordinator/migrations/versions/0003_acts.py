"""Acts: the signed records behind pledges, donations, teams; profiles with more than a name

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "act",
        sa.Column(
            "leaf_index", sa.BigInteger(), autoincrement=False, nullable=False, comment="its leaf"
        ),
        sa.Column(
            "digest",
            sa.String(length=64),
            nullable=False,
            comment="SHA-256 of the signed payload, hex: its leaf names it",
        ),
        sa.Column("signer", sa.String(length=64), nullable=False, comment="PeerID"),
        sa.Column(
            "public", sa.Boolean(), nullable=False, comment="whether anybody may read the envelope"
        ),
        sa.Column("envelope", sa.LargeBinary(), nullable=False, comment="barnraise.v1.Envelope"),
        sa.PrimaryKeyConstraint("leaf_index", name=op.f("pk_act")),
        sa.UniqueConstraint("digest", name=op.f("uq_act_digest")),
    )
    op.create_index(op.f("ix_act_signer"), "act", ["signer"])
    op.create_table(
        "team_profile",
        sa.Column("team", sa.String(length=32), nullable=False, comment="id of the team, hex"),
        sa.Column(
            "display_name",
            sa.String(length=64),
            nullable=False,
            comment="as given; hostile until escaped",
        ),
        sa.Column("url", sa.String(length=256), nullable=False, comment="likewise; http or https"),
        sa.Column("about", sa.String(length=512), nullable=False, comment="likewise"),
        sa.Column("updated_at_s", sa.BigInteger(), nullable=False, comment="Unix seconds"),
        sa.PrimaryKeyConstraint("team", name=op.f("pk_team_profile")),
    )
    op.create_table(
        "erased_profile",
        sa.Column(
            "subject",
            sa.String(length=64),
            nullable=False,
            comment="PeerID of a donor, or id of a team",
        ),
        sa.Column("erased_at_s", sa.BigInteger(), nullable=False, comment="Unix seconds"),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_erased_profile")),
    )
    with op.batch_alter_table("profile") as profile:
        profile.add_column(
            sa.Column(
                "url",
                sa.String(length=256),
                server_default="",
                nullable=False,
                comment="likewise; http or https",
            )
        )
        profile.add_column(
            sa.Column(
                "about",
                sa.String(length=512),
                server_default="",
                nullable=False,
                comment="likewise",
            )
        )
        profile.add_column(
            sa.Column(
                "show_devices",
                sa.Boolean(),
                server_default=sa.false(),
                nullable=False,
                comment="on the donor's page",
            )
        )


def downgrade() -> None:
    with op.batch_alter_table("profile") as profile:
        for column in ("show_devices", "about", "url"):
            profile.drop_column(column)
    for table in ("erased_profile", "team_profile", "act"):
        op.drop_table(table)
