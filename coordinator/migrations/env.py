"""Alembic environment: runs inside ``Database.upgrade``, on its connection."""

from __future__ import annotations

from alembic import context

from coordinator import schema  # noqa: F401  (registers the tables)
from coordinator.audit import schema as audit_schema  # noqa: F401
from ledger.schema import Base

with context.config.attributes["connection"].begin() as transaction:
    context.configure(
        connection=transaction.connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_type=True,
    )
    context.run_migrations()
