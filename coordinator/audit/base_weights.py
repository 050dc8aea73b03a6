"""The weights that a unit started from: from their file, or rebuilt from older ones.

A state is a pure function of an older state and of the means merged since (protocol.md section 9).
So the files of few states and the encoded means of many rounds hold the weights of all of them:

* ``kept``: both files of the newest states, and of each :data:`STRIDE`-th one of the retained
  window; the weights of states that undecided audits, appeals or open probation units need; the
  means since the oldest of these.
* ``plan`` and ``load``: the nearest older state with both files, then one outer step for each mean.

Invariants:

* A mean is used only when it hashes to its round's ``result_digest``, which is in the public
  record; rebuilt weights only when they hash to the root in the signed head.
* The retained window reaches back to the oldest contribution whose credit is pending and that may
  still be audited, within bounds on the number of means and on their bytes. What lies beyond is
  lost, and costs nobody anything (``unaudited-lost``).

States count settled rounds; rounds also count skipped ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from coordinator.audit.schema import DECIDED, PENDING, AuditRow, ProbationRow
from coordinator.audit.store import FileStore
from coordinator.checkpoints import MOMENTUM, WEIGHTS, CheckpointStore, SavedState, Vector
from coordinator.context import RunContext
from coordinator.schema import ContributionRow, RoundRow, StateRow
from protocol import merkle
from protocol.audit_policy import Verdict
from protocol.errors import BadDigest, NotFound
from protocol.manifest import RunManifest
from protocol.state_step import MeanOfChunk, decoding, step_state
from protocol.update import ChunkLayout

STRIDE = 32
"""Every so many states both files stay: a rebuild takes fewer outer steps than that."""

_AUDITED_STATES = 32
"""Newest states whose weights stay as files for open audits; older ones can be rebuilt."""

_LEFTOVER_S = 3600.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class Kept:
    """What must not be pruned."""

    states: tuple[SavedState, ...]  # both files
    weights: frozenset[bytes]  # SHA-256 of weights alone
    means: frozenset[bytes]  # result digests


@dataclass(frozen=True)
class Ancestor:
    """A state, and the mean that leads from it to the next one."""

    saved: SavedState
    result_digest: bytes


@dataclass(frozen=True)
class Plan:
    """How the weights of a state can be had."""

    settled_rounds: int
    weights_sha256: bytes
    weights_root: bytes
    ancestors: tuple[Ancestor, ...]  # the nearest first


class MeanStore:
    """Encoded means of settled rounds, by result digest. Methods block."""

    def __init__(self, checkpoints: CheckpointStore, manifest: RunManifest) -> None:
        """Open the store beside the checkpoints.

        Raises:
            TransientError: it cannot be reached or written.
        """
        self._files = FileStore(checkpoints.url, "means")
        self.layout = ChunkLayout(checkpoints.elements, manifest.update.chunk_elements)
        self._codec = manifest.update.codec

    def save(self, chunks: Sequence[bytes]) -> None:
        """Keep the result chunks of a round that is being settled.

        Raises:
            TransientError: the store refused; nothing is half-written.
        """
        digest = merkle.root([merkle.leaf_hash(chunk) for chunk in chunks])
        self._files.put(_name(digest), chunks)

    def holds(self, result_digest: bytes) -> bool:
        """Whether a mean is here; raises TransientError when the store cannot be read."""
        return self._files.size(_name(result_digest)) is not None

    def load(self, result_digest: bytes) -> MeanOfChunk:
        """A mean, whose chunks are decoded when they are wanted.

        Raises:
            NotFound: it is kept no more.
            BadDigest: it is damaged.
            TransientError: the store cannot be read.
        """
        chunks, start = [], 0
        for chunk in range(self.layout.count):
            end = start + self.layout.encoded_bytes(self._codec, chunk)
            chunks.append(self._files.read(_name(result_digest), start, end))
            start = end
        if merkle.root([merkle.leaf_hash(chunk) for chunk in chunks]) != result_digest:
            raise BadDigest(f"the stored mean {result_digest.hex()[:16]} is damaged")
        return decoding(chunks, self.layout, self._codec)

    def prune(self, keep: Collection[bytes]) -> None:
        """Delete every mean that is not in ``keep``.

        Raises:
            TransientError: the store refused.
        """
        names = {_name(digest) for digest in keep}
        for name in list(self._files.names()):
            if name not in names:
                self._files.delete(name)
        self._files.sweep(_LEFTOVER_S)


class BaseWeights:
    """Weights of any retained state. Methods block; one process keeps one in memory."""

    def __init__(self, checkpoints: CheckpointStore, manifest: RunManifest) -> None:
        self._checkpoints = checkpoints
        self._means = MeanStore(checkpoints, manifest)
        self._manifest = manifest
        self._newest: tuple[bytes, Vector] | None = None  # jobs of one round come together

    def load(self, plan: Plan) -> Vector:
        """The weights, proven to be those of the state.

        A rebuilt file is stored, for other auditors and for whoever redoes the audit.

        Raises:
            NotFound: they are lost.
            TransientError: the store cannot be read or written now.
        """
        if self._newest is None or self._newest[0] != plan.weights_sha256:
            found = self._stored(plan)
            self._newest = (plan.weights_sha256, self._rebuilt(plan) if found is None else found)
        return self._newest[1]

    def _stored(self, plan: Plan) -> Vector | None:
        try:
            return self._checkpoints.load_weights(plan.weights_sha256)
        except FileNotFoundError:
            return None
        except BadDigest as error:
            _log.error("base_weights_damaged", settled_rounds=plan.settled_rounds, why=str(error))
            return None

    def _rebuilt(self, plan: Plan) -> Vector:
        weights, momentum, steps = self._start(plan)
        root, layout, outer = b"", self._means.layout, self._manifest.outer
        elsewhere = f"what is stored does not lead to the weights of state {plan.settled_rounds}"
        for step in steps:
            after = step_state(weights, momentum, self._mean(step), layout, outer)
            if after is None:
                raise NotFound(elsewhere)
            weights, momentum, root = after.weights, after.momentum, after.weights_root
        if root != plan.weights_root:
            raise NotFound(elsewhere)
        if self._checkpoints.save_weights(weights) != plan.weights_sha256:
            raise NotFound(f"the weights of state {plan.settled_rounds} have another file digest")
        _log.info("base_weights_rebuilt", settled_rounds=plan.settled_rounds, steps=len(steps))
        return weights

    def _mean(self, step: Ancestor) -> MeanOfChunk:
        try:
            return self._means.load(step.result_digest)
        except BadDigest as error:
            raise NotFound(str(error)) from error

    def _start(self, plan: Plan) -> tuple[Vector, Vector, list[Ancestor]]:
        """The nearest older state that is whole, and the steps from there, in order."""
        steps: list[Ancestor] = []
        for ancestor in plan.ancestors:
            if not self._means.holds(ancestor.result_digest):
                break
            steps.insert(0, ancestor)
            saved = ancestor.saved
            if not (
                self._checkpoints.contains(WEIGHTS, saved.weights_sha256)
                and self._checkpoints.contains(MOMENTUM, saved.momentum_sha256)
            ):
                continue
            try:
                return (*self._checkpoints.load(saved), steps)
            except (FileNotFoundError, BadDigest) as error:
                _log.error("checkpoint_unusable", why=str(error))
        raise NotFound(
            f"the weights of state {plan.settled_rounds} are lost: neither their file nor an older "
            "state with all means since is in the store"
        )


def plan(session: Session, state_digest: bytes) -> Plan:
    """What leads to the weights of a state.

    Raises:
        NotFound: the run never had such a state.
    """
    target = session.scalar(select(StateRow).where(StateRow.digest == state_digest))
    if target is None:
        raise NotFound(f"no state of this run has the digest {state_digest.hex()[:16]}")
    rows = session.execute(
        select(StateRow, RoundRow.result_digest)
        .join(RoundRow, RoundRow.settled_after == StateRow.settled_rounds + 1)
        .where(
            StateRow.settled_rounds < target.settled_rounds,
            StateRow.settled_rounds >= target.settled_rounds - 2 * STRIDE,
            RoundRow.result_digest.is_not(None),  # the others were skipped
        )
        .order_by(StateRow.settled_rounds.desc())
    )
    ancestors = tuple(Ancestor(_saved(row[0]), bytes(row[1] or b"")) for row in rows)
    return Plan(target.settled_rounds, target.weights_sha256, target.weights_root, ancestors)


def kept(session: Session, context: RunContext, now_s: float) -> Kept:
    """What audits and slow downloads still need; the rest may go."""
    options = context.options
    newest = session.scalar(select(func.max(StateRow.settled_rounds))) or 0
    audited = _audited_states(session, now_s, options.audit.appeal_s)
    most = max(1, min(options.kept_means, options.kept_mean_bytes // context.vector_bytes))
    oldest = min([newest, *audited, *_pending_states(session)])
    first = max(oldest, newest - most) // STRIDE * STRIDE
    whole = or_(
        StateRow.settled_rounds > newest - options.kept_checkpoints,
        and_(StateRow.settled_rounds >= first, StateRow.settled_rounds % STRIDE == 0),
    )
    states = session.scalars(select(StateRow).where(whole)).all()
    files = session.scalars(
        select(StateRow.weights_sha256).where(
            StateRow.settled_rounds.in_(sorted(audited)[-_AUDITED_STATES:])
        )
    )
    means = session.scalars(
        select(RoundRow.result_digest).where(
            RoundRow.settled_after > first, RoundRow.result_digest.is_not(None)
        )
    )
    return Kept(
        tuple(_saved(row) for row in states),
        frozenset(files),
        frozenset(digest for digest in means if digest is not None),
    )


def keep_mean(checkpoints: CheckpointStore, manifest: RunManifest, chunks: Sequence[bytes]) -> None:
    """Keep the result chunks of a round that is being settled; blocks.

    Raises:
        TransientError: the store refused; nothing is half-written.
    """
    MeanStore(checkpoints, manifest).save(chunks)


def prune(checkpoints: CheckpointStore, manifest: RunManifest, keep: Kept) -> None:
    """Delete what is not kept; blocks.

    Raises:
        TransientError: the store refused; the next round's end tries again.
    """
    checkpoints.prune(keep.states, keep.weights)
    MeanStore(checkpoints, manifest).prune(keep.means)


def _audited_states(session: Session, now_s: float, appeal_s: float) -> set[int]:
    """States that undecided audits, possible appeals and open probation units start from."""
    open_or_appealable = or_(
        AuditRow.phase != DECIDED,
        and_(AuditRow.verdict == Verdict.FAILED, AuditRow.decided_at_s > now_s - appeal_s),
    )
    audits = session.scalars(
        select(RoundRow.settled_rounds)
        .join(AuditRow, AuditRow.round == RoundRow.number)
        .where(open_or_appealable)
        .distinct()
    )
    probations = session.scalars(
        select(ProbationRow.settled_rounds)
        .where(ProbationRow.status.in_(("issued", "committed")))
        .distinct()
    )
    return {*audits, *probations}


def _pending_states(session: Session) -> list[int]:
    """The oldest state of a contribution that may still be audited; none: an empty list."""
    decided = select(AuditRow.assignment_id).where(AuditRow.phase == DECIDED)
    oldest = session.scalar(
        select(func.min(RoundRow.settled_rounds))
        .join(ContributionRow, ContributionRow.round == RoundRow.number)
        .where(ContributionRow.credit == PENDING, ContributionRow.assignment_id.not_in(decided))
    )
    return [] if oldest is None else [oldest]


def _saved(row: StateRow) -> SavedState:
    return SavedState(
        row.weights_sha256, row.weights_bytes, row.momentum_sha256, row.momentum_bytes
    )


def _name(result_digest: bytes) -> str:
    return f"{result_digest.hex()}.mean"
