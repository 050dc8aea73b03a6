"""Whom a run lets in: open, by invitation, by approval; quotas; behind the auditors' backlog."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from sqlalchemy import func, select

from coordinator import invites
from coordinator.audit.schema import DONE, QUEUED, AuditJobRow, AuditRow
from coordinator.schema import WorkerRow
from ledger.log import read_leaves
from ledger.records import parse_leaf
from ledger.tree import tree_size
from protocol.envelope import seal
from protocol.errors import TransientError, UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire

Serve = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def serve(run_rig: ModuleType, run_folder: Path) -> Serve:
    """``async with serve('enrolment = "invite"') as served``: [server] with these lines."""

    @asynccontextmanager
    async def start(server: str = "", **limits: Any) -> AsyncIterator[Any]:
        toml = run_folder / "run.toml"
        text = toml.read_text() + server + "\n"
        if limits:
            text += "[server.limits]\n" + "".join(f"{k} = {v}\n" for k, v in limits.items())
        toml.write_text(text)
        async with run_rig.serving(run_folder) as served:
            yield served

    return start


async def refusal(run_rig: ModuleType, client: Any, **fields: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.enrol(**fields)
    return run_rig.reason(raised.value), str(raised.value.details())


def kinds(served: Any) -> list[str]:
    """Of the leaves besides the keys that the root vouched for."""
    with served.database.session() as session:
        leaves = read_leaves(session, 0, tree_size(session))
        found = [parse_leaf(data).kind for data in leaves]
        return [kind for kind in found if kind != "delegation"]


async def test_by_invitation(serve: Serve, run_rig: ModuleType) -> None:
    async with serve('enrolment = "invite"') as served, served.client() as ada:
        assert (await refusal(run_rig, ada))[0] == "USAGE"
        assert "--invite" in (await refusal(run_rig, ada))[1]
        reason, sentence = await refusal(run_rig, ada, invite="inv-guess")
        assert (reason, "not known" in sentence) == ("USAGE", True)
        assert (await refusal(run_rig, ada, invite="x" * 65))[0] == "BAD_RECORD"
        assert kinds(served) == ["run"]
        with served.database.session() as session:
            assert session.scalar(select(func.count()).select_from(WorkerRow)) == 0
            token, _ = invites.create(session, uses=1, valid_s=None, now_s=0)
        assert (await ada.enrol(invite=token)).admitted
        # Whoever is in needs none any more; nobody else comes in by a spent one.
        assert (await ada.enrol()).admitted
        async with served.client() as bob:
            assert "used up" in (await refusal(run_rig, bob, invite=token))[1]
        assert kinds(served) == ["run", "enrol"]


async def test_by_approval(serve: Serve, run_rig: ModuleType) -> None:
    async with serve('enrolment = "approval"') as served, served.client() as ada:
        me = ada.identity.peer_id
        for _ in range(2):
            reply = await ada.enrol()
            assert (reply.admitted, reply.code) == (False, "approval")
            assert me in reply.message
            assert not reply.admission.payload
        assert kinds(served) == ["run"]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ada.stub.RequestWork(ada.work_request())
        assert "yet to approve" in raised.value.details()
        with served.database.session() as session:
            assert [row["worker"] for row in invites.pending(session)] == [me]
            invites.approve(session, me)
        # Until it asks again it is not in the public record, and so cannot work.
        with pytest.raises(grpc.aio.AioRpcError):
            await ada.stub.RequestWork(ada.work_request())
        reply = await ada.enrol()
        assert reply.admitted
        assert reply.admission.payload
        assert kinds(served) == ["run", "enrol"]
        await ada.stub.RequestWork(ada.work_request())


async def test_an_invitation_is_an_approval_too(serve: Serve) -> None:
    async with serve('enrolment = "approval"') as served, served.client() as ada:
        assert not (await ada.enrol()).admitted
        with served.database.session() as session:
            token, _ = invites.create(session, uses=1, valid_s=None, now_s=0)
        assert (await ada.enrol(invite=token)).admitted


async def test_the_worker_waits_for_approval_and_gives_up_without_an_invitation(
    serve: Serve, run_rig: ModuleType
) -> None:
    from worker.session import Session

    async with serve('enrolment = "approval"') as served, served.client() as client:
        session = await Session.connect(served.link, client.identity)
        try:
            with pytest.raises(TransientError, match="approve this device"):
                await session.enrol(client.enrolment())
            with served.database.session() as database:
                invites.approve(database, client.identity.peer_id)
            assert (await session.enrol(client.enrolment())).payload
            with pytest.raises(UsageError, match="not known"):
                other = await Session.connect(served.link, Identity.generate())
                try:
                    me = other.identity.peer_id
                    await other.enrol(client.enrolment(worker=me, donor=me, invite="inv-x"))
                finally:
                    await other.close()
        finally:
            await session.close()


async def test_newcomers_wait_behind_the_auditors(serve: Serve, run_rig: ModuleType) -> None:
    async with (
        serve("[server.audit]\nbacklog_jobs = 3") as served,
        served.client() as ada,
        served.client() as bob,
    ):
        await ada.enrol()
        pile_up(served, 3)
        reason, sentence = await refusal(run_rig, bob)
        assert reason == "RATE_LIMITED"
        assert "3 replays" in sentence
        assert (await ada.enrol()).admitted
        with served.database.session() as session:
            session.scalars(select(AuditJobRow).limit(1)).one().status = DONE
        assert (await bob.enrol()).admitted


def pile_up(served: Any, count: int) -> None:
    with served.database.session() as session:
        for _ in range(count):
            audit_id = secrets.token_bytes(16)
            session.add(
                AuditRow(
                    audit_id=audit_id,
                    subject="training",
                    assignment_id=secrets.token_bytes(16),
                    round=0,
                    worker="w",
                    donor="d",
                    execution="cpu",
                    why="sampled",
                    projection_seed=b"",
                    draw=b"",
                    phase="waiting",
                    created_at_s=0.0,
                    phase_since_s=0.0,
                )
            )
            session.flush()
            session.add(
                AuditJobRow(
                    job_id=secrets.token_bytes(16),
                    audit_id=audit_id,
                    ordinal=1,
                    status=QUEUED,
                    created_at_s=0.0,
                )
            )


async def test_a_hundred_keys_of_one_address_get_the_quota_and_no_work(
    serve: Serve, run_rig: ModuleType
) -> None:
    async with serve(new_devices_per_address_per_day=7) as served, served.client() as client:
        admitted, reasons = 0, set()
        for _ in range(100):
            client = dataclasses.replace(client, identity=Identity.generate())
            try:
                admitted += (await client.enrol()).admitted
            except grpc.aio.AioRpcError as error:
                reasons.add(run_rig.reason(error))
                assert "within a day" in str(error.details())
        assert (admitted, reasons) == (7, {"RATE_LIMITED"})
        assert kinds(served).count("enrol") == 7


async def test_donors_and_addresses_have_room_for_so_many(
    serve: Serve, run_rig: ModuleType
) -> None:
    async with (
        serve(devices_per_donor=2, devices_per_address=3) as served,
        served.client() as client,
    ):
        donor = Identity.generate()

        async def enrol() -> Any:
            device = dataclasses.replace(client, identity=Identity.generate())
            delegation = seal(
                wire.DeviceDelegation(
                    donor=donor.peer_id, worker=device.identity.peer_id, not_after_s=1 << 40
                ),
                donor,
            )
            return device, {"donor": donor.peer_id, "device_delegation": delegation}

        for _ in range(2):
            device, fields = await enrol()
            assert (await device.enrol(**fields)).admitted
        device, fields = await enrol()
        reason, sentence = await refusal(run_rig, device, **fields)
        assert (reason, "this donor has 2 devices" in sentence) == ("USAGE", True)
        assert (await client.enrol()).admitted
        other = dataclasses.replace(client, identity=Identity.generate())
        reason, sentence = await refusal(run_rig, other)
        assert (reason, "3 devices take part from this address" in sentence) == ("USAGE", True)
        assert (await client.enrol()).admitted  # it is counted already


async def test_no_address_is_written_down(serve: Serve) -> None:
    async with serve() as served, served.client() as ada:
        await ada.enrol()
        with served.database.session() as session:
            kept = session.get_one(WorkerRow, ada.identity.peer_id).enrolled_from
        assert len(kept) == 32
        assert "127.0.0.1" not in kept
