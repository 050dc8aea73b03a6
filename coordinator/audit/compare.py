"""The arithmetic of an audit: which chunks to open, and what the opened ones say. Blocks: threads.

Invariants:

* Only proven bytes are compared, and only with replays that are under their auditor's signed root.
* A signed projection that cannot be that of proven bytes convicts who signed it, and nobody else.
* A chunk that is no chunk at all (its worker committed to rubbish) differs from every replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from coordinator.audit.facts import Compared
from coordinator.audit.replays import ReplayStore
from coordinator.context import RunContext
from protocol.draw import opened_chunks
from protocol.errors import BadDigest, BadRecord, NotFound
from protocol.projection import (
    PROJECTIONS,
    pack_projections,
    project_encoded,
    projection_contradicts,
    unpack_projections,
)
from protocol.tolerance import (
    FARTHEST,
    Bounds,
    Comparison,
    Finding,
    Outcome,
    ToleranceTable,
    compare_chunks,
    differing_chunks,
)
from protocol.update import decode_chunk


@dataclass(frozen=True)
class ReplayFile:
    """Where a replay is, and what its auditor signed of it."""

    ordinal: int
    job_id: bytes
    execution: str
    steps: int  # of the unit
    root: bytes
    projections: bytes  # of every chunk; empty: too many for its signed result


@dataclass(frozen=True)
class SignedProjections:
    """What somebody signed of a range of the worker's chunks."""

    signer: str
    first: int
    end: int
    data: bytes


@dataclass(frozen=True)
class Sheet:
    """Everything that the arithmetic of one audit takes."""

    audit_id: bytes
    assignment_id: bytes
    draw: bytes
    projection_seed: bytes
    execution: str  # of the worker
    theirs: Mapping[int, bytes]  # proven chunks
    replays: tuple[ReplayFile, ...]
    projections: tuple[SignedProjections, ...]
    table: ToleranceTable | None


@dataclass(frozen=True)
class FalseProjection:
    """A signed projection against proven bytes."""

    signer: str
    chunk: int


@dataclass(frozen=True)
class Judged(Compared):
    """Comparisons, with what a verdict quotes of them."""

    comparisons: Mapping[int, Comparison]
    false_projections: tuple[FalseProjection, ...]


def choose_chunks(context: RunContext, store: ReplayStore, sheet: Sheet) -> list[int]:
    """Chunks to open: the drawn ones, and at most as many whose projections differ most.

    Raises:
        TransientError: the store of the replays cannot be read; try again.
    """
    count, most = context.layout.count, context.manifest.verification.opened_chunks
    drawn = _drawn(context, sheet)
    replay = sheet.replays[0]
    try:
        packed = replay.projections or _project(context, store, sheet, replay)
        ours = unpack_projections(packed, count)
    except (BadRecord, BadDigest, NotFound):  # an auditor's fault: what is left is compared
        return drawn
    # A chunk that nobody projected is not suspicious for that: it counts as equal.
    theirs = ours.copy()
    for part in sheet.projections:
        theirs[part.first : part.end] = unpack_projections(part.data, part.end - part.first)
    bounds = _bounds(sheet, sheet.execution, replay.execution)
    return sorted({*drawn, *differing_chunks(theirs, ours, bounds, most)})


def _project(context: RunContext, store: ReplayStore, sheet: Sheet, replay: ReplayFile) -> bytes:
    """Projections of a replay whose update has too many chunks for its auditor to sign them.

    What is read is under the root that the auditor did sign.
    """
    codec, layout, seed = context.manifest.update.codec, context.layout, sheet.projection_seed
    stored = store.iterate(replay.job_id, layout, codec, range(layout.count), root=replay.root)
    return pack_projections(
        [project_encoded(encoded, codec, layout, seed, chunk) for chunk, encoded in stored]
    )


def compare(context: RunContext, store: ReplayStore, sheet: Sheet) -> Judged:
    """Compare each replay with the opened chunks, and the replays with each other.

    Raises:
        TransientError: the store of the replays cannot be read; try again.
    """
    read: dict[int, dict[int, bytes]] = {}
    for replay in sheet.replays:
        try:
            read[replay.ordinal] = store.read(
                replay.job_id,
                context.layout,
                context.manifest.update.codec,
                sorted(sheet.theirs),
                root=replay.root,
            )
        except (NotFound, BadDigest):
            continue
    readable = [replay for replay in sheet.replays if replay.ordinal in read]
    comparisons = {
        replay.ordinal: _compare(
            context, sheet, sheet.theirs, read[replay.ordinal], sheet.execution, replay.execution
        )
        for replay in readable
    }
    agreeing = {
        (one.ordinal, other.ordinal)
        for one, other in combinations(sorted(readable, key=lambda replay: replay.ordinal), 2)
        if _compare(
            context,
            sheet,
            read[one.ordinal],
            read[other.ordinal],
            one.execution,
            other.execution,
        ).outcome
        is Outcome.AGREES
    }
    return Judged(
        outcomes={ordinal: found.outcome for ordinal, found in comparisons.items()},
        agreeing=frozenset(agreeing),
        unreadable=frozenset(r.ordinal for r in sheet.replays if r.ordinal not in read),
        comparisons=comparisons,
        false_projections=tuple(_false_projections(context, sheet)),
    )


def _compare(
    context: RunContext,
    sheet: Sheet,
    theirs: Mapping[int, bytes],
    replayed: Mapping[int, bytes],
    one: str,
    other: str,
) -> Comparison:
    codec, layout = context.manifest.update.codec, context.layout
    for chunk, encoded in theirs.items():
        try:
            decode_chunk(codec, encoded, layout.chunk_size(chunk))
        except BadRecord:
            finding = Finding("bytes", chunk, FARTHEST, 0.0)
            return Comparison(Outcome.DIFFERS, (finding,), FARTHEST)
    bounds, drawn = _bounds(sheet, one, other), _drawn(context, sheet)
    return compare_chunks(codec, layout, theirs, replayed, bounds, drawn)


def _drawn(context: RunContext, sheet: Sheet) -> list[int]:
    """The chunks that are opened whatever their projections say."""
    most = context.manifest.verification.opened_chunks
    return opened_chunks(sheet.draw, sheet.assignment_id, context.layout.count, most)


def _bounds(sheet: Sheet, one: str, other: str) -> Bounds | None:
    # Rounding weighs most in short units: their bounds are wider.
    steps = sheet.replays[0].steps
    return None if sheet.table is None else sheet.table.bounds(one, other, steps)


def _false_projections(context: RunContext, sheet: Sheet) -> Sequence[FalseProjection]:
    """The first contradiction of each signer."""
    found: dict[str, FalseProjection] = {}
    codec, layout = context.manifest.update.codec, context.layout
    for part in sheet.projections:
        rows = np.frombuffer(part.data, "<f4").reshape(-1, PROJECTIONS)
        for chunk in sorted(sheet.theirs):
            if part.signer in found or not part.first <= chunk < part.end:
                continue
            row = rows[chunk - part.first].astype(np.float32)
            try:
                if projection_contradicts(
                    row, sheet.theirs[chunk], codec, layout, sheet.projection_seed, chunk
                ):
                    found[part.signer] = FalseProjection(part.signer, chunk)
            except BadRecord:
                continue  # rubbish has no projection: the worker answers for it
    return list(found.values())
