"""Evidence on disk survives kill -9, and answers reach a real coordinator by heartbeats.

Run as a program, this file is a process that writes groups down until it is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from coordinator.audit.begin import begin_audit
from coordinator.audit.challenges import ask
from coordinator.audit.schema import ANSWERED, ChallengeRow, ProbationRow
from coordinator.database import Session
from protocol.audit_policy import Why
from protocol.envelope import Signed, open_envelope, seal
from protocol.identity import Identity
from protocol.leash import leashed
from protocol.projection import project_update
from protocol.update import ChunkLayout, EncodedUpdate
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from worker.config import Home, WorkerConfig
from worker.group import Group
from worker.heartbeat import Heartbeats
from worker.node import Node, open_node
from worker.reducer import Inbox, Reducer
from worker.retained import Retained
from worker.status import Board
from worker.updates import UpdateName

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

ROUND_KEY, REDUCER, *MEMBERS = (Identity.from_seed(bytes([i]) * 32) for i in range(5))
KILL_POINTS = 16  # changes on disk: of more than one round, removals included
KEPT_ROUNDS = 4


def reduced(
    round_: int, layout: ChunkLayout, *, run_id: bytes, reducer: Identity, round_key: Identity
) -> tuple[Reducer, Signed[wire.InclusionSet]]:
    """A reducer of everything, to which three members have sent their chunks (as fp32)."""
    rng = np.random.default_rng(round_)
    updates = {
        member.peer_id: EncodedUpdate.of(
            tuple(
                rng.standard_normal(layout.chunk_size(chunk)).astype("<f4").tobytes()
                for chunk in range(layout.count)
            )
        )
        for member in MEMBERS
    }
    roster = wire.Roster(
        run_id=run_id,
        round=round_,
        members=[
            wire.RosterMember(worker=name, weight=1, commitment_root=update.root)
            for name, update in updates.items()
        ],
        reducers=[
            wire.ReducerRange(reducer=reducer.peer_id, first_chunk=0, end_chunk=layout.count)
        ],
        codec="fp32",
        combine="mean",
        vector_elements=layout.elements,
        chunk_elements=layout.chunk_elements,
        chunk_count=layout.count,
        gather_deadline_ms=1,
        broadcast_deadline_ms=2,
    )
    group = Group.of(open_envelope(seal(roster, round_key), wire.Roster))
    made = Reducer(group, reducer)
    for name, update in updates.items():
        chunks = dict(enumerate(update.chunks))
        made.inboxes[name] = Inbox(list(update.leaf_hashes), chunks, statement=wire.Envelope())
    inclusion = wire.InclusionSet(
        run_id=run_id, round=round_, group_id=group.group_id, members=list(updates)
    )
    return made, open_envelope(seal(inclusion, round_key), wire.InclusionSet)


# ---- kill -9


def die_at(point: int, folder: Path) -> None:
    """Kill this process before its ``point``-th change of a file or folder below ``folder``."""
    left = point

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (
            event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def write_until_killed(folder: Path) -> None:
    """One round after the other; those that are on disk are named on standard output."""
    retained = Retained(folder, folder / "inputs")
    layout = ChunkLayout(16 * 4096, 4096)
    newest = max((int(path.name[:10]) for path in retained.inputs.iterdir()), default=0)
    for round_ in range(newest + 1, newest + 1000):
        reducer, inclusion = reduced(
            round_, layout, run_id=bytes(32), reducer=REDUCER, round_key=ROUND_KEY
        )
        retained.write(reducer, inclusion)
        sys.stdout.write(f"{round_} {reducer.group.group_id.hex()}\n")
        sys.stdout.flush()
        retained.tidy(round_ - KEPT_ROUNDS + 1, round_)


def nursery(folder: Path) -> None:
    """Make a writer for each line that comes in, which says when it is to die."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            die_at(int(line), folder)
            write_until_killed(folder)
            os._exit(0)
        os.waitpid(child, 0)
        sys.stdout.write("killed\n")
        sys.stdout.flush()


@contextmanager
def writers(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        leashed([sys.executable, __file__, str(folder)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def test_kill_9_at_any_point_leaves_whole_groups_only(tmp_path: Path) -> None:
    halves = 0
    (tmp_path / "inputs").mkdir()
    with writers(tmp_path) as nursed:
        assert nursed.stdin is not None
        assert nursed.stdout is not None
        for point in range(1, KILL_POINTS + 1):
            nursed.stdin.write(f"{point}\n")
            nursed.stdin.flush()
            lines = []
            while (line := nursed.stdout.readline()) != "killed\n":
                lines.append(line.split())
            halves += any(path.suffix for path in (tmp_path / "inputs").iterdir())
            check_whole(Retained(tmp_path, tmp_path / "inputs"), lines)
    assert halves, "no kill came at a bad moment"


def check_whole(retained: Retained, done: list[list[str]]) -> None:
    """What was said to be on disk is there, and whatever is there is whole."""
    held = {path.name for path in retained.inputs.iterdir()}
    named = {f"{int(round_):010d}-{group_id}" for round_, group_id in done[-2:]}
    assert named <= held
    assert len(held) <= KEPT_ROUNDS + 1
    for name in held:
        kept = retained.group(bytes.fromhex(name.partition("-")[2]), REDUCER.peer_id)
        for member in MEMBERS:
            file = kept.of(member.peer_id)
            assert len(file.show(range(kept.first, kept.end))) == kept.end


# ---- heartbeats


@pytest.fixture
def run_folder(run_rig: ModuleType, tmp_path: Path) -> Path:
    run_rig.make_dataset(tmp_path / "data")
    run_rig.make_run(tmp_path / "data", tmp_path / "run")
    return tmp_path / "run"


@pytest_asyncio.fixture
async def served(run_rig: ModuleType, run_folder: Path) -> AsyncIterator[Any]:
    """A real server over a tiny run."""
    async with run_rig.serving(run_folder) as made:
        yield made


@asynccontextmanager
async def anchor(served: Any, home: Home) -> AsyncIterator[Node]:
    """The run's own anchor, with all it has but the reduce."""
    home.prepare()
    key = served.run.folder.keys / "anchor.key"
    identity = Identity.load(key)
    config = WorkerConfig(link=str(served.link), device="cpu", listen=("/ip4/127.0.0.1/tcp/0",))
    board = Board(identity.peer_id, "run")
    async with (
        open_node(home, config, identity, key, board, anchor=True) as node,
        asyncio.TaskGroup() as tasks,
    ):
        running = [
            tasks.create_task(node.watch.run()),
            tasks.create_task(Heartbeats(node, board).run()),
        ]
        yield node
        for task in running:
            task.cancel()


def open_audit(session: Session, contribution: wire.Envelope) -> bytes:
    """Of a unit on probation; the id of the audit."""
    record = open_envelope(contribution, wire.Contribution).record
    session.add(
        ProbationRow(
            assignment_id=record.assignment_id,
            worker=record.worker,
            round=0,
            settled_rounds=0,
            status="committed",
            issued_at_s=time.time(),
            deadline_s=time.time(),
            envelope=b"",
            contribution=contribution.SerializeToString(),
        )
    )
    return begin_audit(
        session,
        subject="probation",
        assignment_id=record.assignment_id,
        round_=0,
        worker=record.worker,
        donor=record.worker,
        execution="cpu",
        why=Why.PROBATION,
        draw=bytes(32),
        projection_seed=bytes(32),
        now_s=time.time(),
    ).audit_id


def ask_all(session: Session, audit_id: bytes, worker: str, unit: bytes, group: Group) -> None:
    """Projections of a member from the reduced group, and chunks of the unit with proofs."""
    common: dict[str, Any] = {"audit_id": audit_id, "asked": worker, "now_s": time.time()}
    kind = api.CHALLENGE_KIND_PROJECT
    ends = {"first_chunk": 0, "end_chunk": group.layout.count, "projection_seed": bytes(32)}
    member = MEMBERS[1].peer_id
    ask(session, kind=kind, members=[member], group_id=group.group_id, **ends, **common)
    kind = api.CHALLENGE_KIND_OPEN
    chunks = [group.layout.count - 1, 0]
    ask(session, kind=kind, members=[worker], assignment_id=unit, chunks=chunks, **common)


def answers(session: Session) -> list[tuple[str, bytes]]:
    rows = session.query(ChallengeRow).order_by(ChallengeRow.kind)
    return [(row.status, row.answer or b"") for row in rows]


async def test_what_is_asked_by_heartbeat_is_answered_after_a_restart(
    served: Any, tmp_path: Path
) -> None:
    home, unit = Home(tmp_path / "home"), os.urandom(16)
    home.prepare()
    layout = served.engine.context.layout
    run_id, identity = served.link.run_id, Identity.load(served.run.folder.keys / "anchor.key")
    # 1. An earlier life of this node reduced a group, and kept a unit of its own.
    reducer, inclusion = reduced(
        0, layout, run_id=run_id, reducer=identity, round_key=served.run.keys.round
    )
    Retained(home.updates, home.inputs).write(reducer, inclusion)
    manifest = served.run.manifest
    chunks = tuple(
        bytes(layout.encoded_bytes(manifest.update.codec, chunk)) for chunk in range(layout.count)
    )
    update = EncodedUpdate.of(chunks)
    (home.updates / str(UpdateName(0, unit, update.root))).write_bytes(b"".join(chunks))
    contribution = wire.Contribution(
        run_id=run_id,
        assignment_id=unit,
        worker=identity.peer_id,
        commitment_root=update.root,
        chunk_count=layout.count,
        vector_elements=layout.elements,
    )
    async with anchor(served, home) as node:
        # 2. An audit asks; the next heartbeat brings it here.
        audit_id = await served.database.run(
            lambda session: open_audit(session, seal(contribution, identity))
        )
        await served.database.run(
            lambda session: ask_all(session, audit_id, identity.peer_id, unit, reducer.group)
        )
        async with asyncio.timeout(60):
            while any(status != ANSWERED for status, _ in await served.database.run(answers)):
                await node.watch.change(0.2)
        # 3. What was signed is what was asked for.
        (_, projected), (_, opened) = await served.database.run(answers)
        record = wire.ChallengeAnswer.FromString(wire.Envelope.FromString(projected).payload)
        inbox = reducer.inboxes[MEMBERS[1].peer_id]
        expected = project_update(list(inbox.chunks.values()), "fp32", layout, bytes(32))
        assert record.projections == expected
        record = wire.ChallengeAnswer.FromString(wire.Envelope.FromString(opened).payload)
        assert (len(record.chunk_sha256), record.unavailable) == (2, "")
        assert node.evidence.retained.current_round == 0


if __name__ == "__main__":
    nursery(Path(sys.argv[1]))
