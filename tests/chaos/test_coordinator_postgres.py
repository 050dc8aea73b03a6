"""A real PostgreSQL that goes away in the middle of a round, and comes back a minute later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chaos_scripted_run import ScriptedRun, engine_rig, manifest
from postgres_rig import Postgres, postgres
from sqlalchemy.orm import Session

from coordinator.database import Database
from coordinator.round_state import Phase
from ledger import tree
from ledger.records import EnrolLeaf
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.errors import TransientError

pytestmark = pytest.mark.timeout(300)

ROUNDS = 2
AWAY_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
async def run(server: Postgres, tmp_path: Path) -> Any:
    made = ScriptedRun(tmp_path, manifest(ROUNDS))
    with server.database() as made.url:
        await made.boot()
        yield made
        made.database.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_restarted_under_a_round(run: Any, server: Postgres, mode: str) -> None:
    await run.admit_all()
    ada, bob = run.workers
    first = await ada.lease()
    await bob.lease()
    run._recall(0)
    await ada.commit()
    before = run.machine()
    server.stop(mode)
    # Whatever is asked for meanwhile is refused for now, and nothing ends the engine.
    for asked in (bob.request(), bob.commit(), ada.beat(), run.engine.tick()):
        with pytest.raises(TransientError, match="database"):
            await asked
    driving = asyncio.create_task(run.engine.run())
    run.now_s += AWAY_S
    await asyncio.sleep(0)
    server.start()
    # The first request that comes through is answered: no connection of before is used again.
    await ada.beat()
    driving.cancel()
    await asyncio.wait([driving])
    await run.engine.keep_time()
    after = run.machine()
    assert after.phase is Phase.TRAINING and after.training == before.training
    assert after.deadline_s is not None and before.deadline_s is not None
    assert after.deadline_s >= before.deadline_s + AWAY_S - 5
    assert not (await ada.commit()).first, "what was committed is still there"
    again = await bob.request()
    assert again.HasField("assignment"), "the lease is still bob's"
    await bob.commit()
    await run.play()
    with run.database.session() as session:
        report = verify(DatabaseSource(session), root=engine_rig.ROOT.peer_id)
    assert report.rounds == ROUNDS
    assert first.start_sequence == 0


async def test_two_programs_append_at_one_moment(run: Any) -> None:
    """They wait for each other; nobody's leaves are refused, and none is lost."""
    each, programs = 20, 3
    size = run.read(tree.tree_size)

    def program(number: int) -> None:
        database = Database(run.url)
        for turn in range(each):
            device = run.identity(1000 + number * each + turn).peer_id
            leaf = EnrolLeaf(
                run_id=run.run_id.hex(), at_s=1, worker=device, donor=device, device_class="cpu"
            )

            def append(session: Session, leaf: EnrolLeaf = leaf) -> None:
                run.log.append(session, [leaf])

            with database.session() as session:
                append(session)
            with database.session() as session:
                run.log.sign_head(session)
        database.close()

    with ThreadPoolExecutor(programs) as pool:
        for done in [pool.submit(program, number) for number in range(programs)]:
            done.result()
    await run.engine.tick()
    assert run.read(tree.tree_size) == size + each * programs
    assert not run.read(run.log.behind)
