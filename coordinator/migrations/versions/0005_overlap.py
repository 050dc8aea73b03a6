"""The state that a round led to, which with an overlap is not the one after its own

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rounds") as rounds:
        rounds.add_column(
            sa.Column(
                "settled_after",
                sa.Integer(),
                nullable=True,
                comment="settled rounds of the run when it ended, itself included",
            )
        )
        rounds.alter_column(
            "settled_rounds",
            existing_type=sa.Integer(),
            existing_nullable=False,
            existing_comment="the state it starts from",
            comment="the state it is trained from",
        )
    op.execute(
        "UPDATE rounds SET settled_after = settled_rounds + "
        "CASE WHEN phase = 'SETTLED' THEN 1 ELSE 0 END WHERE ended_at_s IS NOT NULL"
    )


def downgrade() -> None:
    with op.batch_alter_table("rounds") as rounds:
        rounds.alter_column(
            "settled_rounds",
            existing_type=sa.Integer(),
            existing_nullable=False,
            existing_comment="the state it is trained from",
            comment="the state it starts from",
        )
        rounds.drop_column("settled_after")
