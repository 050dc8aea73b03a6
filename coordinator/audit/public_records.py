"""The records that an audit rests on: fetched by anyone, believed when their signatures hold.

Invariants (:func:`open_records`):

* What the organiser says is signed by a round key that the run's root key delegated; what a worker,
  a reducer or an auditor says is signed by the key that it names.
* All of it belongs together: one contribution to one assignment, from the weights of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ledger.records import CreditLeaf, RunLeaf
from protocol.dataset import SequenceReader
from protocol.envelope import Signed, open_envelope
from protocol.errors import BadRecord
from protocol.manifest import RunManifest
from protocol.tolerance import ToleranceTable
from protocol.training import FloatVector
from protocol.trust import TrustStore
from protocol.update import ChunkLayout
from protocol.wire import records_pb2 as wire
from protocol.wire import service_pb2

_GROUP_ID_BYTES = 20


@dataclass(frozen=True)
class Evidence:
    """What an audit rests on, as it was fetched: nothing of it is believed yet."""

    manifest: RunManifest  # of the run id in the link
    trust: TrustStore  # of the root in the link
    round: int
    worker: str
    file: service_pb2.AuditFile
    chunks: tuple[wire.OpenedChunk, ...]
    layout: ChunkLayout
    weights: Callable[[wire.RunHead], FloatVector]  # verified by digest; NotFound: kept no more
    reader: SequenceReader
    run_leaf: RunLeaf | None = None  # proven; None: no record was given
    credit: CreditLeaf | None = None  # proven; None: there is none
    table: ToleranceTable | None = None  # of one's own; None: the run's, which is in the file


@dataclass(frozen=True)
class Records:
    """The signed records of an audit, verified."""

    head: Signed[wire.RunHead]
    assignment: Signed[wire.Assignment]
    contribution: Signed[wire.Contribution]
    inclusion: Signed[wire.InclusionSet] | None
    roster: Signed[wire.Roster] | None
    verdicts: tuple[Signed[wire.Verdict], ...]  # oldest first
    results: tuple[Signed[wire.AuditResult], ...]
    projections: tuple[Signed[wire.ChallengeAnswer], ...]

    @property
    def verdict(self) -> str:
        """What was decided in the end."""
        return self.verdicts[-1].record.verdict if self.verdicts else ""

    @property
    def count(self) -> int:
        several = (self.verdicts, self.results, self.projections)
        optional = (self.inclusion, self.roster)
        return 3 + sum(map(len, several)) + sum(one is not None for one in optional)


def open_records(given: Evidence) -> Records:
    """Verify what was fetched.

    Raises:
        BadSignature, BadRecord: what does not hold.
    """
    file = given.file
    merged = file.HasField("inclusion_set")
    records = Records(
        open_envelope(file.run_head, wire.RunHead),
        open_envelope(file.assignment, wire.Assignment),
        open_envelope(file.contribution, wire.Contribution, signer=given.worker),
        open_envelope(file.inclusion_set, wire.InclusionSet) if merged else None,
        open_envelope(file.roster, wire.Roster) if merged else None,
        tuple(open_envelope(envelope, wire.Verdict) for envelope in file.verdicts),
        tuple(open_envelope(envelope, wire.AuditResult) for envelope in file.audit_results),
        tuple(open_envelope(envelope, wire.ChallengeAnswer) for envelope in file.projections),
    )
    _check_signers(given, records)
    for problem, holds in {**_belonging(given, records), **_reduced(given, records)}.items():
        if not holds:
            raise BadRecord(problem)
    return records


def _check_signers(given: Evidence, records: Records) -> None:
    """Keys are judged at the time of the round: an archived audit can be redone for ever."""
    at_s = records.head.record.issued_at_ms / 1000
    single = (records.head, records.assignment, records.inclusion, records.roster)
    for signed in (*single, *records.verdicts):
        if signed is not None:
            given.trust.require_signer(wire.KEY_PURPOSE_ROUND, signed.signer, at_s)


def _belonging(given: Evidence, records: Records) -> dict[str, bool]:
    head, assignment = records.head.record, records.assignment.record
    contribution, run_id = records.contribution.record, given.manifest.run_id
    done = contribution.steps * given.manifest.inner.sequences_per_batch
    named = (
        *(head.run_id, assignment.run_id, contribution.run_id),
        *(signed.record.run_id for signed in records.verdicts),
        *(signed.record.run_id for signed in records.results),
        *(signed.record.run_id for signed in records.projections),
    )
    return {
        "a record is of another run": set(named) == {run_id},
        "the assignment is of another round or worker": (assignment.round, assignment.worker)
        == (given.round, given.worker),
        "the contribution is not to the assignment": (
            contribution.assignment_id == assignment.assignment_id
            and contribution.state_digest == assignment.state_digest == head.state_digest
            and contribution.start_sequence == assignment.start_sequence
            and 0 < contribution.steps <= assignment.steps
            and contribution.end_sequence == contribution.start_sequence + done
        ),
        "a verdict is about another contribution": all(
            signed.record.assignment_id == assignment.assignment_id
            and signed.record.worker == given.worker
            for signed in records.verdicts
        ),
        "an audit result is not signed by the auditor that it names": all(
            signed.signer == signed.record.auditor for signed in records.results
        ),
        "projections are not signed by whom they name": all(
            signed.signer == signed.record.worker for signed in records.projections
        ),
    }


def _reduced(given: Evidence, records: Records) -> dict[str, bool]:
    """What merged contributions have besides."""
    if records.inclusion is None or records.roster is None:
        return {}
    inclusion, roster = records.inclusion.record, records.roster.record
    run_id, group_id = given.manifest.run_id, records.roster.digest[:_GROUP_ID_BYTES]
    roots = {member.worker: member.commitment_root for member in roster.members}
    return {
        "the roster is of another run or round": (roster.run_id, roster.round)
        == (run_id, given.round),
        "the inclusion set is not of the roster, or lacks the worker": (
            inclusion.run_id == run_id
            and inclusion.group_id == group_id
            and given.worker in inclusion.members
        ),
        "the roster names another commitment than the worker signed": (
            roots.get(given.worker) == records.contribution.record.commitment_root
        ),
    }
