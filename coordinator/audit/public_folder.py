"""The evidence of an audit from the organiser's own run folder; the checks are everybody's.

The record is read from the database itself, so what it says is not proven by a signed head here:
``barnraise ledger verify`` does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from coordinator.audit import base_weights
from coordinator.audit.files import audit_file, opened_chunk
from coordinator.audit.public_records import Evidence
from coordinator.audit.workplace import Workplace
from coordinator.config import RunFolder
from coordinator.context import RunContext
from coordinator.keys import KeyRing
from coordinator.schema import ContributionRow
from ledger.log import Log, read_leaves
from ledger.records import CreditLeaf, Leaf, RunLeaf, parse_leaf
from protocol.wire import records_pb2 as wire


@contextmanager
def folder_evidence(
    folder: RunFolder, round_: int, worker: str, now_s: float
) -> Iterator[Evidence]:
    """Everything that doing an audit again takes; good while the block lasts.

    Raises:
        UsageError: not a run folder, or a part of it is missing.
        NotFound, TransientError: see :func:`coordinator.audit.files.audit_file`.
    """
    manifest = folder.read_manifest()
    keys = KeyRing.load(
        folder.keys, run_id=manifest.run_id, root_id=manifest.root, now_s=now_s, checked=False
    )
    place = Workplace.open(folder)
    context = RunContext(manifest, place.dataset, keys, Log(manifest.origin, keys.log))
    try:
        with place.database.session() as session:
            found = audit_file(session, context, round_, worker)
            file = found.file
            file.audit_results.extend(found.more_results)
            file.projections.extend(found.more_projections)
            head = wire.RunHead.FromString(file.run_head.payload)
            plan = base_weights.plan(session, head.state_digest)
            run_leaf, credit = _leaf(session, 0), _credit(session, file.assignment.payload)
            evidence = Evidence(
                manifest,
                keys.trust(),
                round_,
                worker,
                file,
                tuple(opened_chunk(session, key) for key in found.openings),
                context.layout,
                lambda _head: place.weights.load(plan),
                place.reader,
                run_leaf=run_leaf if isinstance(run_leaf, RunLeaf) else None,
                credit=credit if isinstance(credit, CreditLeaf) else None,
            )
        yield evidence
    finally:
        place.database.close()


def _credit(session: Session, assignment: bytes) -> Leaf | None:
    assignment_id = wire.Assignment.FromString(assignment).assignment_id
    row = session.get(ContributionRow, assignment_id)
    return None if row is None or row.leaf_index is None else _leaf(session, row.leaf_index)


def _leaf(session: Session, index: int) -> Leaf | None:
    data = next(read_leaves(session, index, index + 1), None)
    return None if data is None else parse_leaf(data)
