"""The simulation against the measured rounds: each size predicted from the costs of other sizes.

Cases of more than :data:`bench.scale_fit.FITTED_MEMBERS` members are in no fit at all.

All members of a measured case share this machine's processors, and its links carry everything at
once; so does the simulated one. What is compared is a whole round, GATHER and BROADCAST.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.report import Row
from bench.scale import cpu_s, round_s
from bench.scale_fit import Fits, broadcast_counts, fit_all, gather_counts
from bench.scale_flat import FlatRound
from bench.scale_homes import Member
from bench.scale_job import Job, Share
from bench.scale_network import Processors
from bench.scale_rig import CODEC, Case

PROCESSORS = 2
"""Of the machine that the committed cases were measured on."""

_AT_ONCE = Member(
    up_bytes_s=1e12, down_bytes_s=1e12, latency_s=0.0, cores=1, reachable=True
)  # its cores are replaced by the machine's


def predicted_s(case: Case, fits: Fits) -> float:
    """Seconds of a round of this case on one machine."""
    count = case.reducers
    ends = [case.layout.count * i // count for i in range(count + 1)]
    shares = [
        Share(rank, end - first)
        for rank, first, end in zip(case.reducing, ends, ends[1:], strict=False)
    ]
    job = Job(case.layout, CODEC, fits, most_pieces=64)
    members = [_AT_ONCE] * case.members
    done = FlatRound(job, members, shares, Processors(PROCESSORS)).run()
    return max(done.finished_at_s.values())


def predicted_cpu_s(case: Case, connections: Sequence[int], fits: Fits) -> float:
    """Processor seconds of all members in a round of this case."""
    everybody = range(case.members)
    return fits.gather.of(gather_counts(case, everybody, connections)) + fits.broadcast.of(
        broadcast_counts(case, everybody, connections)
    )


def check(details: Sequence[dict[str, Any]], combine_element_s: float) -> list[Row]:
    """A line for each measured case."""
    everything, rows = fit_all(details, combine_element_s), list[Row]()
    for detail in details:
        case = Case(**detail["case"])
        others = fit_all(details, combine_element_s, without_members=case.members)
        later, connections = detail["rounds"][1:], detail["connections"]
        measured_s, used_s = (
            statistics.median(map(round_s, later)),
            statistics.median(map(cpu_s, later)),
        )
        blind_s = predicted_s(case, others)
        blind_cpu_s = predicted_cpu_s(case, connections, others)
        rows.append(
            {
                "members": case.members,
                "reducers": case.reducers,
                "elements": case.elements,
                "chunks": case.layout.count,
                "cpu_s": used_s,
                "fitted_cpu_s": predicted_cpu_s(case, connections, everything),
                "predicted_cpu_s": blind_cpu_s,
                "by_measured_cpu": blind_cpu_s / used_s,
                "round_s": measured_s,
                "fitted_round_s": predicted_s(case, everything),
                "predicted_round_s": blind_s,
                "by_measured_round": blind_s / measured_s,
            }
        )
    return rows
