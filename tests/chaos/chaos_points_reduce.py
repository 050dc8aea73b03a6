"""Points of the reduce: where a sender or a reducer is, round, attempt and chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chaos_injector import Install, after, before

from worker import frames
from worker.allreduce import GroupReduce
from worker.outbox import Outbox
from worker.reducer import Inbox, Reducer
from worker.session import Session


def _of_group(reduce: GroupReduce, *_: Any) -> Mapping[str, Any]:
    record = reduce.group.record
    return {"round": record.round, "attempt": record.attempt}


def _of_reducer(reducer: Reducer, *_: Any, **__: Any) -> Mapping[str, Any]:
    record = reducer.group.record
    return {"round": record.round, "attempt": record.attempt}


def _kept(reducer: Reducer, _inbox: Inbox, chunk: int, _data: bytes) -> Mapping[str, Any]:
    return {**_of_reducer(reducer), "chunk": chunk, "at": chunk - reducer.first}


def _combined(reducer: Reducer, chunk: int, _members: Any) -> Mapping[str, Any]:
    return {**_of_reducer(reducer), "chunk": chunk, "at": chunk - reducer.first}


def _framed(_group_id: bytes, chunk: int, *_: Any) -> Mapping[str, Any]:
    return {"chunk": chunk}


POINTS: dict[str, Install] = {
    # A sender.
    "committed": after(Outbox, "deliver"),
    "gather.chunk": before(frames, "chunk", _framed),
    "gather.end": after(GroupReduce, "gather", _of_group),
    # A reducer.
    "reducer.receive": before(frames, "parse_chunk"),
    "reducer.keep": before(Reducer, "_keep", _kept),
    "reducer.combine": before(Reducer, "_combine_one", _combined),
    "reducer.serve": before(frames, "result", _framed),
    "reducer.submit": before(Session, "submit_results"),
}
