"""How long a combined chunk can be: a bound on what one reducer may do before it is audited.

Under ``clipped_mean`` every input is cut to a median norm, so the result is no longer than some
honest member's chunk, and that no longer than the member's whole update, whose length it signed in
its Contribution. Lengths that are far from the median are not believed. Under plain ``mean`` one
long input makes a long result, and nothing can be said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from coordinator.schema import ContributionRow, RosterRow
from coordinator.turn import Turn
from protocol.combine import weighted_lower_median
from protocol.wire import records_pb2 as wire

_BELIEVED = 10.0
"""Times the median: a member with few steps has a shorter update, but not so much."""

_SLACK = 2.0
"""For the codec's rounding of inputs and result."""


def longest_result(turn: Turn, roster_row: RosterRow) -> float | None:
    """Bound on the L2 norm of a result chunk of the running reduce; None where there is none."""
    if turn.context.manifest.update.combine != "clipped_mean":
        return None
    envelope = wire.Envelope.FromString(roster_row.envelope)
    included = frozenset(turn.machine.inclusion)
    weights = {
        member.worker: member.weight
        for member in wire.Roster.FromString(envelope.payload).members
        if member.worker in included
    }
    norms = _signed_norms(turn, list(weights))
    return bound_of([norms[worker] for worker in weights], list(weights.values()))


def bound_of(norms: Sequence[float], weights: Sequence[int]) -> float:
    """The longest signed length that is believed, with slack.

    Args:
        norms: of the included members' whole updates, as signed.
        weights: of the roster, in the same order.
    """
    median = weighted_lower_median(norms, weights)
    return _SLACK * max(norm for norm in norms if norm <= _BELIEVED * median)


def _signed_norms(turn: Turn, workers: Sequence[str]) -> Mapping[str, float]:
    rows = turn.session.execute(
        select(ContributionRow.worker, ContributionRow.envelope).where(
            ContributionRow.round == turn.machine.number, ContributionRow.worker.in_(workers)
        )
    )
    return {
        row.worker: wire.Contribution.FromString(
            wire.Envelope.FromString(row.envelope).payload
        ).update_norm
        for row in rows
    }
