"""The API over real TLS, with real records, on loopback."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sqlalchemy import select

from coordinator.admission import forget_addresses
from coordinator.checkpoints import WEIGHTS
from coordinator.schema import StateRow, WorkerRow
from coordinator.server import SERVICE_NAME, start_server
from ledger.log import latest_head, read_leaves
from ledger.records import EnrolLeaf, parse_leaf
from ledger.schema import Profile
from protocol.certificate import TLS_NAME
from protocol.envelope import open_envelope, seal
from protocol.errors import BadSignature, UsageError
from protocol.hello import UPGRADE_COMMAND
from protocol.identity import Identity
from protocol.limits import MAX_PIECE_BYTES
from protocol.trust import TrustStore
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api


@pytest.fixture
async def client(served: Any) -> AsyncIterator[Any]:
    async with served.client() as made:
        yield made


@pytest.fixture
def refused(run_rig: ModuleType) -> Callable[..., Any]:
    """``await refused(call, code, reason)``: the call fails so; gives back the sentence."""

    async def check(call: Any, code: grpc.StatusCode, reason: str) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert (caught.value.code(), run_rig.reason(caught.value)) == (code, reason)
        return caught.value.details()

    return check


async def test_hello_tells_everything_a_newcomer_needs(served: Any, client: Any) -> None:
    reply = await client.hello()
    assert hashlib.sha256(reply.manifest).digest() == served.link.run_id
    assert reply.client_supported
    assert abs(reply.server_time_ms / 1000 - time.time()) < 5
    trust = TrustStore(served.link.run_id, served.link.root)
    trust.add(reply.delegations, reply.revocations)
    head = open_envelope(reply.run_head, wire.RunHead)
    trust.require_signer(wire.KEY_PURPOSE_ROUND, head.signer, time.time())
    assert (head.record.run_id, head.record.settled_rounds) == (served.link.run_id, 0)
    assert list(reply.anchors) == []


async def test_hello_to_an_old_client_says_what_to_do(client: Any) -> None:
    reply = await client.stub.Hello(
        api.HelloRequest(client_version="0.0.9", run_id=client.link.run_id)
    )
    assert not reply.client_supported
    assert reply.advice == f"run '{UPGRADE_COMMAND}'"


async def test_another_run_is_not_found(client: Any, refused: Any) -> None:
    hello = client.stub.Hello(api.HelloRequest(client_version="0.1.0", run_id=b"x" * 32))
    sentence = await refused(hello, grpc.StatusCode.NOT_FOUND, "UNKNOWN_RUN")
    assert "ask the organiser" in sentence
    await refused(client.enrol(run_id=b"x" * 32), grpc.StatusCode.NOT_FOUND, "UNKNOWN_RUN")


async def test_a_link_with_another_root_is_not_believed(served: Any, run_rig: ModuleType) -> None:
    forged = replace(served.link, root=Identity.generate().peer_id)
    with pytest.raises(BadSignature, match="not vouched for"):
        await run_rig.fetch_pem(forged)


async def test_enrolling_is_recorded_once(served: Any, client: Any) -> None:
    first, again = await client.enrol(display_name="A\u202eda"), await client.enrol()
    admission = open_envelope(
        first.admission, wire.Admission, signer=served.run.keys.round.peer_id
    ).record
    assert admission.worker == client.identity.peer_id
    assert admission.not_after_s > time.time()
    assert (first.message, again.message) == ("welcome", "welcome back")
    with served.database.session() as session:
        head = latest_head(session)
        assert head is not None
        leaves = [parse_leaf(data) for data in read_leaves(session, 0, head.tree_size)]
        assert [leaf.kind for leaf in leaves] == ["run", "delegation", "delegation", "enrol"]
        assert isinstance(leaves[3], EnrolLeaf)
        assert leaves[3].worker == client.identity.peer_id
        assert session.get_one(Profile, client.identity.peer_id).display_name == "Ada"


async def test_a_donor_vouches_for_its_device(client: Any, refused: Any) -> None:
    donor = Identity.generate()

    def delegation(worker: str, not_after_s: float) -> wire.Envelope:
        record = wire.DeviceDelegation(
            donor=donor.peer_id, worker=worker, not_after_s=int(not_after_s)
        )
        return seal(record, donor)

    me, later = client.identity.peer_id, time.time() + 60
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    await refused(client.enrol(donor=donor.peer_id), unauthenticated, "BAD_SIGNATURE")
    await refused(
        client.enrol(donor=donor.peer_id, device_delegation=delegation(me, 1)),
        unauthenticated,
        "BAD_SIGNATURE",
    )
    await refused(
        client.enrol(donor=donor.peer_id, device_delegation=delegation("other", later)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "BAD_RECORD",
    )
    reply = await client.enrol(donor=donor.peer_id, device_delegation=delegation(me, later))
    assert reply.admitted
    sentence = await refused(client.enrol(), grpc.StatusCode.FAILED_PRECONDITION, "USAGE")
    assert donor.peer_id in sentence


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"client_version": "0.0.1"}, grpc.StatusCode.FAILED_PRECONDITION, "UPGRADE_NEEDED"),
        ({"client_version": ""}, grpc.StatusCode.FAILED_PRECONDITION, "UPGRADE_NEEDED"),
        ({"anchor": True}, grpc.StatusCode.FAILED_PRECONDITION, "USAGE"),
        ({"display_name": "x" * 65}, grpc.StatusCode.INVALID_ARGUMENT, "BAD_RECORD"),
        ({"device": wire.Device()}, grpc.StatusCode.INVALID_ARGUMENT, "BAD_RECORD"),
        ({"multiaddrs": ["/ip4/1.2.3.4"] * 17}, grpc.StatusCode.INVALID_ARGUMENT, "BAD_RECORD"),
        ({"multiaddrs": ["/ip4/\n"]}, grpc.StatusCode.INVALID_ARGUMENT, "BAD_RECORD"),
        (
            {"multiaddrs": ["/ip4/1.2.3.4/tcp/1/p2p/12D3KooWsomebodyelse"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "BAD_RECORD",
        ),
    ],
)
async def test_enrolments_that_are_refused(
    client: Any, served: Any, refused: Any, fields: Any, code: Any, reason: str
) -> None:
    await refused(client.enrol(**fields), code, reason)
    with served.database.session() as session:
        assert session.scalars(select(WorkerRow)).all() == []


async def test_the_listed_anchor_becomes_known(served: Any) -> None:
    anchor = Identity.load(served.run.folder.keys / "anchor.key")
    address = "/ip4/127.0.0.1/tcp/4001"
    async with served.client(anchor) as client:
        await client.enrol(anchor=True, client_mode=False, multiaddrs=[address])
        reply = await client.hello()
        assert list(reply.anchors) == [f"{address}/p2p/{anchor.peer_id}"]
        # It goes down with the server, and comes back on another port.
        await served.database.run(lambda session: forget_addresses(session, anchor.peer_id))
        reply = await client.hello()
    assert not reply.anchors


async def test_a_request_is_answered_once(client: Any, refused: Any) -> None:
    request = seal(client.enrolment(), client.identity)
    await client.stub.Enrol(request)
    sentence = await refused(
        client.stub.Enrol(request), grpc.StatusCode.INVALID_ARGUMENT, "BAD_RECORD"
    )
    assert "answered before" in sentence


@pytest.mark.parametrize("age_s", [121.0, -121.0])
async def test_a_stale_request_is_refused(client: Any, refused: Any, age_s: float) -> None:
    sentence = await refused(
        client.enrol(freshness=client.freshness(age_s=age_s)),
        grpc.StatusCode.FAILED_PRECONDITION,
        "STALE",
    )
    assert "clock" in sentence


async def test_a_tampered_record_is_refused(client: Any, refused: Any) -> None:
    request = client.work_request()
    request.payload = request.payload[:-1] + bytes([request.payload[-1] ^ 1])
    await refused(
        client.stub.RequestWork(request), grpc.StatusCode.UNAUTHENTICATED, "BAD_SIGNATURE"
    )
    stranger = seal(
        wire.WorkRequest(
            run_id=client.link.run_id,
            worker=client.identity.peer_id,
            freshness=client.freshness(),
        ),
        Identity.generate(),
    )
    await refused(
        client.stub.RequestWork(stranger), grpc.StatusCode.UNAUTHENTICATED, "BAD_SIGNATURE"
    )


async def test_work_is_for_enrolled_devices(client: Any, refused: Any) -> None:
    denied = grpc.StatusCode.PERMISSION_DENIED
    await refused(client.stub.RequestWork(client.work_request()), denied, "NOT_ENROLLED")
    await refused(client.watch().read(), denied, "NOT_ENROLLED")
    await client.enrol()
    reply = await client.stub.RequestWork(client.work_request())
    assignment = open_envelope(reply.assignment, wire.Assignment).record
    assert assignment.worker == client.identity.peer_id


async def test_watch_begins_with_the_head_and_ends_with_the_server(
    served: Any, client: Any, refused: Any
) -> None:
    await client.enrol()
    stream = client.watch()
    event = await stream.read()
    assert open_envelope(event.run_head, wire.RunHead).record.round == event.round == 0
    served.bound.service.end_streams()
    await refused(stream.read(), grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


async def _collect(stream: Any) -> tuple[bytes, list[api.Piece]]:
    pieces = [piece async for piece in stream]
    return b"".join(piece.data for piece in pieces), pieces


async def test_the_state_comes_in_pieces_and_resumes(served: Any, client: Any) -> None:
    head = open_envelope((await client.hello()).run_head, wire.RunHead).record

    def ask(part: Any, offset: int = 0) -> Any:
        return client.stub.GetState(
            api.GetStateRequest(
                run_id=head.run_id, state_digest=head.state_digest, part=part, offset=offset
            )
        )

    whole, pieces = await _collect(ask(api.STATE_PART_WEIGHTS))
    assert hashlib.sha256(whole).digest() == head.weights_sha256
    assert {piece.total_bytes for piece in pieces} == {head.weights_bytes}
    assert max(len(piece.data) for piece in pieces) <= MAX_PIECE_BYTES
    rest, _ = await _collect(ask(api.STATE_PART_WEIGHTS, 1000))
    assert rest == whole[1000:]
    momentum, _ = await _collect(ask(api.STATE_PART_MOMENTUM))
    assert hashlib.sha256(momentum).digest() == head.momentum_sha256
    nothing, _ = await _collect(ask(api.STATE_PART_WEIGHTS, len(whole)))
    assert nothing == b""


async def test_public_blobs_and_nothing_else(served: Any, client: Any, refused: Any) -> None:
    def ask(sha256: bytes, offset: int = 0) -> Any:
        return client.stub.GetShard(
            api.GetShardRequest(run_id=client.link.run_id, sha256=sha256, offset=offset)
        )

    dataset, manifest = served.run.dataset, served.run.manifest
    with served.database.session() as session:
        weights_sha256 = session.scalars(select(StateRow.weights_sha256)).one()
    public = [
        manifest.dataset_sha256,
        manifest.tokenizer_sha256,
        dataset.shards[0].sha256,
        dataset.validation.sha256,
        weights_sha256.hex(),
    ]
    for digest in public:
        data, _ = await _collect(ask(bytes.fromhex(digest)))
        assert hashlib.sha256(data).hexdigest() == digest
    secret = hashlib.sha256((served.run.folder.keys / "round.key").read_bytes()).digest()
    await refused(ask(secret).read(), grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    await refused(ask(b"short").read(), grpc.StatusCode.INVALID_ARGUMENT, "BAD_RECORD")
    beyond = ask(bytes.fromhex(dataset.shards[0].sha256), 1 << 40)
    await refused(beyond.read(), grpc.StatusCode.INVALID_ARGUMENT, "BAD_RECORD")


async def test_an_unknown_state_says_so(client: Any, refused: Any) -> None:
    request = api.GetStateRequest(
        run_id=client.link.run_id, state_digest=b"?" * 32, part=api.STATE_PART_WEIGHTS
    )
    sentence = await refused(
        client.stub.GetState(request).read(), grpc.StatusCode.NOT_FOUND, "NOT_FOUND"
    )
    assert "run head" in sentence


async def test_a_state_that_was_pruned_says_so(served: Any, client: Any, refused: Any) -> None:
    head = open_envelope((await client.hello()).run_head, wire.RunHead).record
    blobs = Path(served.run.folder.blobs_url(served.run.settings))
    (blobs / f"{WEIGHTS}-{head.weights_sha256.hex()}.safetensors").unlink()
    request = api.GetStateRequest(
        run_id=head.run_id, state_digest=head.state_digest, part=api.STATE_PART_WEIGHTS
    )
    await refused(client.stub.GetState(request).read(), grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_an_oversized_message_never_reaches_us(client: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.stub.Commit(wire.Envelope(payload=bytes(5 << 20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_health_and_reflection_answer(served: Any, run_rig: ModuleType) -> None:
    credentials = grpc.ssl_channel_credentials(await run_rig.fetch_pem(served.link))
    options = [("grpc.ssl_target_name_override", TLS_NAME)]
    async with grpc.aio.secure_channel(served.link.address, credentials, options) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        names = {s.name for s in (await listing.read()).list_services_response.service}
        listing.cancel()
        assert SERVICE_NAME in names


async def test_a_taken_port_is_explained(served: Any) -> None:
    listen = f"127.0.0.1:{served.bound.port}"
    with pytest.raises(UsageError, match=r"is in use.*--listen"):
        await start_server(served.bound.service, served.run.keys.tls, listen)


async def test_too_many_requests_from_one_key(
    run_rig: ModuleType, run_folder: Path, refused: Any
) -> None:
    run_toml = run_folder / "run.toml"
    limits = "\n[server.limits]\nburst_per_key = 2\nrequests_per_s_per_key = 0.01\n"
    run_toml.write_text(run_toml.read_text() + limits)
    async with run_rig.serving(run_folder) as served, served.client() as client:
        await client.enrol()
        await client.enrol()
        sentence = await refused(client.enrol(), grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert "try again in" in sentence
        assert (await client.hello()).client_supported  # only the key is slowed down


async def test_a_bug_of_ours_is_answered_without_its_text(
    served: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr(served.engine, "hello_head", broken)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.hello()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in json.dumps(caught.value.details())
