"""An index of the free intervals

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_intervals_free",
        "intervals",
        ["epoch", "start"],
        unique=False,
        sqlite_where=sa.text("state = 'free'"),
        postgresql_where=sa.text("state = 'free'"),
    )


def downgrade() -> None:
    op.drop_index("ix_intervals_free", table_name="intervals")
