"""A database that goes away in the middle of a commit: done or not, nobody is misled.

The commit is real; what is lost is the news of it, as with a connection that breaks right then.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from chaos_scripted_run import ScriptedRun, engine_rig, manifest
from sqlalchemy.orm import Session

from coordinator.database import OutcomeUnknown
from coordinator.round_state import Phase
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.wire import service_pb2

THE_END = "the test has heard all"


class Commits:
    """Of one database; the engine's next can be done and not told, or not done."""

    def __init__(self, run: ScriptedRun) -> None:
        self._commit = run.database._commit
        self.lose = ""
        run.database._commit = self.commit  # type: ignore[method-assign]

    def commit(self, session: Session) -> None:
        lose = ""
        if threading.current_thread().name.startswith("database"):  # the test reads in its own
            lose, self.lose = self.lose, ""
        if lose != "undone":
            self._commit(session)
        if lose:
            raise OutcomeUnknown("the connection broke")


@pytest.fixture
async def run(tmp_path: Path) -> Any:
    made = ScriptedRun(tmp_path, manifest(rounds=2))
    await made.boot()
    await made.admit_all()
    yield made
    made.database.close()


async def to(run: Any, phase: str) -> Callable[[], Awaitable[Any]]:
    """Bring the run to where the next call is the one to be lost; returns that call."""
    ada, bob = run.workers
    if phase == "lease":
        return ada.lease
    await ada.lease()
    await bob.lease()
    run._recall(0)
    if phase == "commit":
        return ada.commit
    await ada.commit()
    if phase == "roster":
        return bob.commit
    await bob.commit()
    if phase == "inclusion":
        return run.gather
    await run.gather()
    if phase == "results":
        results = run.results()
        return lambda: run.submit(results)
    await run.submit(run.results())
    return run.engine.settle


@pytest.mark.parametrize("lose", ["done", "undone"])
@pytest.mark.parametrize("phase", ["lease", "commit", "roster", "inclusion", "results", "settle"])
async def test_whoever_asks_again_finds_out(run: Any, phase: str, lose: str) -> None:
    call = await to(run, phase)
    told: list[service_pb2.RunEvent] = []
    async with run.engine.subscribe("watcher") as events:
        commits = Commits(run)
        commits.lose = lose
        with pytest.raises(OutcomeUnknown):
            await call()
        await run.engine.tick()
        run.engine._turns._hub.publish([service_pb2.RunEvent(notice=THE_END)])
        async for event in events:
            if event.notice == THE_END:
                break
            told.append(event)
    roster, inclusion = run.stored_roster()
    kinds = {event.WhichOneof("event") for event in told}
    if phase in ("roster", "inclusion", "results") and lose == "done":
        assert roster is not None and "roster" in kinds
    if phase in ("inclusion", "results") and lose == "done":
        assert inclusion is not None
    await run.play()
    await run.engine.tick()
    with run.database.session() as session:
        report = verify(DatabaseSource(session), root=engine_rig.ROOT.peer_id)
    assert report.rounds == 2
    assert run.machine().phase is Phase.OPEN
    # Two members, two rounds, four steps each: every unit was merged, and paid once.
    assert report.credited_tokens == 4 * 4 * run.manifest.tokens_per_step
