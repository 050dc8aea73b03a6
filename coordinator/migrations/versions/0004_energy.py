"""Energy that devices tell of themselves

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_energy",
        sa.Column("worker", sa.String(length=64), nullable=False, comment="PeerID of the device"),
        sa.Column("donor", sa.String(length=64), nullable=False, comment="PeerID it works for"),
        sa.Column(
            "milliwatt_hours",
            sa.BigInteger(),
            nullable=False,
            comment="of its verified units, as its own meter says",
        ),
        sa.Column("tokens", sa.BigInteger(), nullable=False, comment="of the same units"),
        sa.Column("told_at_s", sa.BigInteger(), nullable=False, comment="Unix seconds"),
        sa.PrimaryKeyConstraint("worker", name=op.f("pk_device_energy")),
    )
    op.create_index(op.f("ix_device_energy_donor"), "device_energy", ["donor"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_device_energy_donor"), table_name="device_energy")
    op.drop_table("device_energy")
