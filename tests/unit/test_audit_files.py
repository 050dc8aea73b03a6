"""GetAudit: what anybody needs to redo an audit, and nothing too early."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest

from coordinator.audit.files import Found, audit_file, opened_chunk
from coordinator.audit.public_source import Pieces
from protocol import merkle
from protocol.draw import check_preimage, draw, opened_chunks, projection_seed
from protocol.envelope import open_envelope
from protocol.errors import BadRecord, NotFound, TransientError
from protocol.projection import unpack_projections
from protocol.tolerance import ToleranceTable
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2 as api

Start = Callable[..., Awaitable[Any]]


def read(rig: Any, round_: int, worker: str) -> Found:
    with rig.database.session() as session:
        return audit_file(session, rig.engine.context, round_, worker)


async def test_a_passed_audit_can_be_redone_from_its_file(start_audits: Start) -> None:
    rig = await start_audits()
    worker = rig.workers[0]
    await rig.play_round(*rig.workers)
    with pytest.raises(TransientError, match="being audited"):
        read(rig, 0, worker.name)
    await rig.audit()
    file = read(rig, 0, worker.name).file
    contribution = open_envelope(file.contribution, wire.Contribution, signer=worker.name).record
    assignment = open_envelope(file.assignment, wire.Assignment).record
    assert assignment.assignment_id == contribution.assignment_id
    head = open_envelope(file.run_head, wire.RunHead).record
    assert head.state_digest == assignment.state_digest
    # The draw: selected, seeded and opened by nobody's choice.
    check_preimage(file.preimage, 0, rig.keys.draws.tip)
    drawn = draw(file.preimage, hashlib.sha256(file.inclusion_set.payload).digest())
    assert file.projection_seed == projection_seed(drawn, assignment.assignment_id)
    assert (file.why, file.chance_ppm) == ("newcomer", 1_000_000)
    (answer,) = [open_envelope(e, wire.ChallengeAnswer).record for e in file.projections]
    (result,) = [open_envelope(e, wire.AuditResult).record for e in file.audit_results]
    unpack_projections(answer.projections, rig.layout.count)
    assert answer.projections == result.projections
    (verdict,) = [open_envelope(e, wire.Verdict).record for e in file.verdicts]
    assert (verdict.verdict, verdict.worker) == ("passed", worker.name)
    assert verdict.results == [hashlib.sha256(file.audit_results[0].payload).digest()]
    assert file.opened_chunks == 0


async def test_the_evidence_of_a_conviction_is_served_with_its_proofs(start_audits: Start) -> None:
    rig = await start_audits()
    cheat = rig.workers[0]
    cheat.lazy_steps = 2
    await rig.play_round(*rig.workers)
    await rig.audit()
    found = read(rig, 0, cheat.name)
    contribution = open_envelope(found.file.contribution, wire.Contribution).record
    drawn = draw(found.file.preimage, hashlib.sha256(found.file.inclusion_set.payload).digest())
    count = rig.layout.count
    expected = set(opened_chunks(drawn, contribution.assignment_id, count, 2))
    assert len(found.openings) == found.file.opened_chunks
    numbers = set()
    for key in found.openings:
        with rig.database.session() as session:
            chunk = opened_chunk(session, key)
        leaf = merkle.leaf_hash(chunk.encoded)
        root = contribution.commitment_root
        merkle.verify_inclusion(leaf, chunk.chunk, count, chunk.proof, root)
        numbers.add(chunk.chunk)
    assert expected <= numbers
    assert len(found.file.audit_results) == 2
    with rig.database.session() as session, pytest.raises(NotFound, match="dropped"):
        opened_chunk(session, (b"?", cheat.name, 0))


async def test_what_does_not_fit_into_the_file_follows_it(start_audits: Start) -> None:
    rig = await start_audits(workers=1, verification={"p_second_auditor": 1})
    worker = rig.workers[0]
    await rig.play_round(worker)
    await rig.audit()
    whole = read(rig, 0, worker.name)
    assert (len(whole.file.audit_results), len(list(whole.pieces()))) == (2, 1)
    assert ToleranceTable.parse(whole.file.tolerance) == rig.table(("cpu", "cpu"), ("cpu", "cuda"))
    full = whole.file.ByteSize()
    for room_bytes in (0, full - 10, full - len(whole.file.projections[0].payload)):
        with rig.database.session() as session:
            found = audit_file(session, rig.engine.context, 0, worker.name, room_bytes)
        assert room_bytes == 0 or found.file.ByteSize() <= room_bytes
        assert found.more_projections == tuple(whole.file.projections)
        pieces = Pieces(rig.layout)
        for piece in found.pieces():
            pieces.add(piece)
        file, _ = pieces.whole()
        assert list(file.audit_results) == list(whole.file.audit_results)
        assert list(file.projections) == list(whole.file.projections)


def test_pieces_that_do_not_make_an_audit_are_refused() -> None:
    layout = ChunkLayout(10, 5)
    file = api.AuditPiece(file=api.AuditFile(more_projections=1))
    chunk = api.AuditPiece(chunk=wire.OpenedChunk())
    record = wire.Envelope(payload=bytes(1 << 20))
    with pytest.raises(BadRecord, match="no audit"):
        Pieces(layout).whole()
    for out_of_place in (chunk, api.AuditPiece(projection=record), api.AuditPiece()):
        with pytest.raises(BadRecord, match="one file"):
            Pieces(layout).add(out_of_place)
    pieces = Pieces(layout)
    pieces.add(file)
    with pytest.raises(BadRecord, match="one file"):
        pieces.add(file)
    with pytest.raises(BadRecord, match="all that it announced"):
        pieces.whole()
    with pytest.raises(BadRecord, match="more was signed"):
        for _ in range(100):
            pieces.add(api.AuditPiece(audit_result=record))
    with pytest.raises(BadRecord, match="more chunks"):
        for _ in range(100):
            pieces.add(chunk)


@pytest.mark.parametrize("round_", [1, 1 << 40, (1 << 64) - 1])
async def test_what_was_not_audited_has_no_file(start_audits: Start, round_: int) -> None:
    rig = await start_audits()
    with pytest.raises(NotFound, match="no contribution"):
        read(rig, round_, rig.workers[0].name)


async def test_a_file_without_bytes_says_so(start_audits: Start, case_rig: ModuleType) -> None:
    rig = await start_audits()
    await rig.play_round(*rig.workers)
    for member in (rig.anchor, *rig.workers):
        member.answers = case_rig.unavailable
    await rig.audit()
    with pytest.raises(NotFound, match="kept no more"):
        read(rig, 0, rig.workers[0].name)
