"""The leaderboard's one source of numbers: the fold of the leaves under the newest signed head.

Invariants:

* Nothing is shown that the head on the page does not sign: leaves beyond it are not folded yet.
* The database is only read, and is told to refuse anything else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from ledger.fold import Board
from ledger.log import latest_head, read_leaves
from ledger.read_only import read_only_engine
from ledger.schema import RunPage
from protocol.identity import PeerId
from protocol.notes import Checkpoint, read_checkpoint

_SERVICE_UNAVAILABLE = 503


@dataclass(frozen=True)
class Reading:
    """What a page is made from. Valid only inside :meth:`Reader.read`."""

    session: Session
    board: Board
    note: str  # the signed head
    head: Checkpoint
    ranking: tuple[PeerId, ...]  # by credit, ties by key: the same order on every page
    ranks: dict[PeerId, int]  # equal credit, equal rank

    @property
    def run_page(self) -> RunPage | None:
        return self.session.get(RunPage, self.board.run_id)


class Reader:
    """Folds what is new on every read; safe to share between threads."""

    def __init__(self, database_url: str) -> None:
        self._engine: Engine = read_only_engine(database_url)
        self._lock = threading.Lock()
        self._board = Board()
        self._ranking: tuple[PeerId, ...] = ()
        self._ranks: dict[PeerId, int] = {}

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """A consistent view; keep it short, for readers take turns.

        Raises:
            HTTPException: 503 before the first head is signed.
            ProtocolError: the log is damaged.
        """
        with self._lock, Session(self._engine) as session:
            row = latest_head(session)
            if row is None or row.tree_size == 0:
                raise HTTPException(
                    _SERVICE_UNAVAILABLE, "The record of this run has not begun yet."
                )
            head = read_checkpoint(row.checkpoint)
            self._catch_up(session, head.size)
            yield Reading(session, self._board, row.checkpoint, head, self._ranking, self._ranks)

    @contextmanager
    def session(self) -> Iterator[tuple[Session, str]]:
        """A session and the signed head, without the fold: for tiles and proofs."""
        with Session(self._engine) as session:
            row = latest_head(session)
            if row is None:
                raise HTTPException(_SERVICE_UNAVAILABLE, "No head of this log was signed yet.")
            yield session, row.checkpoint

    def _catch_up(self, session: Session, size: int) -> None:
        if size < self._board.size:
            self._board = Board()  # another database took the place of the one we knew
        if size == self._board.size:
            return
        for data in read_leaves(session, self._board.size, size):
            self._board.apply(data)
        donors = self._board.donors
        self._ranking = tuple(
            sorted(donors, key=lambda key: (-donors[key].tally.total_microcredits, key))
        )
        self._ranks = {}
        last_credit, last_rank = -1, 0
        for place, key in enumerate(self._ranking, start=1):
            credit = donors[key].tally.total_microcredits
            last_rank = last_rank if credit == last_credit else place
            self._ranks[key], last_credit = last_rank, credit
