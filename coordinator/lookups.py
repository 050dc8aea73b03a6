"""Rows that a batch of requests will look up, read with one query for each table.

Invariants:

* What is found here is what the session itself would find. The rows are the session's own, so they
  show what the transaction changed and added. Nothing that is looked up here is deleted in it.
* Nothing outlives its transaction, in which nobody else writes (:mod:`coordinator.database`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import InstrumentedAttribute, Mapper, Session

Row = TypeVar("Row")

_READ = "lookups"  # in Session.info: (class, attribute) -> value -> rows


def fetch(session: Session, column: InstrumentedAttribute[Any], values: Collection[Any]) -> None:
    """Read all rows of a table that have one of ``values`` in ``column``."""
    if _READ not in session.info:
        session.info[_READ] = {}
        event.listen(session, "after_attach", _take_note)
    known = session.info[_READ].setdefault((column.class_, column.key), {})
    wanted = [value for value in dict.fromkeys(values) if value not in known]
    if not wanted:
        return
    rows = session.scalars(select(column.class_).where(column.in_(wanted))).all()
    known |= {value: [] for value in wanted}
    for row in rows:
        known[getattr(row, column.key)].append(row)


def rows_by(session: Session, column: InstrumentedAttribute[Any], value: Any) -> list[Any]:
    """All rows with ``value`` in ``column``."""
    found = _fetched(session, column, value)
    if found is not None:
        return list(found)
    return list(session.scalars(select(column.class_).where(column == value)))


def find(session: Session, kind: type[Row], value: Any) -> Row | None:
    """The row of a table whose primary key, of one column, is ``value``."""
    found = _fetched(session, _primary_key(cast(Hashable, kind)), value)
    if found is None:
        return session.get(kind, value)
    return found[0] if found else None


def _fetched(session: Session, column: InstrumentedAttribute[Any], value: Any) -> list[Any] | None:
    read = session.info.get(_READ, {})
    found: list[Any] | None = read.get((column.class_, column.key), {}).get(value)
    return found


@cache
def _primary_key(kind: type[Any]) -> InstrumentedAttribute[Any]:
    mapper: Mapper[Any] = inspect(kind)
    attribute: InstrumentedAttribute[Any] = mapper.get_property_by_column(
        mapper.primary_key[0]
    ).class_attribute
    return attribute


def _take_note(session: Session, row: object) -> None:
    """A row that is added is found from then on."""
    for (kind, key), known in session.info[_READ].items():
        if isinstance(row, kind):
            rows = known.get(getattr(row, key))
            if rows is not None and row not in rows:
                rows.append(row)
