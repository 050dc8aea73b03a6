"""Costs of a reduce's steps in processor seconds, fitted to measured rounds.

For each Python process of each measured case, and for both phases, the processor time of the
process and of its members' daemons is explained by how often its members did each step. The
coefficients are non-negative and minimise the *relative* squared error, so that small cases count
as much as large ones. :attr:`Fit.residual` says how far off it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.scale_rig import Case

Counts = dict[str, float]
Floats = NDArray[np.float64]

FITTED_MEMBERS = 16
"""Larger cases are not fitted to but predicted: so the check is one."""

SWEEPS = 20_000
"""Of coordinate descent: ten unknowns need some thousand."""


@dataclass(frozen=True)
class Fit:
    """Seconds (or bytes) for one of each, and the root mean square of the relative error."""

    costs: Mapping[str, float]
    residual: float
    rows: int

    def __getitem__(self, name: str) -> float:
        return self.costs[name]

    def of(self, counts: Mapping[str, float]) -> float:
        """What so many of each take."""
        return sum(self.costs[name] * count for name, count in counts.items())


def gather_counts(case: Case, ranks: Sequence[int], connections: Sequence[int]) -> Counts:
    """How often some members do each step of GATHER.

    ``listed``: before it opens a stream, a member asks its daemon for all its connections.

    Args:
        connections: of each member of the case.
    """
    own = _own_chunks(case)
    reducers = [rank for rank in ranks if rank in own]
    served = len(reducers) * (case.members - 1)
    kept = sum(own[rank] for rank in reducers)
    return {
        "open": len(ranks) * case.reducers - len(reducers),
        "listed": sum((case.reducers - (rank in own)) * connections[rank] for rank in ranks),
        "serve": served,
        "leaf": served * case.layout.count,
        "chunk_out": len(ranks) * case.layout.count - kept,
        "chunk_in": kept * case.members,
        "element_in": kept * case.members * case.chunk_elements,
    }


def broadcast_counts(case: Case, ranks: Sequence[int], connections: Sequence[int]) -> Counts:
    """How often some members do each step of BROADCAST; see :func:`gather_counts`."""
    own = _own_chunks(case)
    reducers = [rank for rank in ranks if rank in own]
    kept = sum(own[rank] for rank in reducers)
    return {
        "open": len(ranks) * case.reducers - len(reducers),
        "listed": sum((case.reducers - (rank in own)) * connections[rank] for rank in ranks),
        "serve": len(reducers) * (case.members - 1),
        "chunk_out": kept * (case.members - 1),
        "chunk_in": len(ranks) * case.layout.count,
        "element_in": len(ranks) * case.elements,
        "combine_element": kept * case.members * case.chunk_elements,
    }


def _own_chunks(case: Case) -> dict[int, int]:
    count = case.reducers
    shares = pairwise([case.layout.count * i // count for i in range(count + 1)])
    return dict(zip(case.reducing, (end - first for first, end in shares), strict=True))


@dataclass(frozen=True)
class Fits:
    """Everything that the simulation takes from the measured runs."""

    gather: Fit
    broadcast: Fit
    coordinator: Fit  # of a report, and of a statement in it
    daemon_bytes: Fit  # of a member's daemon: itself, and each connection
    python_bytes: Fit  # of a process: itself, and each member


def fit_all(
    details: Sequence[dict[str, Any]], combine_element_s: float, *, without_members: int = 0
) -> Fits:
    """Fit to measured cases.

    Args:
        details: of ``bench/results/scale-hosts.json``.
        combine_element_s: of :func:`bench.scale_combining.combining_s`.
        without_members: cases of this size are left out, to be predicted.
    """
    sizes = {detail["case"]["members"] for detail in details} - {without_members}
    fitted = {size for size in sizes if size <= FITTED_MEMBERS}
    used = [detail for detail in details if detail["case"]["members"] in fitted]
    cases = [(Case(**detail["case"]), detail) for detail in used]
    return Fits(
        gather=_fit_phase(cases, "gather", gather_counts, {}),
        broadcast=_fit_phase(
            cases, "broadcast", broadcast_counts, {"combine_element": combine_element_s}
        ),
        coordinator=_fit_coordinator(cases),
        daemon_bytes=_fit_daemons(cases),
        python_bytes=_fit_python(cases),
    )


def _fit_phase(
    cases: Sequence[tuple[Case, Any]], phase: str, counts: Any, known: Mapping[str, float]
) -> Fit:
    rows, taken = [], []
    for case, detail in cases:
        later = detail["rounds"][1:]
        for at, ranks in enumerate(case.hosts):
            used = [r[phase][at]["python_s"] + r[phase][at]["daemons_s"] for r in later]
            rows.append(counts(case, ranks, detail["connections"]))
            taken.append(statistics.mean(used))  # clock ticks are coarse: not the median
    return fit(rows, taken, known)


def _fit_coordinator(cases: Sequence[tuple[Case, Any]]) -> Fit:
    tallies = [r["tally"] for _, detail in cases for r in detail["rounds"][1:]]
    rows = [{"report": float(t["reports"]), "statement": float(t["statements"])} for t in tallies]
    return fit(rows, [t["cpu_s"] for t in tallies])


def _fit_daemons(cases: Sequence[tuple[Case, Any]]) -> Fit:
    rows = [
        {"daemon": float(case.members), "connection": float(sum(detail["connections"]))}
        for case, detail in cases
    ]
    return fit(rows, [sum(m["daemons_bytes"] for m in d["memory"]) for _, d in cases])


def _fit_python(cases: Sequence[tuple[Case, Any]]) -> Fit:
    rows, taken = [], []
    for case, detail in cases:
        for ranks, memory in zip(case.hosts, detail["memory"], strict=True):
            rows.append({"process": 1.0, "member": float(len(ranks))})
            taken.append(float(memory["python_bytes"]))
    return fit(rows, taken)


def fit(
    rows: Sequence[Mapping[str, float]],
    taken: Sequence[float],
    known: Mapping[str, float] | None = None,
) -> Fit:
    """Non-negative least squares of the relative error, by coordinate descent.

    Args:
        rows: how often each step was done; all with the same keys.
        taken: what that took, above zero.
        known: costs of some steps, which are not fitted.
    """
    known = known or {}
    names = [name for name in rows[0] if name not in known]
    target = np.array(taken, np.float64)
    if (target <= 0).any():
        raise ValueError("what took nothing explains nothing")
    relative = np.array([[row[name] for name in names] for row in rows], np.float64)
    relative /= target[:, None]
    scale = relative.max(axis=0)
    scale[scale == 0] = 1
    spent = np.array([sum(cost * row[name] for name, cost in known.items()) for row in rows])
    rest = 1 - spent / target
    solution = _non_negative(relative / scale, rest) / scale
    error = relative @ solution - rest
    residual = float(np.sqrt(np.mean(error * error)))
    costs = dict(zip(names, map(float, solution), strict=True))
    return Fit(costs | dict(known), residual, len(rows))


def _non_negative(matrix: Floats, target: Floats) -> Floats:
    """The x >= 0 that brings ``matrix @ x`` nearest to the target."""
    gram, right = matrix.T @ matrix, matrix.T @ target
    x = np.zeros(len(right))
    for _ in range(SWEEPS):
        before = x.copy()
        for i in range(len(x)):
            if gram[i, i] > 0:
                x[i] = max(0.0, x[i] + (right[i] - gram[i] @ x) / gram[i, i])
        if np.abs(x - before).max() <= 1e-12 * max(1.0, np.abs(x).max()):
            break
    return x
