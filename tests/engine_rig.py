"""A coordinator's engine without a network, and real members: real keys, encodings, signatures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.blocks import ORGANISER, BlockList
from coordinator.checkpoints import CheckpointStore
from coordinator.context import EngineOptions
from coordinator.database import Database
from coordinator.engine import Engine
from coordinator.keys import KeyRing
from coordinator.schema import WorkerRow
from coordinator.validation import Evaluate
from ledger.fold import Board
from ledger.log import Log, read_leaves
from ledger.records import EnrolLeaf
from ledger.schema import Base
from ledger.tree import tree_size
from protocol.codec import MEAN_SOURCE
from protocol.combine import combine_chunk
from protocol.dataset import DatasetManifest
from protocol.envelope import Signed, open_envelope, seal
from protocol.identity import Identity
from protocol.manifest import RunManifest
from protocol.model import element_count, parameter_spec
from protocol.update import (
    ChunkLayout,
    EncodedUpdate,
    decode_chunk,
    encode_chunk,
    encode_update,
    noise_key,
)
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

QUIET = {"probation_passes": 0, "probation_steps": 0, "reducer_passes": 0}
"""Verification of runs whose tests are not about it: everybody is trusted from the start."""

ROOT = Identity.from_seed(bytes(32))
START_S = 1_800_000_000.0

_KEYS: dict[bytes, KeyRing] = {}
"""By run id; nothing changes a key ring."""


def dataset_of(manifest: RunManifest, sequences: int) -> DatasetManifest:
    """A dataset manifest of so many training sequences; the engine never opens the shards."""
    shard_bytes = 2 * manifest.sequence_length
    return DatasetManifest.model_validate(
        {
            "dtype": "uint16",
            "sequence_length": manifest.sequence_length,
            "vocab_size": 256,
            "eos_token_id": 0,
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "shuffle_seed": 1,
            "shards": (
                {"sha256": "1" * 64, "sequences": sequences, "bytes": sequences * shard_bytes},
            ),
            "validation": {"sha256": "2" * 64, "sequences": 1, "bytes": shard_bytes},
            "sources": (
                {
                    "name": "none",
                    "licence": "CC0-1.0",
                    "files": 1,
                    "documents": 1,
                    "bytes": 1,
                    "sha256": "3" * 64,
                },
            ),
            "licence": "CC0-1.0",
            "tokens": sequences * manifest.sequence_length,
        }
    )


@dataclass
class Member:
    """A worker, or an anchor, that acts honestly unless a test makes it do otherwise."""

    rig: Rig
    identity: Identity
    assignment: wire.Assignment | None = None
    update: EncodedUpdate | None = None

    @property
    def name(self) -> str:
        return self.identity.peer_id

    def sign(self, record: Any) -> Signed[Any]:
        """A record of ours as the service would hand it on: opened, and so verified."""
        return open_envelope(seal(record, self.identity), type(record), signer=self.name)

    async def request(self, speed: float = 1e9) -> service_pb2.WorkReply:
        record = wire.WorkRequest(run_id=self.rig.run_id, worker=self.name, tokens_per_s=speed)
        return await self.rig.engine.request_work(self.sign(record))

    async def lease(self, speed: float = 1e9) -> wire.Assignment:
        reply = await self.request(speed)
        assert reply.HasField("assignment"), reply.wait
        signed = open_envelope(
            reply.assignment, wire.Assignment, signer=self.rig.keys.round.peer_id
        )
        self.assignment = signed.record
        return signed.record

    def train(self, scale: float = 1e-3) -> EncodedUpdate:
        """A vector that depends on the assignment only, encoded."""
        assert self.assignment is not None
        random = np.random.default_rng(self.assignment.seed)
        vector = (random.standard_normal(self.rig.layout.elements) * scale).astype(np.float32)
        self.update = encode_update(
            vector,
            self.rig.layout,
            self.rig.manifest.update.codec,
            run_id=self.rig.run_id,
            round_=self.assignment.round,
            worker=self.name,
        )
        return self.update

    def contribution(self, **changes: Any) -> wire.Contribution:
        assignment, update = self.assignment, self.update or self.train()
        assert assignment is not None
        manifest = self.rig.manifest
        steps = changes.pop("steps", assignment.steps)
        fields = {
            "run_id": self.rig.run_id,
            "round": assignment.round,
            "assignment_id": assignment.assignment_id,
            "worker": self.name,
            "state_digest": assignment.state_digest,
            "epoch": assignment.epoch,
            "start_sequence": assignment.start_sequence,
            "end_sequence": assignment.start_sequence + steps * manifest.inner.sequences_per_batch,
            "steps": steps,
            "tokens": steps * manifest.tokens_per_step,
            "codec": manifest.update.codec,
            "commitment_root": update.root,
            "chunk_count": self.rig.layout.count,
            "vector_elements": self.rig.layout.elements,
            "update_norm": 1.0,
            "mean_loss": 5.0,
            "training_spec": manifest.inner.training_spec,
            "execution": "cpu",
        }
        return wire.Contribution(**{**fields, **changes})

    async def commit(self, **changes: Any) -> service_pb2.CommitReply:
        return await self.rig.engine.commit(self.sign(self.contribution(**changes)))

    async def beat(self, **changes: Any) -> service_pb2.HeartbeatReply:
        with self.rig.database.session() as session:
            row = session.get(WorkerRow, self.name)
            reach = {} if row is None else _reach(row)
        fields = {"run_id": self.rig.run_id, "worker": self.name, **reach}
        return await self.rig.engine.heartbeat(self.sign(wire.Heartbeat(**{**fields, **changes})))

    async def report(self, digest: bytes, attempt: int = 1) -> service_pb2.ReportReply:
        assert self.assignment is not None
        record = wire.Report(
            run_id=self.rig.run_id,
            round=self.assignment.round,
            attempt=attempt,
            worker=self.name,
            state_digest=digest,
        )
        return await self.rig.engine.report(self.sign(record))


@dataclass
class Rig:
    """Everything that a coordinator's process holds, on a clock of its own."""

    folder: Path
    manifest: RunManifest
    sequences: int = 4000
    evaluate: Evaluate | None = None
    options: EngineOptions = field(default_factory=EngineOptions)
    now_s: float = START_S
    members: dict[str, Member] = field(default_factory=dict)
    url: str = ""  # of the database; a file in the folder unless it is given

    def __post_init__(self) -> None:
        self.run_id = self.manifest.run_id
        # Hashing a draw chain takes longer than most tests: runs of one manifest share their keys.
        if self.run_id not in _KEYS:
            _KEYS[self.run_id] = KeyRing.create(
                self.folder / "keys",
                ROOT,
                run_id=self.run_id,
                now_s=int(START_S),
                valid_s=10**6,
            )
        self.keys = _KEYS[self.run_id]
        elements = element_count(parameter_spec(self.manifest.model_config_json))
        self.layout = ChunkLayout(elements, self.manifest.update.chunk_elements)

    async def boot(self) -> None:
        """Start a process's worth of objects on what the folder holds."""
        self.database = Database(self.url or f"sqlite:///{self.folder / 'coordinator.db'}")
        # The same tables as after the migrations (a test compares them), in half the time.
        Base.metadata.create_all(self.database.engine)
        self.log = Log(self.manifest.origin, self.keys.log, now_s=lambda: self.now_s)
        self.engine = Engine(
            self.database,
            self.manifest,
            dataset_of(self.manifest, self.sequences),
            self.keys,
            CheckpointStore(str(self.folder / "blobs"), self.manifest),
            self.log,
            clock=lambda: self.now_s,
            evaluate=self.evaluate,
            options=self.options,
        )
        await self.engine.start()

    async def reboot(self, downtime_s: float = 0.0) -> None:
        """As after kill -9: nothing in memory survives."""
        self.database.close()
        self.now_s += downtime_s
        await self.boot()

    async def pass_time(self, seconds: float, *, heard: Iterable[Member] = ()) -> None:
        """Let time go by; of all members only these are heard of afterwards."""
        self.now_s += seconds
        for member in heard:
            await member.beat()
        await self.engine.tick()

    def enrol(
        self, seed: int, *, anchor: bool = False, public: bool = False, donor: int | None = None
    ) -> Member:
        """A device, which works for itself or for the device with the seed ``donor``."""
        member = Member(self, Identity.from_seed(seed.to_bytes(32, "big")))
        vouched = Identity.from_seed((donor or seed).to_bytes(32, "big")).peer_id
        addresses = [f"/ip4/127.0.0.1/tcp/{4000 + seed}"] if anchor or public else []
        with self.database.session() as session:
            session.add(
                WorkerRow(
                    worker=member.name,
                    donor=vouched,
                    device_class="cpu",
                    anchor=anchor,
                    client_mode=not (anchor or public),
                    multiaddrs=json.dumps(addresses),
                    enrolled_at_s=self.now_s,
                    last_seen_s=self.now_s,
                )
            )
            leaf = EnrolLeaf(
                run_id=self.run_id.hex(),
                at_s=int(self.now_s),
                worker=member.name,
                donor=vouched,
                device_class="cpu",
            )
            self.log.append(session, [leaf])
        self.members[member.name] = member
        return member

    def block(self, key: str, reason: str) -> None:
        """As the organiser does."""
        with self.database.session() as session:
            blocks = BlockList(self.log, self.run_id, session, self.now_s)
            blocks.block(key, reason, source=ORGANISER, word="organiser")

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[AsyncIterator[service_pb2.RunEvent]]:
        async with self.engine.subscribe("watcher") as events:
            yield events

    async def snapshot(self) -> dict[str, wire.Envelope]:
        """Head, roster and inclusion set as a newcomer hears them."""
        found: dict[str, wire.Envelope] = {}
        wanted = 1
        async with self.engine.subscribe("newcomer") as events:
            head = await self.engine.hello_head()
            assert head.payload
            roster, inclusion = self.stored_roster()
            wanted += (roster is not None) + (inclusion is not None)
            async for event in events:
                kind = event.WhichOneof("event")
                found[kind] = getattr(event, kind)
                if len(found) == wanted:
                    return found
        raise AssertionError("the stream ended early")

    def stored_roster(self) -> tuple[wire.Envelope | None, wire.Envelope | None]:
        from coordinator.turn import Turn, current_roster

        with self.database.session() as session:
            turn = Turn(self.engine.context, session, self.now_s)
            row = current_roster(session, turn.reducing.machine)
            if row is None:
                return None, None
            inclusion = row.inclusion and wire.Envelope.FromString(row.inclusion)
            return wire.Envelope.FromString(row.envelope), inclusion or None

    def phase(self) -> str:
        from coordinator.opening import running_round

        with self.database.session() as session:
            return running_round(session).phase

    def roster(self) -> tuple[wire.Roster, bytes]:
        envelope, _ = self.stored_roster()
        assert envelope is not None, f"no roster in phase {self.phase()}"
        signed = open_envelope(envelope, wire.Roster, signer=self.keys.round.peer_id)
        return signed.record, signed.digest[:20]

    async def gather(
        self, complete: Iterable[Member] | None = None, only: Iterable[Member] | None = None
    ) -> None:
        """Every reducer (or ``only`` these) reports ``complete`` (or all) members."""
        roster, group_id = self.roster()
        names = {m.name for m in complete} if complete is not None else None
        for share in roster.reducers:
            if only is not None and share.reducer not in {m.name for m in only}:
                continue
            reducer = self.members[share.reducer]
            report = wire.ReducerReport(
                run_id=self.run_id,
                round=roster.round,
                attempt=roster.attempt,
                group_id=group_id,
                reducer=reducer.name,
                revision=1,
                outcomes=[
                    wire.GatherOutcome(
                        worker=m.worker,
                        complete=names is None or m.worker in names,
                        statement=self.statement(roster, group_id, share, m.worker),
                    )
                    for m in roster.members
                ],
            )
            await self.engine.reducer_report(reducer.sign(report))

    def statement(
        self, roster: wire.Roster, group_id: bytes, share: wire.ReducerRange, sender: str
    ) -> wire.Envelope:
        member = self.members[sender]
        assert member.update is not None
        frames = b"".join(member.update.chunks[share.first_chunk : share.end_chunk])
        record = wire.GatherStatement(
            group_id=group_id,
            attempt=roster.attempt,
            sender=sender,
            reducer=share.reducer,
            first_chunk=share.first_chunk,
            end_chunk=share.end_chunk,
            frames_sha256=hashlib.sha256(frames).digest(),
        )
        return seal(record, member.identity)

    def results(self, *, bend: float = 0.0) -> list[service_pb2.ResultPiece]:
        """What honest reducers would send (``bend`` adds to every value of the mean)."""
        roster, group_id = self.roster()
        _, envelope = self.stored_roster()
        assert envelope is not None, f"no inclusion set in phase {self.phase()}"
        included = set(open_envelope(envelope, wire.InclusionSet).record.members)
        members = [m for m in roster.members if m.worker in included]
        return [
            self._result(roster, group_id, share, chunk, members, bend)
            for share in roster.reducers
            for chunk in range(share.first_chunk, share.end_chunk)
        ]

    def _result(
        self,
        roster: wire.Roster,
        group_id: bytes,
        share: wire.ReducerRange,
        chunk: int,
        members: list[wire.RosterMember],
        bend: float,
    ) -> service_pb2.ResultPiece:
        codec = self.manifest.update.codec
        inputs = []
        for member in members:
            update = self.members[member.worker].update
            assert update is not None
            assert update.root == member.commitment_root
            inputs.append(decode_chunk(codec, update.chunks[chunk], self.layout.chunk_size(chunk)))
        weights = [m.weight for m in members]
        mean = combine_chunk(self.manifest.update.combine, inputs, weights) + np.float32(bend)
        key = noise_key(self.run_id, roster.round, chunk, MEAN_SOURCE)
        encoded = encode_chunk(codec, mean, key)
        record = wire.ResultChunk(
            group_id=group_id,
            attempt=roster.attempt,
            chunk=chunk,
            sha256=hashlib.sha256(encoded).digest(),
            reducer=share.reducer,
        )
        reducer = self.members[share.reducer].identity
        return service_pb2.ResultPiece(result=seal(record, reducer), encoded=encoded)

    async def submit(
        self, pieces: Iterable[service_pb2.ResultPiece]
    ) -> service_pb2.SubmitResultsReply:
        async def stream() -> AsyncIterator[service_pb2.ResultPiece]:
            for piece in pieces:
                yield piece

        return await self.engine.add_results(stream())

    async def play_round(self, *workers: Member) -> None:
        """A whole honest round."""
        for worker in workers:
            await worker.lease()
        for worker in workers:
            worker.train()
            await worker.commit()
        await self.gather()
        await self.submit(self.results())
        assert await self.engine.settle()
        await self.engine.evaluate()

    def head(self) -> wire.RunHead:
        from coordinator.opening import running_round

        with self.database.session() as session:
            envelope = wire.Envelope.FromString(running_round(session).head)
        return open_envelope(envelope, wire.RunHead, signer=self.keys.round.peer_id).record

    def board(self) -> Board:
        """The audit of the public record: folding it refuses every contradiction."""
        board = Board()
        with self.database.session() as session:
            for data in read_leaves(session, 0, tree_size(session)):
                board.apply(data)
        board.check_merged()
        return board


def _reach(row: WorkerRow) -> dict[str, Any]:
    """How a device says that it can be reached: as it did when it enrolled."""
    return {"multiaddrs": json.loads(row.multiaddrs), "client_mode": row.client_mode}
