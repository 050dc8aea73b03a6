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
    op.add_column(
        "rounds",
        sa.Column(
            "settled_after",
            sa.Integer(),
            nullable=True,
            comment="settled rounds of the run when it ended, itself included",
        ),
    )
    op.execute(
        "UPDATE rounds SET settled_after = settled_rounds + "
        "CASE WHEN phase = 'SETTLED' THEN 1 ELSE 0 END WHERE ended_at_s IS NOT NULL"
    )


def downgrade() -> None:
    op.drop_column("rounds", "settled_after")
