"""The leaderboard's one source of numbers: the fold of the leaves under the newest signed head.

One thread folds what is new and makes a :class:`~ledger.leaderboard.snapshot.Snapshot`; requests
read the newest one, and fold nothing.

Invariants:

* Nothing is shown that the head on the page does not sign: leaves beyond it are not folded yet.
* The fold and the snapshot change together, under one lock: who holds it sees both at one head.
* A record of up to ``SMALL_LEAVES`` leaves is fresh with every request, which waits for the fold.
  A larger one is shown as it was a moment ago while the thread folds what is new; requests wait
  only for the first snapshot.
* The database is only read, and is told to refuse anything else.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from ledger.fold import Board
from ledger.leaderboard.names import Names, NamesReader
from ledger.leaderboard.snapshot import Snapshot
from ledger.leaderboard.standings import Standings
from ledger.leaderboard.watch import Watch
from ledger.log import latest_head, read_leaves
from ledger.read_only import read_only_engine
from ledger.schema import LogHead
from protocol.errors import ProtocolError, TransientError
from protocol.notes import Checkpoint, read_checkpoint

logger = structlog.get_logger()

SMALL_LEAVES = 20_000
_MOST_WAIT_S = 20.0
_LOOK_EVERY_S = 1.0  # when nobody asks, too: an erased name must not wait for a visitor
_SHARE = 10  # of a large record's time, one part in so many may go into following it
_MOST_PAUSE_S = 3.0  # but an erased name is gone within seconds
_PIECE_S, _REST_S = 0.002, 0.006
_SPARE_GROWTH = 1.2
_SERVICE_UNAVAILABLE = 503
_NOT_BEGUN = "The record of this run has not begun yet."


@dataclass(frozen=True)
class Reading:
    """What a page is made from. Valid only inside :meth:`Reader.read`."""

    session: Session
    board: Board
    snapshot: Snapshot

    @property
    def note(self) -> str:
        """The signed head."""
        return self.snapshot.note

    @property
    def head(self) -> Checkpoint:
        return self.snapshot.head

    @property
    def names(self) -> Names:
        return self.snapshot.names


class _Pace:
    """Lets requests go first: the thread that follows a large record rests between pieces."""

    def __init__(self) -> None:
        self.rests = False
        self._since_s = time.monotonic()

    def __call__(self) -> None:
        if self.rests and time.monotonic() - self._since_s > _PIECE_S:
            time.sleep(_REST_S)
            self._since_s = time.monotonic()


class Reader:
    """Owns the thread that folds; safe to share between threads."""

    def __init__(self, database_url: str) -> None:
        self._engine: Engine = read_only_engine(database_url)
        self._watch = Watch(self._engine)
        self._fold = threading.Lock()  # held while the fold changes, and while it is read
        self._pace = _Pace()
        self._standings = Standings(Board(), self._pace)
        self._names = NamesReader()
        self._serials = itertools.count(1)
        self._state = threading.Condition()  # guards what follows
        self._thread: threading.Thread | None = None
        self._closing = False
        self._asked = self._answered = 0
        self._seen: object = object()
        self._snapshot: Snapshot | None = None
        self._failure: Exception | None = None
        self._spared = 1  # leaves whose fold the garbage collector leaves alone

    def start(self) -> None:
        """Begin to fold; the first request would."""
        with self._state:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="fold", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop the thread, after the piece that it is folding, and release the connections."""
        with self._state:
            self._closing = True
            self._state.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._watch.close()
        self._engine.dispose()

    def snapshot(self) -> Snapshot:
        """The newest snapshot.

        Raises:
            HTTPException: 503 before the first head is signed, or before it is folded.
            ProtocolError: the log is damaged.
        """
        self.start()
        token = self._token()
        with self._state:
            if token != self._seen or self._snapshot is None:
                self._asked += 1
                mine = self._asked
                self._state.notify_all()
                if self._snapshot is None or self._snapshot.size <= SMALL_LEAVES:
                    self._state.wait_for(
                        lambda: self._answered >= mine or self._closing, _MOST_WAIT_S
                    )
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            if self._snapshot is None:
                raise HTTPException(
                    _SERVICE_UNAVAILABLE,
                    "The record is being read for the first time; try again in a minute.",
                    headers={"Retry-After": "30"},
                )
            return self._snapshot

    def serial(self) -> int | None:
        """Of the newest snapshot, or None while there is none: then a page says why."""
        try:
            return self.snapshot().serial
        except (HTTPException, ProtocolError):
            return None

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """A consistent view of the whole fold; keep it short, for readers take turns.

        Raises:
            HTTPException, ProtocolError: as :meth:`snapshot`.
        """
        self.snapshot()
        if not self._fold.acquire(timeout=_MOST_WAIT_S):
            raise HTTPException(
                _SERVICE_UNAVAILABLE,
                "The record grew much just now and is being read; try again in a minute.",
                headers={"Retry-After": "30"},
            )
        try:
            snapshot = self._snapshot
            if snapshot is None or snapshot.size != self._standings.board.size:
                raise self._failure or TransientError("the record is being read; try again")
            with Session(self._engine) as session:
                yield Reading(session, self._standings.board, snapshot)
        finally:
            self._fold.release()

    @contextmanager
    def session(self) -> Iterator[tuple[Session, str]]:
        """A session and the signed head, without the fold: for tiles and proofs."""
        with Session(self._engine) as session:
            row = latest_head(session)
            if row is None:
                raise HTTPException(_SERVICE_UNAVAILABLE, "No head of this log was signed yet.")
            yield session, row.checkpoint

    def _token(self) -> object:
        try:
            return self._watch.token()
        except SQLAlchemyError:
            return object()  # the thread will find out what is wrong, and say so

    def _run(self) -> None:
        pause_s = 0.0
        while self._wait(pause_s):
            started = time.monotonic()
            with self._state:
                asked, seen, failed = self._asked, self._seen, self._failure is not None
            token = self._token()
            failure = self._refresh() if failed or token != seen else None
            with self._state:
                self._failure, self._seen, self._answered = failure, token, asked
                if failure is not None:
                    self._snapshot = None
                self._state.notify_all()
            small = self._standings.board.size <= SMALL_LEAVES
            if not small:
                self._spare_collector()
            spent_s = time.monotonic() - started
            pause_s = 0.0 if small else min(_MOST_PAUSE_S, (_SHARE - 1) * spent_s)

    def _wait(self, pause_s: float) -> bool:
        """Wait until there is something to look for; False: until :meth:`close`."""
        with self._state:
            self._state.wait_for(lambda: self._closing, pause_s)
            self._state.wait_for(
                lambda: self._closing or self._asked > self._answered, _LOOK_EVERY_S
            )
            return not self._closing

    def _spare_collector(self) -> None:
        """Keep a large fold from the garbage collector: a look at all of it stops every request."""
        size = self._standings.board.size
        if size >= self._spared * _SPARE_GROWTH:
            gc.freeze()
            self._spared = size

    def _refresh(self) -> Exception | None:
        """Fold what is new; gives what went wrong."""
        try:
            with Session(self._engine) as session:
                row = latest_head(session)
                if row is None or row.tree_size == 0:
                    return HTTPException(_SERVICE_UNAVAILABLE, _NOT_BEGUN)
                self._follow(session, row)
        except ProtocolError as error:
            self._forget()
            return error
        except SQLAlchemyError as error:
            logger.warning("record_unreadable", error=str(error))
            return TransientError(f"its database cannot be read: {type(error).__name__}")
        except Exception as error:  # our bug: whoever asks must see it, and the thread goes on
            logger.exception("fold_failed")
            self._forget()
            return error
        return None

    def _follow(self, session: Session, row: LogHead) -> None:
        head, known = read_checkpoint(row.checkpoint), self._snapshot
        size = self._standings.board.size
        if head.size < size or (known and head.size == size and head.root != known.head.root):
            self._forget()  # another record took the place of the one we knew
        self._pace.rests = self._standings.board.size > SMALL_LEAVES
        with self._fold:
            standings = self._standings
            for data in read_leaves(session, standings.board.size, head.size):
                standings.apply(data)
                if self._closing:
                    return
            always = head.size <= SMALL_LEAVES
            names = self._names.read(
                session, standings.board.run_id, always=always, pace=self._pace
            )
            if known and known.note == row.checkpoint and known.names is names:
                return
            snapshot = standings.freeze(next(self._serials), row.checkpoint, head, names)
            with self._state:
                self._snapshot = snapshot

    def _forget(self) -> None:
        """Fold from the first leaf again."""
        with self._fold:
            self._standings = Standings(Board(), self._pace)
