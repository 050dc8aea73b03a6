"""A coordinator's engine in a process of its own, driven by members that always do the same.

``chaos_scripted_run.py FOLDER ROUNDS`` reads orders from its input, one JSON object a line, and plays
each in a forked child: one life of the coordinator. A life looks at the database and goes on from
there, as the members of a run do after a restart. If it is told to, it kills itself (SIGKILL) at
the first point at which no life before it was killed. The answer is the child's wait status. Forking
saves the imports; what is killed is a real process.

What the outside has heard is kept as it is heard: signed heads in ``heads.jsonl``, published
records in ``told.jsonl``; points in ``points.jsonl``, kills in ``kills.jsonl``.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from chaos_points_coordinator import POINTS
from sqlalchemy import select

from coordinator.admission import Admission, AdmissionPolicy
from coordinator.checkpoints import CheckpointStore
from coordinator.context import EngineOptions
from coordinator.database import Database
from coordinator.engine import Engine
from coordinator.events import Hub
from coordinator.round_state import Phase
from coordinator.schema import COMMITTED, TRAINING, AssignmentRow, ControlRow
from coordinator.turn import Turn
from ledger.authority import store_delegations
from ledger.log import Log
from protocol.envelope import open_envelope
from protocol.identity import Identity
from protocol.update import encode_update
from protocol.wire import records_pb2 as wire

TESTS = Path(__file__).parents[1]
ABSENCE_S = 600.0
LOSS_NATS = 3.0


def load(path: Path) -> ModuleType:
    # Under a name of its own: in a test's process pytest has loaded these already.
    spec = importlib.util.spec_from_file_location(f"scripted_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


engine_rig = load(TESTS / "engine_rig.py")
START_S: float = engine_rig.START_S
manifest_mapping = load(TESTS / "conftest.py").manifest_mapping


def manifest(rounds: int) -> Any:
    raw = manifest_mapping()
    raw["round"] = {"duration_s": 10.0, "min_members": 2, "max_rounds": rounds}
    # Everybody is trusted from the start, and audited: replays are queued, and wait.
    raw["verification"] = {**engine_rig.QUIET, "p_min": 1.0}
    raw["inner"]["max_steps"] = 4
    return engine_rig.RunManifest.from_mapping(raw)


class ScriptedRun(engine_rig.Rig):
    """An engine on a real, migrated database, and three members: an anchor and two workers."""

    url = ""  # of the database; empty: SQLite in the folder
    clock: Callable[[], float] | None = None  # None: now_s
    options = EngineOptions(kept_checkpoints=1)

    async def boot(self) -> None:
        clock = self.clock or (lambda: self.now_s)
        self.database = Database(self.url or f"sqlite:///{self.folder / 'coordinator.db'}")
        self.database.upgrade()
        with self.database.session() as session:
            if session.get(ControlRow, 1) is None:  # as init does
                session.add(ControlRow(id=1, run_id=self.run_id, alive_at_s=clock()))
            store_delegations(session, self.keys.delegations, self.keys.revocations)
        self.log = Log(self.manifest.origin, self.keys.log, now_s=clock)
        self.engine = Engine(
            self.database,
            self.manifest,
            engine_rig.dataset_of(self.manifest, self.sequences),
            self.keys,
            CheckpointStore(str(self.folder / "blobs"), self.manifest),
            self.log,
            clock=clock,
            evaluate=self.loss,
            options=self.options,
        )
        await self.engine.start()
        policy = AdmissionPolicy(self.run_id, "0", [self.identity(1).peer_id])
        self.admission = Admission(self.database, self.log, self.keys.round, policy, clock)

    async def loss(self, _: Any) -> float:
        return LOSS_NATS

    def identity(self, seed: int) -> Identity:
        return Identity.from_seed(seed.to_bytes(32, "big"))

    async def admit(self, seed: int, *, anchor: bool = False) -> Any:
        member = engine_rig.Member(self, self.identity(seed))
        enrolment = wire.Enrolment(
            run_id=self.run_id,
            worker=member.name,
            donor=member.name,
            client_version="0.1",
            device=wire.Device(device_class="cpu", name="a laptop"),
            anchor=anchor,
            client_mode=not anchor,
            multiaddrs=[f"/ip4/127.0.0.1/tcp/{4000 + seed}"] if anchor else [],
        )
        await self.admission.admit(member.sign(enrolment), "ipv4:127.0.0.1:5000")
        self.members[member.name] = member
        return member

    def read(self, query: Any) -> Any:
        with self.database.session() as session:
            return query(session)

    async def admit_all(self) -> None:
        await self.admit(1, anchor=True)
        self.workers = [await self.admit(2), await self.admit(3)]

    async def play(self) -> None:
        """To the end of the run, from wherever it stands."""
        await self.admit_all()
        while not self.read(lambda session: session.get_one(ControlRow, 1).finished):
            await self._one_step()
        while await self.engine.evaluate():
            pass
        await self.engine.tick()

    def stored_head(self) -> wire.Envelope:
        """The signed head of the running round."""
        return self.read(
            lambda s: wire.Envelope.FromString(Turn(self.engine.context, s, self.now_s).row.head)
        )

    def machine(self) -> Any:
        """The running round as it is stored."""
        return self.read(lambda s: Turn(self.engine.context, s, self.now_s).machine)

    async def _one_step(self) -> None:
        machine = self.machine()
        self.now_s += 0.25
        await self.engine.tick()
        await self.engine.evaluate()
        await self.engine.audit()
        await self.workers[0].beat()
        if machine.accepts_commits or machine.phase is Phase.OPEN:
            await self._train(machine.number)
        elif machine.phase is Phase.GATHER:
            self._recall(machine.number)
            await self.gather()
        elif machine.settling:
            assert await self.engine.settle()
        else:
            self._recall(machine.number)
            await self.submit(self.results())

    async def _train(self, round_: int) -> None:
        rows = self._recall(round_)
        for worker in self.workers:
            if worker.name not in rows:
                await worker.lease()
                return
        for worker in self.workers:
            if rows[worker.name][0] == TRAINING:
                await worker.commit()
                return

    def _recall(self, round_: int) -> dict[str, Any]:
        """What the members of a round have in their journals, after a restart too."""
        rows = self.read(
            lambda session: {
                row.worker: (row.status, row.envelope)
                for row in session.scalars(
                    select(AssignmentRow).where(AssignmentRow.round == round_)
                )
            }
        )
        for name, (status, data) in rows.items():
            assert status in (TRAINING, COMMITTED), f"the lease of {name} was lost"
            envelope = wire.Envelope.FromString(data)
            member = self.members[name]
            member.assignment = open_envelope(envelope, wire.Assignment).record
            member.update = self._update(member)
        return rows

    def _update(self, member: Any) -> Any:
        """Depends on the data of the unit alone, so that two runs come to the same weights."""
        random = np.random.default_rng(member.assignment.start_sequence)
        vector = (random.standard_normal(self.layout.elements) * 1e-3).astype(np.float32)
        return encode_update(
            vector,
            self.layout,
            self.manifest.update.codec,
            run_id=self.run_id,
            round_=member.assignment.round,
            worker=member.name,
        )


class Recorder:
    """Writes down what happens, and kills this process at a point that is new."""

    def __init__(self, folder: Path, *, kill: bool) -> None:
        self._folder = folder
        self._spared = set(lines(folder / "kills.jsonl")) if kill else None

    def write(self, name: str, value: Any) -> None:
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, json.dumps(value).encode() + b"\n")
        os.close(descriptor)

    def install(self) -> None:
        self._keep_what_is_told()
        for point, install in POINTS.items():
            install(lambda point=point, **facts: self._reached(point, facts))

    def _reached(self, point: str, facts: dict[str, Any]) -> None:
        what = facts.get("turn") or facts.get("statement") or facts.get("kinds") or ""
        name = f"{point} {what}".strip()
        if self._spared is None:
            self.write("points.jsonl", name)
        elif name not in self._spared:
            self.write("kills.jsonl", name)
            os.kill(os.getpid(), signal.SIGKILL)

    def _keep_what_is_told(self) -> None:
        """A signed head is out once it is committed; a record once it is published."""
        once, publish = Database._once, Hub.publish

        def committed(database: Database, fn: Any) -> Any:
            found = once(database, fn)
            work = inspect.unwrap(fn)  # points wrap what is run
            if getattr(work, "__func__", None) is Log.sign_head:
                self.write("heads.jsonl", found)
            return found

        def told(hub: Hub, events: Any) -> None:
            publish(hub, events)
            for event in events:
                kind = event.WhichOneof("event")
                if kind != "notice":
                    payload = getattr(event, kind).payload
                    self.write("told.jsonl", [kind, hashlib.sha256(payload).hexdigest()])

        Database._once, Hub.publish = committed, told  # type: ignore[method-assign]


def lines(path: Path) -> list[Any]:
    """What a recorder wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def play(folder: Path, order: dict[str, Any]) -> None:
    """One life of the process."""
    Recorder(folder, kill=order["kill"]).install()
    run = ScriptedRun(folder, manifest(order["rounds"]))
    run.now_s = engine_rig.START_S + order["life"] * ABSENCE_S

    async def live() -> None:
        await run.boot()
        await run.play()
        run.database.close()

    asyncio.run(live())


def main() -> None:
    folder = Path(sys.argv[1])
    # Hashing a draw chain takes long, and every child is to have the same keys.
    rounds = int(sys.argv[2])
    engine_rig.Rig(folder, manifest(rounds))
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                play(Path(order["folder"]), {**order, "rounds": rounds})
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(json.dumps({"status": os.waitpid(child, 0)[1]}), flush=True)


if __name__ == "__main__":
    main()
