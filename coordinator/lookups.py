"""Rows that a batch of requests will look up, read with one query for each table.

Invariants:

* What is found here is what the session itself would find. The rows are the session's own, so they
  show what the transaction changed; what it adds or deletes meanwhile is asked for anew.
* Nothing outlives its transaction, in which nobody else writes (:mod:`coordinator.database`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import InstrumentedAttribute, Mapper, Session

Row = TypeVar("Row")

_READ = "lookups"  # in Session.info: column -> value -> rows


def fetch(session: Session, column: InstrumentedAttribute[Any], values: Collection[Any]) -> None:
    """Read all rows of a table that have one of ``values`` in ``column``."""
    if _READ not in session.info:
        session.info[_READ] = {}
        event.listen(session, "after_flush", _forget_changed)
    known = session.info[_READ].setdefault(column, {})
    wanted = [value for value in dict.fromkeys(values) if value not in known]
    known |= {value: [] for value in wanted}
    if wanted:
        for row in session.scalars(select(column.class_).where(column.in_(wanted))):
            known[getattr(row, column.key)].append(row)


def rows_by(session: Session, column: InstrumentedAttribute[Any], value: Any) -> list[Any]:
    """All rows with ``value`` in ``column``."""
    found = session.info.get(_READ, {}).get(column, {}).get(value)
    if found is not None:
        return list(found)
    return list(session.scalars(select(column.class_).where(column == value)))


def find(session: Session, kind: type[Row], value: Any) -> Row | None:
    """The row of a table whose primary key, of one column, is ``value``."""
    key = _primary_key(cast(Hashable, kind))
    found = session.info.get(_READ, {}).get(key, {}).get(value)
    if found is None:
        return session.get(kind, value)
    return found[0] if found else None


@cache
def _primary_key(kind: type[Any]) -> InstrumentedAttribute[Any]:
    mapper: Mapper[Any] = inspect(kind)
    attribute: InstrumentedAttribute[Any] = mapper.get_property_by_column(
        mapper.primary_key[0]
    ).class_attribute
    return attribute


def _forget_changed(session: Session, _: object) -> None:
    """What was added or deleted may change the answer: the next one asks the database."""
    for row in (*session.new, *session.deleted):
        for column, known in session.info[_READ].items():
            if isinstance(row, column.class_):
                known.pop(getattr(row, column.key), None)
