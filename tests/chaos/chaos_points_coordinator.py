"""Points of the coordinator: around each of its transactions, and around each file that it keeps.

A transaction is named by what is done in it (``turn``): the function that the engine runs.

* ``commit.before``: everything is written, nothing committed.
* ``commit.after``: committed; nobody was told, no head is signed.
* ``published``: watchers were told; no head is signed over the leaves that the turn added.
* ``migration.statement``: a statement of a migration is done; the migration is not.
* ``file.written`` / ``file.named`` / ``file.removed``: a state's file under its temporary name,
  under its own, gone.
* ``state.saved``, ``mean.saved``, ``pruned``: the store is done, the database does not know.
* ``inclusion.signing``: in the transaction that signs an inclusion set.
* ``result.kept``: in the transaction that keeps results, which the last one makes a settle.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from alembic.ddl.impl import DefaultImpl
from chaos_injector import Install, Reached, after, before
from fsspec.implementations.local import LocalFileSystem
from sqlalchemy.orm import Session

from coordinator import checkpoints, engine
from coordinator.audit import base_weights
from coordinator.audit.store import FileStore
from coordinator.database import Database
from coordinator.events import Hub
from coordinator.turn import Turn
from coordinator.turns import Turns

_now = threading.local()
"""The turn that the database's thread is in."""


def _name(work: Callable[..., Any]) -> str:
    inner = work.func if isinstance(work, functools.partial) else work
    return str(inner.__qualname__)


def _name_turns() -> None:
    """Let transactions of :class:`Turns` be known by their work, once."""
    original = Turns.run
    if hasattr(original, "names_its_turns"):
        return

    @functools.wraps(original)
    async def run(self: Turns, work: Callable[[Turn], Any]) -> Any:
        def named(turn: Turn) -> Any:
            _now.turn, _now.round = _name(work), turn.machine.number
            return work(turn)

        return await original(self, named)

    run.names_its_turns = True  # type: ignore[attr-defined]
    Turns.run = run  # type: ignore[method-assign]


def _around_commits(before_commit: Reached | None, after_commit: Reached | None) -> None:
    _name_turns()
    original = Database._once

    def once(self: Database, fn: Callable[[Session], Any]) -> Any:
        _now.turn, _now.round = _name(fn), None

        def done(session: Session) -> Any:
            result = fn(session)
            session.flush()
            if before_commit is not None:
                before_commit(turn=_now.turn, round=_now.round)
            return result

        result = original(self, functools.wraps(fn)(done))
        if after_commit is not None:
            after_commit(turn=_now.turn, round=_now.round)
        return result

    Database._once = once  # type: ignore[method-assign]


def _published(reached: Reached) -> None:
    original = Hub.publish

    def publish(self: Hub, events: Any) -> None:
        original(self, events)
        if events:
            reached(kinds=[event.WhichOneof("event") for event in events])

    Hub.publish = publish  # type: ignore[method-assign]


def _statement(_: DefaultImpl, construct: Any, *__: Any, **___: Any) -> dict[str, Any]:
    return {"statement": type(construct).__name__}


def _round_of_turn(turn: Turn, *_: Any, **__: Any) -> dict[str, Any]:
    return {"round": turn.machine.number, "attempt": turn.machine.attempt}


POINTS: dict[str, Install] = {
    "commit.before": lambda reached: _around_commits(reached, None),
    "commit.after": lambda reached: _around_commits(None, reached),
    "published": _published,
    "migration.statement": after(DefaultImpl, "_exec", _statement),
    "file.written": after(checkpoints, "write_vector"),
    "file.named": before(checkpoints, "_fsync"),
    "state.saving": before(checkpoints.CheckpointStore, "save"),
    "state.saved": after(checkpoints.CheckpointStore, "save"),
    "mean.saved": after(FileStore, "put"),
    "file.removed": after(LocalFileSystem, "rm_file"),
    "pruning": before(base_weights, "prune"),
    "pruned": after(base_weights, "prune"),
    "inclusion.signing": after(Turn, "_sign_inclusion", _round_of_turn),
    "result.kept": after(engine, "keep_pieces", _round_of_turn),
}
