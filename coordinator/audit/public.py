"""An audit done again by anyone, from public data: what agrees, and what does not.

Steps, in this order; one that contradicts ends the check, since what follows rests on it:

1. **records**: every record is signed by whom it names, and by keys that the run's root delegated;
   they belong to one another (:mod:`coordinator.audit.public_records`);
2. **draw**: the preimage leads to the tip in the run's first leaf; the draw that it gives selects
   this contribution, with the chance that its credit states, and gives the projections' seed;
3. **openings**: each opened chunk is proven to be under the worker's commitment, and the chunks
   that the draw asks for are among them;
4. **projections**: what was signed of the opened chunks is what these chunks give;
5. **replay**: the unit is computed anew, and compared with what the auditors signed;
6. **verdict**: it is compared with what the worker showed, and that with the verdict.

A step that lacks what it needs is *unchecked*: that proves nothing, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final

from coordinator.audit.public_records import Evidence, Records, open_records
from coordinator.audit.replay import Replayed, Task, execution_class, replay_unit
from protocol import draw, merkle
from protocol.audit_policy import Verdict, Why
from protocol.errors import BadDigest, BadRecord, Diverged, NotFound, PeerFault
from protocol.projection import (
    MAX_SIGNED_CHUNKS,
    PROJECTION_BYTES,
    FloatMatrix,
    project_update,
    projection_contradicts,
    unpack_projections,
)
from protocol.tolerance import (
    FARTHEST,
    Bounds,
    Outcome,
    ToleranceTable,
    compare_chunks,
    projection_distances,
)
from protocol.training import Execution, OnStep
from protocol.update import decode_chunk

GENERAL_BOUNDS: Final = Bounds(
    pooled_pass=0.08, pooled_fail=0.12, chunk_pass=0.16, chunk_fail=0.32, projection=0.3
)
"""For a pair of execution classes that nobody has measured, taken from the worst ones that were:
bfloat16 in int4, on a tiny model. There, honest work was up to 0.064 apart (a chunk: 0.104), and
nine tenths of the steps 0.109 and more. So a quarter more than the worst honest distance agrees,
and nearly twice as much differs. What lies between cannot be told, some lazy work too: a wrong word
against an honest organiser would be worse."""

_NOT_DRAWN = (Why.RETAINED, Why.CONTROL, Why.APPEAL)
_EXPECTED = {
    Verdict.PASSED.value: Outcome.AGREES,
    Verdict.OVERTURNED.value: Outcome.AGREES,
    Verdict.FAILED.value: Outcome.DIFFERS,
}


class Found(StrEnum):
    """What was found of one thing."""

    AGREES = "agrees"
    CONTRADICTS = "contradicts"
    UNCHECKED = "unchecked"


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    step: str
    found: Found
    text: str


@dataclass(frozen=True)
class Report:
    """Everything that was found; ``verdict`` is the organiser's."""

    verdict: str
    lines: tuple[Line, ...]

    @property
    def exit_code(self) -> int:
        """0: all that was checked agrees, the verdict too; 1: something contradicts; 2: neither."""
        if any(line.found is Found.CONTRADICTS for line in self.lines):
            return 1
        judged = [line.found for line in self.lines if line.step == "verdict"]
        return 0 if Found.AGREES in judged else 2


Finds = Iterator[tuple[Found, str]]


class AuditCheck:
    """One audit, done again. Call :meth:`run` once."""

    def __init__(self, evidence: Evidence, execution: Execution) -> None:
        """Take what was fetched.

        Args:
            evidence: nothing of it is believed yet.
            execution: how to compute here.
        """
        self._given = evidence
        self._execution = execution
        self._class = execution_class(execution)
        self._codec = evidence.manifest.update.codec
        self._opened: dict[int, bytes] = {}
        self._records: Records | None = None
        self._replayed: Replayed | None = None

    def run(self, on_step: OnStep | None = None) -> Report:
        """Carry out the steps; blocks for as long as the unit trains.

        Args:
            on_step: called after each inner step.

        Raises:
            UsageError: this machine has too little memory.
            TransientError: something cannot be fetched now.
        """
        steps: tuple[tuple[str, Callable[[], Finds]], ...] = (
            ("records", self._check_records),
            ("draw", self._check_draw),
            ("openings", self._check_openings),
            ("projections", self._check_projections),
            ("replay", lambda: self._check_replay(on_step)),
            ("verdict", self._check_verdict),
        )
        lines: list[Line] = []
        for name, step in steps:
            try:
                lines += [Line(name, found, text) for found, text in step()]
            except PeerFault as error:
                lines.append(Line(name, Found.CONTRADICTS, str(error)))
            if any(line.found is Found.CONTRADICTS for line in lines):
                break
        return Report("" if self._records is None else self._records.verdict, tuple(lines))

    @property
    def _believed(self) -> Records:
        assert self._records is not None, "step 1 comes first"
        return self._records

    # ---- 1 ----

    def _check_records(self) -> Finds:
        self._records = open_records(self._given)
        yield Found.AGREES, f"{self._records.count} signed records belong together"

    # ---- 2 ----

    @cached_property
    def _draw(self) -> bytes | None:
        """The draw, once its preimage is proven; None where there is nothing to prove it by."""
        given, inclusion = self._given, self._believed.inclusion
        if inclusion is None or not given.file.preimage or given.run_leaf is None:
            return None
        tip = bytes.fromhex(given.run_leaf.draw_tip)
        draw.check_preimage(given.file.preimage, given.round, tip)
        return draw.draw(given.file.preimage, inclusion.digest)

    def _check_draw(self) -> Finds:
        given, assignment_id = self._given, self._believed.assignment.record.assignment_id
        if self._believed.inclusion is None:
            yield Found.UNCHECKED, "a first unit is always audited: it is not drawn"
            return
        if self._draw is None:
            lacking = "its preimage is not published yet"
            if given.run_leaf is None:
                lacking = "give the public record with --record"
            yield Found.UNCHECKED, f"the draw: {lacking}"
            return
        yield Found.AGREES, "the preimage leads to the tip in the run's first leaf"
        if draw.projection_seed(self._draw, assignment_id) != given.file.projection_seed:
            raise BadRecord("the projections were not made with the seed that was drawn")
        if given.credit is not None and given.credit.audit_ppm != given.file.chance_ppm:
            raise BadRecord(
                f"its credit states a chance of {given.credit.audit_ppm} millionths, its audit "
                f"{given.file.chance_ppm}"
            )
        if given.file.why in _NOT_DRAWN:
            yield Found.UNCHECKED, f"audited for a reason of its own: {given.file.why}"
            return
        if not draw.is_selected(self._draw, assignment_id, given.file.chance_ppm):
            raise BadRecord("the draw does not select this contribution")
        yield Found.AGREES, f"drawn, with a chance of {given.file.chance_ppm / 10_000:g} %"

    # ---- 3 and 4 ----

    def _check_openings(self) -> Finds:
        given, records = self._given, self._believed
        root, count = records.contribution.record.commitment_root, given.layout.count
        for chunk in given.chunks:
            if chunk.member != given.worker:
                raise BadRecord("a chunk of somebody else was opened")
            leaf = merkle.leaf_hash(chunk.encoded)
            merkle.verify_inclusion(leaf, chunk.chunk, count, chunk.proof, root)
            self._opened[chunk.chunk] = chunk.encoded
        if not self._opened:
            yield Found.UNCHECKED, "no chunks are kept: only those that convicted somebody are"
            return
        yield Found.AGREES, f"{len(self._opened)} chunks are under the worker's commitment"
        if self._drawn is not None:
            if not self._opened.keys() >= set(self._drawn):
                raise BadDigest(f"the draw asks for the chunks {self._drawn}, others were opened")
            yield Found.AGREES, "the chunks that were drawn are among them"

    @cached_property
    def _drawn(self) -> list[int] | None:
        """The chunks that the draw opens; None where it cannot be told."""
        if self._draw is None:
            return None
        assignment_id = self._believed.assignment.record.assignment_id
        most = self._given.manifest.verification.opened_chunks
        return draw.opened_chunks(self._draw, assignment_id, self._given.layout.count, most)

    def _check_projections(self) -> Finds:
        given = self._given
        if self._projected is None:
            yield Found.UNCHECKED, "the projections do not cover the update"
            return
        seed, false = given.file.projection_seed, []
        for chunk, encoded in self._opened.items():
            row = self._projected[chunk]
            if not self._is_rubbish(chunk) and projection_contradicts(
                row, encoded, self._codec, given.layout, seed, chunk
            ):
                false.append(chunk)
        if false:  # who signed it is convicted of it: it says nothing of the worker
            yield Found.UNCHECKED, f"the signed projections of {false} are not of their bytes"
        elif self._opened:
            yield Found.AGREES, "the signed projections are those of the opened chunks"

    @cached_property
    def _projected(self) -> FloatMatrix | None:
        """The worker's update as it was projected, ``[chunks, 64]``; None: not all of it, once."""
        parts = [answer.record.projections for answer in self._believed.projections]
        count = self._given.layout.count
        if sum(map(len, parts)) != count * PROJECTION_BYTES:
            return None
        return unpack_projections(b"".join(parts), count)

    def _is_rubbish(self, chunk: int) -> bool:
        """Whether the worker committed to bytes that are no chunk."""
        try:
            decode_chunk(self._codec, self._opened[chunk], self._given.layout.chunk_size(chunk))
        except BadRecord:
            return True
        return False

    # ---- 5 ----

    def _check_replay(self, on_step: OnStep | None) -> Finds:
        given, assignment = self._given, self._believed.assignment.record
        task = Task(
            assignment.round,
            assignment.worker,
            assignment.start_sequence,
            self._believed.contribution.record.steps,
            assignment.seed,
            assignment.tokens_base,
        )
        try:
            weights = given.weights(self._believed.head.record)
            self._replayed = replay_unit(
                given.manifest, weights, task, given.reader, self._execution, on_step
            )
        except NotFound as error:
            yield Found.UNCHECKED, f"the weights: {error}"
        except Diverged as error:
            yield Found.UNCHECKED, f"the replay: {error}"
        if self._replayed is not None:
            yield from self._compare_auditors(self._replayed)

    def _compare_auditors(self, replayed: Replayed) -> Finds:
        decided = {digest for v in self._believed.verdicts for digest in v.record.results}
        for signed in self._believed.results:
            result = signed.record
            who = f"auditor {result.auditor} ({result.execution})"
            if result.failed:
                yield Found.UNCHECKED, f"{who} could not replay it: {result.failed}"
            elif result.root == replayed.update.root:
                yield Found.AGREES, f"{who} has the same bytes, every one"
            elif not result.projections and self._given.layout.count > MAX_SIGNED_CHUNKS:
                yield Found.UNCHECKED, f"{who} has other bytes: too many to sign a projection of"
            else:
                theirs = unpack_projections(result.projections, self._given.layout.count)
                distance = self._distance(theirs, replayed)
                found = _plainly(distance, self._bounds(result.execution))
                if signed.digest not in decided and found is Found.CONTRADICTS:
                    found, who = Found.UNCHECKED, f"{who}, on whom nothing rests,"
                yield found, f"{who} is {distance:.4f} apart (L2)"

    # ---- 6 ----

    def _check_verdict(self) -> Finds:
        if self._replayed is None:
            yield Found.UNCHECKED, "without a replay"
            return
        contribution = self._believed.contribution.record
        bounds = self._bounds(contribution.execution)
        if contribution.commitment_root == self._replayed.update.root:
            outcome, text = Outcome.AGREES, "the worker has the same bytes, every one"
        elif self._opened:
            outcome, distance = self._compare_chunks(self._replayed, bounds)
            text = f"the worker's opened chunks are {distance:.4f} apart (L1)"
        elif self._projected is not None:
            distance = self._distance(self._projected, self._replayed)
            outcome = {
                Found.AGREES: Outcome.AGREES,
                Found.CONTRADICTS: Outcome.DIFFERS,
                Found.UNCHECKED: Outcome.BETWEEN,
            }[_plainly(distance, bounds)]
            text = f"the worker's projections are {distance:.4f} apart (L2)"
        else:
            yield Found.UNCHECKED, "nothing is kept of what the worker showed"
            return
        yield self._against_verdict(outcome, text)

    def _compare_chunks(self, replayed: Replayed, bounds: Bounds | None) -> tuple[Outcome, float]:
        if any(self._is_rubbish(chunk) for chunk in self._opened):
            return Outcome.DIFFERS, FARTHEST
        ours = dict(enumerate(replayed.update.chunks))
        compared = compare_chunks(
            self._codec, self._given.layout, self._opened, ours, bounds, self._drawn
        )
        return compared.outcome, compared.pooled

    def _against_verdict(self, outcome: Outcome, text: str) -> tuple[Found, str]:
        said = self._believed.verdict
        expected = _EXPECTED.get(said)
        if outcome is Outcome.BETWEEN:
            return Found.UNCHECKED, f"{text}, between the bounds: try another --device"
        if expected is None:
            return Found.UNCHECKED, f"{text}; the verdict, {said or 'none'}, blames nobody"
        if expected is outcome:
            return Found.AGREES, f"{text}, and the verdict is {said}"
        return Found.CONTRADICTS, f"{text}, but the verdict is {said}"

    def _distance(self, theirs: FloatMatrix, replayed: Replayed) -> float:
        """Relative L2 distance of whole updates, as their projections estimate it."""
        layout, seed = self._given.layout, self._given.file.projection_seed
        packed = project_update(replayed.update.chunks, self._codec, layout, seed)
        ours = unpack_projections(packed, layout.count)
        return float(projection_distances(theirs.reshape(1, -1), ours.reshape(1, -1))[0])

    def _bounds(self, theirs: str) -> Bounds | None:
        """By one's own table, else by the run's; None: measured, and nothing can be told apart."""
        table, steps = self._table, self._believed.contribution.record.steps
        if table is None or not table.of_pair(theirs, self._class):
            return GENERAL_BOUNDS
        return table.bounds(theirs, self._class, steps)

    @cached_property
    def _table(self) -> ToleranceTable | None:
        if self._given.table is not None or not self._given.file.tolerance:
            return self._given.table
        try:
            table = ToleranceTable.parse(self._given.file.tolerance)
        except BadRecord:  # of a version that this one cannot read
            return None
        return table if table.run_id == self._given.manifest.run_id.hex() else None


def _plainly(distance: float, bounds: Bounds | None) -> Found:
    """Projections estimate, and in L2, which rounding moves most: only what is far is said."""
    if bounds is None:
        return Found.UNCHECKED
    if distance <= bounds.pooled_pass:
        return Found.AGREES
    far = 2 * max(bounds.pooled_fail, bounds.projection)
    return Found.CONTRADICTS if distance > far else Found.UNCHECKED
