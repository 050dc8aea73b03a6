"""Hostile requests against the real service, in every phase of a round; then the round goes on.

Each call gets bytes that are no message, envelopes around rubbish, well-signed rubbish, and records
that are right but for a few fields. Whatever comes, the answer is one of our own sentences, nothing
is logged as a failure of ours, nothing wrong is kept, and the honest members' round settles.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import math
import secrets
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.admission import Admission, AdmissionPolicy
from coordinator.audit.challenges import open_challenges
from coordinator.blobs import BlobIndex
from coordinator.checkpoints import CheckpointStore
from coordinator.context import EngineOptions
from coordinator.grpc_status import ErrorInterceptor
from coordinator.requests import Rate, RequestGuard
from coordinator.schema import AssignmentRow, ContributionRow, EvidenceRow, WorkerRow
from coordinator.server import _OPTIONS
from coordinator.service import CoordinatorService, Greeting
from coordinator.turn import Turn
from ledger.authority import store_delegations
from ledger.sources import DatabaseSource
from ledger.verify import verify
from protocol.envelope import open_envelope, payload_type, pre_authentication_encoding, seal
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api
from protocol.wire.service_pb2_grpc import CoordinatorStub, add_CoordinatorServicer_to_server

OURS = {
    grpc.StatusCode.INVALID_ARGUMENT: {"BAD_RECORD", "BAD_DIGEST"},
    grpc.StatusCode.UNAUTHENTICATED: {"BAD_SIGNATURE"},
    grpc.StatusCode.ALREADY_EXISTS: {"CONFLICT"},
    grpc.StatusCode.NOT_FOUND: {"NOT_FOUND", "UNKNOWN_RUN"},
    grpc.StatusCode.PERMISSION_DENIED: {"NOT_ENROLLED"},
    grpc.StatusCode.FAILED_PRECONDITION: {"USAGE", "TOO_LATE", "UPGRADE_NEEDED", "STALE"},
    grpc.StatusCode.UNAVAILABLE: {"UNAVAILABLE"},
    grpc.StatusCode.RESOURCE_EXHAUSTED: {"RATE_LIMITED"},
}
"""Everything that a stranger may hear, and nothing else: no UNKNOWN, no INTERNAL."""

SIGNED = {
    "Enrol": wire.Enrolment,
    "RequestWork": wire.WorkRequest,
    "Commit": wire.Contribution,
    "ReducerReport": wire.ReducerReport,
    "Report": wire.Report,
    "Heartbeat": wire.Heartbeat,
    "Watch": wire.WatchRequest,
    "AnswerChallenge": wire.ChallengeAnswer,
    "SubmitScreening": wire.Screening,
    "Appeal": wire.Appeal,
}
ACTS = {
    kind.DESCRIPTOR.name: kind
    for kind in (
        *(wire.Pledge, wire.Voiding, wire.TeamFounding, wire.TeamMembership, wire.KeyChange),
        *(wire.AccountMerge, wire.ProfileUpdate, wire.CampaignTerms, wire.Donation),
    )
}
"""Records of the call Act, by name."""

KINDS = {**SIGNED, **ACTS}
PLAIN = {
    "Hello": api.HelloRequest,
    "GetState": api.GetStateRequest,
    "GetShard": api.GetShardRequest,
    "GetReceipt": api.GetReceiptRequest,
    "SubmitResults": api.ResultPiece,
    "GetAudit": api.GetAuditRequest,
}
STREAMS = {"Watch", "GetState", "GetShard", "GetAudit"}
NAMES_THE_SIGNER = {
    **dict.fromkeys(("ReducerReport", "SubmitScreening"), "reducer"),
    **dict.fromkeys(("Pledge", "TeamMembership", "AccountMerge", "ProfileUpdate"), "donor"),
    **{"TeamFounding": "founder", "KeyChange": "old", "Donation": "donor"},
}

NUMBERS = [0, 1, 2, 255, 2**31 - 1, 2**31, 2**32 - 1]
LARGE = [*NUMBERS, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
TEXTS = [
    *("", "\0", "x" * 300, "../../etc/passwd", "\u202e\u200b", "Robert'); DROP TABLE workers;--"),
    *("\N{PILE OF POO}" * 2000, "/ip4/127.0.0.1/tcp/1", "12D3KooW" + "1" * 44, "fp32", "cuda"),
]
TOKENIZER = b"{}"
BYTES = [b"", b"\0", b"\xff" * 20, bytes(16), bytes(32), b"\x01" * 32, bytes(100_000)]
BYTES.append(hashlib.sha256(TOKENIZER).digest())  # a file that can be had
DOUBLES = [0.0, -0.0, -1.0, 5e-324, 1e308, math.inf, -math.inf, math.nan]
VALUES: dict[int, list[Any]] = {
    FieldDescriptor.TYPE_UINT32: NUMBERS,
    FieldDescriptor.TYPE_UINT64: LARGE,
    FieldDescriptor.TYPE_DOUBLE: DOUBLES,
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_BOOL: [False, True],
    FieldDescriptor.TYPE_ENUM: [0, 1, 7, 99, -1, 2**31 - 1],
}


def bend(data: st.DataObject, record: Any) -> None:
    """Give one field of a record, at whatever depth, a value that somebody might try."""
    field = data.draw(st.sampled_from(list(record.DESCRIPTOR.fields)), label="field")
    if field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated:
        if data.draw(st.booleans(), label="drop"):
            record.ClearField(field.name)
        else:
            bend(data, getattr(record, field.name))
        return
    if field.is_repeated:
        held = getattr(record, field.name)
        if not held or data.draw(st.booleans(), label="drop"):
            record.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and data.draw(st.booleans()):
            bend(data, held[data.draw(st.integers(0, len(held) - 1))])
        else:
            held.extend(copy.deepcopy(list(held)) * 20)
        return
    setattr(record, field.name, data.draw(st.sampled_from(VALUES[field.type]), label="value"))


class Target:
    """An engine's rig behind a real gRPC server, and who asks."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.ada, self.bob = rig.enrol(2), rig.enrol(3)
        self.anchor = rig.enrol(1, anchor=True)
        self.mallory = rig.enrol(4, public=True)
        self.stranger = Identity.from_seed(b"s" * 32)
        self.round_key_of_another_run = Identity.from_seed(b"r" * 32)
        with rig.database.session() as session:
            store_delegations(session, rig.keys.delegations)
        (rig.folder / "tokenizer.json").write_bytes(TOKENIZER)

    async def serve(self) -> None:
        rig, clock = self.rig, lambda: self.rig.now_s
        fast = Rate(1e6, 10**6)
        policy = AdmissionPolicy(rig.run_id, "0.1.0", frozenset({self.anchor.name}))
        dataset = rig.engine.context.dataset
        self.service = CoordinatorService(
            engine=rig.engine,
            database=rig.database,
            guard=RequestGuard(rig.run_id, clock, per_key=fast, per_address=fast),
            admission=Admission(rig.database, rig.log, rig.keys.round, policy, clock),
            blobs=BlobIndex(
                rig.folder, dataset, CheckpointStore(str(rig.folder / "blobs"), rig.manifest)
            ),
            greeting=Greeting(
                rig.manifest.canonical(), tuple(rig.keys.delegations), (), "0.1.0", ""
            ),
            clock=clock,
        )
        self.server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=_OPTIONS)
        add_CoordinatorServicer_to_server(self.service, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = CoordinatorStub(self.channel)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop(0)

    # ---- records that are right, to begin with ----

    def honest(self, call: str) -> Any:
        """A record of mallory's that may well be accepted as it is."""
        rig, name = self.rig, self.mallory.name
        fresh = wire.Freshness(sent_at_ms=int(rig.now_s * 1000), nonce=secrets.token_bytes(16))
        mine = {"run_id": rig.run_id, "worker": name}
        roster, group = self._roster()
        match call:
            case "Enrol":
                return wire.Enrolment(
                    **mine,
                    donor=name,
                    client_version="0.1.0",
                    device=wire.Device(device_class="cpu", name="laptop", threads=2),
                    display_name="Mallory",
                    multiaddrs=["/ip4/127.0.0.1/tcp/4004"],
                    freshness=fresh,
                )
            case "RequestWork":
                return wire.WorkRequest(**mine, tokens_per_s=10.0, freshness=fresh)
            case "Commit":
                return self.mallory.contribution()
            case "ReducerReport":
                return wire.ReducerReport(
                    run_id=rig.run_id,
                    round=roster.round,
                    attempt=roster.attempt,
                    group_id=group,
                    reducer=name,
                    revision=7,
                    outcomes=[wire.GatherOutcome(worker=name), wire.GatherOutcome(worker="x")],
                )
            case "Report":
                return wire.Report(
                    **mine, round=roster.round, attempt=roster.attempt, state_digest=bytes(32)
                )
            case "Heartbeat":
                return wire.Heartbeat(
                    **mine,
                    assignment_id=self.mallory.assignment.assignment_id,
                    steps_done=1,
                    multiaddrs=["/ip4/127.0.0.1/tcp/4004"],
                    freshness=fresh,
                )
            case "Watch":
                return wire.WatchRequest(**mine, freshness=fresh)
            case "AnswerChallenge":
                asked = self._challenge()
                return wire.ChallengeAnswer(
                    **mine,
                    challenge_id=asked.challenge_id,
                    projections=bytes(256 * (asked.end_chunk - asked.first_chunk)),
                )
            case "SubmitScreening":
                share = next((r for r in roster.reducers if r.reducer == name), wire.ReducerRange())
                values = bytes(4 * len(roster.members) * (share.end_chunk - share.first_chunk))
                return wire.Screening(
                    run_id=rig.run_id,
                    group_id=group,
                    attempt=roster.attempt,
                    reducer=name,
                    first_chunk=share.first_chunk,
                    end_chunk=share.end_chunk,
                    members=len(roster.members),
                    norms=values,
                    cosines=values,
                )
            case "Appeal":
                assignment_id = self.mallory.assignment.assignment_id
                return wire.Appeal(**mine, assignment_id=assignment_id, freshness=fresh)
            case _ if call in ACTS:
                return self._act(call, fresh)
            case "GetAudit":
                return api.GetAuditRequest(run_id=rig.run_id, round=0, worker=self.ada.name)
            case "SubmitResults":
                chunk = wire.ResultChunk(
                    group_id=group, attempt=roster.attempt, sha256=bytes(32), reducer=name
                )
                return api.ResultPiece(result=seal(chunk, self.mallory.identity), encoded=b"x")
            case "Hello":
                return api.HelloRequest(client_version="0.1.0", run_id=rig.run_id)
            case "GetState":
                head = rig.head()
                return api.GetStateRequest(
                    run_id=rig.run_id, state_digest=head.state_digest, part=1, offset=9
                )
            case "GetShard":
                return api.GetShardRequest(run_id=rig.run_id, sha256=rig.head().weights_sha256)
        return api.GetReceiptRequest(
            run_id=rig.run_id, assignment_id=self.mallory.assignment.assignment_id
        )

    def _act(self, kind: str, fresh: wire.Freshness) -> Any:
        """Something that mallory may do besides training; the last two it may not."""
        rig, name = self.rig, self.mallory.name
        mine = {"run_id": rig.run_id, "donor": name}
        own = {"run_id": rig.run_id, "campaign": rig.run_id[:16]}
        drawn = secrets.token_bytes(16)
        match kind:
            case "Pledge":
                return wire.Pledge(
                    **mine,
                    campaign=rig.run_id[:16],
                    pledge=drawn,
                    microcredits=5,
                    until_s=int(rig.now_s) + 1000,
                    visibility=wire.VISIBILITY_PUBLIC,
                    salt=drawn,
                )
            case "Voiding":
                return wire.Voiding(run_id=rig.run_id, leaf=5, reason="mistake", salt=drawn)
            case "TeamFounding":
                return wire.TeamFounding(run_id=rig.run_id, team=drawn, founder=name)
            case "TeamMembership":
                return wire.TeamMembership(**mine, team=drawn, freshness=fresh)
            case "KeyChange" | "AccountMerge":
                # The consent is another's: mallory's key stays its own while the test goes on.
                into = self.stranger.peer_id
                consent = wire.KeyConsent(run_id=rig.run_id, of=self.ada.name, into=into)
                given = {"consent": seal(consent, self.stranger)}
                if kind == "KeyChange":
                    return wire.KeyChange(run_id=rig.run_id, old=name, new=into, **given)
                return wire.AccountMerge(**mine, into=into, **given)
            case "ProfileUpdate":
                return wire.ProfileUpdate(**mine, display_name="Mallory", freshness=fresh)
            case "CampaignTerms":
                return wire.CampaignTerms(**own, title="mine", goal_microcredits=1)
        return wire.Donation(
            **own, donation=drawn, amount_minor=1, currency="EUR", reference="x", salt=drawn
        )

    def _challenge(self) -> api.Challenge:
        """What mallory is asked to show; else what somebody else is, or nobody."""
        with self.rig.database.session() as session:
            turn = Turn(self.rig.engine.context, session, self.rig.now_s)
            for member in (self.mallory, self.anchor, self.ada):
                asked = open_challenges(turn, member.name)
                if asked:
                    return asked[0]
        return api.Challenge(challenge_id=bytes(16), end_chunk=1)

    def _roster(self) -> tuple[wire.Roster, bytes]:
        envelope, _ = self.rig.stored_roster()
        if envelope is None:
            return wire.Roster(), bytes(20)
        signed = open_envelope(envelope, wire.Roster)
        return signed.record, signed.digest[:20]

    # ---- asking ----

    async def ask(self, call: str, request: Any) -> str:
        """Make a call; the reason it was refused for, or nothing.

        Bytes go as they are. An answer that is not ours fails the test.
        """
        call = "Act" if call in ACTS else call
        kind = api.DESCRIPTOR.services_by_name["Coordinator"].methods_by_name[call].output_type
        parse = getattr(api, kind.name).FromString
        path = f"/barnraise.v1.Coordinator/{call}"
        write = (
            (lambda data: data) if isinstance(request, bytes) else type(request).SerializeToString
        )
        try:
            if call == "SubmitResults":
                many = self.channel.stream_unary(path, write, parse)
                await many(iter([request]), timeout=20)
            elif call in STREAMS:
                stream = self.channel.unary_stream(path, write, parse)(request, timeout=20)
                await stream.read()
                stream.cancel()
            else:
                await self.channel.unary_unary(path, write, parse)(request, timeout=20)
        except grpc.aio.AioRpcError as error:
            assert error.code() in OURS, f"{call}: {error.code()} {error.details()}"
            info = error_details_pb2.ErrorInfo()
            assert rpc_status.from_call(error).details[0].Unpack(info)
            assert info.reason in OURS[error.code()]
            assert error.details()
            return str(info.reason)
        return ""

    async def pass_time(self, seconds: float) -> None:
        """Time in which the anchor is heard of."""
        self.rig.now_s += seconds
        await self.anchor.beat(client_mode=False, multiaddrs=["/ip4/127.0.0.1/tcp/4001"])
        await self.rig.engine.tick()
        await self.rig.engine.tick()

    def check(self) -> None:
        """Nothing wrong was kept."""
        rig, manifest = self.rig, self.rig.manifest
        with rig.database.session() as session:
            for row in session.scalars(select(ContributionRow)):
                signed = open_envelope(wire.Envelope.FromString(row.envelope), wire.Contribution)
                record = signed.record
                lease = session.get_one(AssignmentRow, row.assignment_id)
                given = open_envelope(
                    wire.Envelope.FromString(lease.envelope), wire.Assignment
                ).record
                assert signed.signer == record.worker == lease.worker == given.worker
                assert (record.run_id, record.round) == (rig.run_id, given.round)
                assert record.state_digest == given.state_digest
                assert (record.epoch, record.start_sequence) == (given.epoch, given.start_sequence)
                assert 1 <= record.steps <= given.steps
                assert record.tokens == row.tokens == record.steps * manifest.tokens_per_step
                assert 0 <= record.update_norm < math.inf
                assert 0 <= record.mean_loss < math.inf
                assert len(record.commitment_root) == 32
            honest = {self.ada.name, self.bob.name, self.anchor.name}
            for accused in session.scalars(select(EvidenceRow.signer)):
                assert accused not in honest
            for worker in session.scalars(select(WorkerRow)):
                assert worker.anchor == (worker.worker == self.anchor.name)
                assert worker.donor


@pytest.fixture
def served(
    engine_rig: ModuleType, make_manifest: Callable[..., Any], tmp_path: Path
) -> Iterator[tuple[asyncio.Runner, Target]]:
    """A started server in a loop of its own, that hypothesis' examples share."""
    # Sizes small enough that a request is bounded by its checks and not by its vectors.
    made = engine_rig.Rig(
        tmp_path,
        make_manifest(
            tokenizer_sha256=hashlib.sha256(TOKENIZER).hexdigest(),
            round={"min_members": 2},
            update={"chunk_elements": 1 << 14},
            verification={"probation_steps": 0, "reducer_passes": 0},
        ),
        options=EngineOptions(),
    )
    with asyncio.Runner() as runner:
        runner.run(made.boot())
        target = Target(made)
        runner.run(target.serve())
        yield runner, target
        runner.run(target.stop())
        made.database.close()


def requests(data: st.DataObject, target: Target) -> tuple[str, Any]:
    """A call with something hostile for it."""
    call = data.draw(st.sampled_from([*KINDS, *PLAIN]), label="call")
    attack = data.draw(st.sampled_from(["bytes", "rubbish", "bent", "bent", "bent"]), label="how")
    if attack == "bytes":
        return call, data.draw(st.binary(max_size=64), label="bytes")
    record = target.honest(call)
    if call in PLAIN:
        bend(data, record)
        return call, record
    signer = data.draw(
        st.sampled_from([target.mallory.identity, target.mallory.identity, target.stranger]),
        label="signer",
    )
    if attack == "rubbish":
        rubbish = sign_bytes(data.draw(st.binary(max_size=200)), KINDS[call], signer)
        return call, with_chunks(data, call, rubbish)
    if data.draw(st.booleans(), label="as itself"):
        if call not in ("Voiding", "CampaignTerms"):
            setattr(record, NAMES_THE_SIGNER.get(call, "worker"), signer.peer_id)
        if call == "Enrol":
            record.donor = signer.peer_id
    for _ in range(data.draw(st.integers(1, 3), label="fields")):
        bend(data, record)
    envelope = seal(record, signer)
    if data.draw(st.integers(0, 9), label="envelope") == 0:
        bend(data, envelope)
    return call, with_chunks(data, call, envelope)


def with_chunks(data: st.DataObject, call: str, envelope: wire.Envelope) -> Any:
    """An answer to a challenge comes with chunks beside it."""
    if call != "AnswerChallenge":
        return envelope
    request = api.AnswerChallengeRequest(answer=envelope)
    for _ in range(data.draw(st.integers(0, 2), label="chunks")):
        chunk = wire.OpenedChunk(chunk=1, encoded=b"x" * 64, proof=[bytes(32)], member="x")
        bend(data, chunk)
        request.chunks.append(chunk)
    return request


def sign_bytes(payload: bytes, kind: type[Any], signer: Identity) -> wire.Envelope:
    name = payload_type(kind)
    signature = signer.sign(pre_authentication_encoding(name, payload))
    return wire.Envelope(
        payload=payload,
        payload_type=name,
        signatures=[wire.Signature(sig=signature, keyid=signer.peer_id)],
    )


def attack(runner: asyncio.Runner, target: Target, examples: int) -> set[str]:
    """Hostile requests of every kind; what they were refused for."""
    heard: set[str] = set()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        asked = [requests(data, target) for _ in range(5)]
        for call, request in asked:
            heard.add(runner.run(target.ask(call, request)))

    ask()
    target.check()
    return heard


@pytest.mark.timeout(400)
def test_hostile_requests_change_nothing_in_any_phase(
    served: tuple[asyncio.Runner, Target], caplog: pytest.LogCaptureFixture
) -> None:
    runner, target = served
    rig, ada, bob = target.rig, target.ada, target.bob
    run: Callable[[Awaitable[Any]], Any] = runner.run
    heard: set[str] = set()
    with structlog.testing.capture_logs() as logs:
        for member in (ada, bob, target.mallory):
            run(member.lease())
            member.train()
        heard |= attack(runner, target, 35)
        assert rig.phase() == "TRAINING"
        for member in (ada, bob):
            run(member.commit())
        run(target.pass_time(20.0))
        assert rig.phase() == "GATHER"
        heard |= attack(runner, target, 35)
        assert rig.phase() == "GATHER"
        # The public reducer of the first attempt stays silent; the anchor has the second alone.
        run(rig.gather(complete=[ada, bob], only=[target.anchor]))
        run(target.pass_time(70.0))
        run(rig.gather(complete=[ada, bob]))
        if rig.phase() == "GATHER":  # mallory was let in by a record with nothing wrong in it
            run(target.pass_time(70.0))
        assert rig.phase() == "BROADCAST"
        heard |= attack(runner, target, 35)
        assert not run(rig.submit(rig.results())).missing
        assert run(rig.engine.settle())
        while run(rig.engine.evaluate()):
            pass
        while run(rig.engine.audit()):
            pass
        heard |= attack(runner, target, 35)
        while run(rig.engine.audit()):
            pass
        unknown = target.honest("RequestWork")
        unknown.worker = target.stranger.peer_id
        heard.add(run(target.ask("RequestWork", seal(unknown, target.stranger))))
    failures = [entry for entry in logs if entry["log_level"] in ("error", "critical")]
    assert failures == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert heard >= {"", "BAD_RECORD", "BAD_SIGNATURE", "UNKNOWN_RUN", "NOT_ENROLLED", "NOT_FOUND"}
    with Session(rig.database.engine) as session:
        report = verify(DatabaseSource(session), root=rig.manifest.root)
    assert report.rounds == 1
    assert rig.head().settled_rounds == 1
