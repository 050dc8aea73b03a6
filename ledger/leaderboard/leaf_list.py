"""Pages of leaves of one kind, donor or round, newest first, without sorting a whole log.

The tables have an index for each of these columns, and none that also has the order. So a page is
first looked for among the newest leaves, which the primary key has in order: a kind that is common
is there. One that is not is rare, and the index on its column gives few rows to sort.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ledger.schema import LogLeaf

PER_PAGE = 50
_WINDOW = 4000  # leaves; a kind with fewer than a page among so many is rare


@dataclass(frozen=True)
class Wanted:
    """Which leaves to list; those for which all that is given holds."""

    kind: str = ""
    donor: str = ""
    round: int | None = None

    def query(self) -> str:
        """For links to further pages of the list."""
        said = {"kind": self.kind, "donor": self.donor, "round": self.round}
        return "".join(
            f"&{name}={value}" for name, value in said.items() if value not in ("", None)
        )

    def conditions(self, *, by_index: bool) -> list[ColumnElement[bool]]:
        """What must hold.

        Args:
            by_index: let the database use the index of the column that says most; else of none.
        """
        said: list[tuple[ColumnElement[bool], ColumnElement[bool]]] = []
        if self.donor:
            plain = func.coalesce(LogLeaf.donor, "") == self.donor
            said.append((LogLeaf.donor == self.donor, plain))
        if self.round is not None:
            plain = func.coalesce(LogLeaf.round, -1) == self.round
            said.append((LogLeaf.round == self.round, plain))
        if self.kind:
            said.append((LogLeaf.kind == self.kind, func.coalesce(LogLeaf.kind, "") == self.kind))
        return [
            indexed if by_index and not at else plain for at, (indexed, plain) in enumerate(said)
        ]


@dataclass(frozen=True)
class Listed:
    """One page, and where the next ones begin, if anywhere."""

    leaves: list[tuple[int, bytes]]  # index and bytes, newest first
    newer: int | None  # for ``after``
    older: int | None  # for ``before``


def listed(
    session: Session, wanted: Wanted, *, size: int, before: int | None, after: int | None
) -> Listed:
    """A page of leaves under a head of ``size``: the first ones after a leaf, or before one."""
    if after is not None:
        found = _look(session, wanted, after + 1, size, newest_first=False)
        leaves, more = found[:PER_PAGE][::-1], len(found) > PER_PAGE
        newer, older = more, True
    else:
        end = size if before is None else min(size, before)
        found = _look(session, wanted, 0, end, newest_first=True)
        leaves, more = found[:PER_PAGE], len(found) > PER_PAGE
        newer, older = end < size, more
    if not leaves:
        return Listed([], None, None)
    return Listed(leaves, leaves[0][0] if newer else None, leaves[-1][0] if older else None)


def is_any(session: Session, wanted: Wanted, size: int) -> bool:
    """Whether there is such a leaf under a head of ``size``."""
    conditions = wanted.conditions(by_index=True)
    found = select(LogLeaf.leaf_index).where(*conditions, LogLeaf.leaf_index < size).limit(1)
    return session.scalar(found) is not None


def _look(
    session: Session, wanted: Wanted, start: int, end: int, *, newest_first: bool
) -> list[tuple[int, bytes]]:
    """One more than a page of the leaves in [start, end), if there are as many."""
    near = (max(start, end - _WINDOW), end) if newest_first else (start, min(end, start + _WINDOW))
    for by_index, (first, last) in ((False, near), (True, (start, end))):
        found = session.execute(
            select(LogLeaf.leaf_index, LogLeaf.data)
            .where(LogLeaf.leaf_index >= first, LogLeaf.leaf_index < last)
            .where(*wanted.conditions(by_index=by_index))
            .order_by(LogLeaf.leaf_index.desc() if newest_first else LogLeaf.leaf_index)
            .limit(PER_PAGE + 1)
        ).all()
        if len(found) > PER_PAGE or (first, last) == (start, end):
            break
    return [(index, data) for index, data in found]
