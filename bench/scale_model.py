"""Reduces of 100 to 10,000 homes, simulated: one level with all as reducers or few, and two levels.

The costs of streams, chunks, signatures and reports are fitted to the real members that
:mod:`bench.scale` measured (:mod:`bench.scale_fit`), and the simulation is checked against those
runs (:mod:`bench.scale_check`). Links and who can be dialled are assumptions
(:mod:`bench.scale_homes`); what happens to those who vanish is in :mod:`bench.scale_losses`, the
price of a second encoding, measured with the real codecs, in :mod:`bench.scale_encoding`.

A round's time is from the first byte of the rosters to the last member's mean: nobody is left out,
so no topology can be faster than the slowest home's link; ``x bound`` is relative to that.
Utilisation is training time by wall time without overlap.

``python -m bench.scale_model 1000 anchors`` simulates single lines anew (homes, and a part of the
topology's name) and keeps the others of the last report.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import isqrt
from multiprocessing import get_context

from bench.report import RESULTS, Row, write_report
from bench.scale import row
from bench.scale_check import check
from bench.scale_combining import combining_s
from bench.scale_encoding import encoding_error
from bench.scale_figure import write_figure
from bench.scale_fit import Fits, fit_all
from bench.scale_flat import FlatRound, butterfly_shares, few_shares, todays_shares
from bench.scale_grid import GridRound
from bench.scale_homes import HOMES, Link, Member, draw_members
from bench.scale_job import Job, Round
from bench.scale_losses import Loss, Phase, flat_loss, grid_loss
from coordinator.roster import MAX_REDUCERS
from protocol.update import ChunkLayout

LAYOUT = ChunkLayout(124_000_000, 1 << 17)
ANCHORS = 4
SIZES = (100, 256, 1000, 10_000)
MOST_ALL_REDUCE = 1000
"""More homes that all reduce are not simulated: ten thousand are 19 million transfers, on top of 19
thousand streams for each reducer, which nobody would run."""
SEEDS = 2  # one where there are a thousand homes or more: they are alike
VANISHING = (0.01, 0.02, 0.05)
ALLOWED_S = 2 * (60.0 + 252.0)
"""GATHER and BROADCAST of an attempt: the manifest's default, grown with this vector."""

FASTER, FROM_CABLE_UP = 1000, HOMES[1:]
"""So many homes are simulated without the slowest kind of link, too."""

NOTE = (
    "124 M elements, int4, 4 anchors of 1 Gbit/s and so many homes; round: until the last member "
    "has the mean, median of the seeds; MB and streams of a round: median member / busiest"
)
LOAD_NOTE = (
    "the same rounds: inputs that the fullest reducer holds, and the coordinator's load in one; "
    "when 1 / 2 / 5 % of the members vanish in the reduce: rounds lost, units lost of members that "
    "stayed, seconds more"
)
CHECK_NOTE = (
    "rounds of real members on one machine; fitted: with the costs of all cases; predicted: with "
    "those of the cases of other sizes only; cpu: processor seconds of all members"
)
ENCODING_NOTE = (
    "relative L2 error of the mean, int4 throughout, or the groups' sums in int8; members' updates "
    "with cosine 0.2 to each other"
)

Simulation = FlatRound | GridRound
Build = Callable[[Job, Sequence[Member]], Simulation]


def _butterfly(job: Job, members: Sequence[Member]) -> Simulation:
    return FlatRound(job, members, butterfly_shares(members, job.layout.count))


def _as_today(job: Job, members: Sequence[Member]) -> Simulation:
    return FlatRound(job, members, todays_shares(members, job.layout.count))


def _few(most: Callable[[int], int]) -> Build:
    def build(job: Job, members: Sequence[Member]) -> Simulation:
        return FlatRound(job, members, few_shares(members, job.layout.count, most(len(members))))

    return build


def _across(job: Job, members: Sequence[Member]) -> Simulation:
    return GridRound(job, members)


def _anchors_on_top(job: Job, members: Sequence[Member]) -> Simulation:
    return GridRound(job, members, few_shares(members, job.layout.count, ANCHORS))


TOPOLOGIES: dict[str, Build] = {
    "one level, as today": _as_today,
    "one level, all reduce": _butterfly,
    "one level, best 64 reduce": _few(lambda _: MAX_REDUCERS),
    "one level, anchors reduce": _few(lambda _: ANCHORS),
    "two levels, in turns on top": _across,
    "two levels, anchors on top": _anchors_on_top,
}


@dataclass(frozen=True)
class Scenario:
    """A line of the table."""

    topology: str
    homes: int
    links: tuple[Link, ...] = HOMES

    def members(self, seed: int) -> list[Member]:
        return draw_members(self.homes, ANCHORS, random.Random(seed), self.links)


def run(quick: bool) -> list[Row]:
    """Check, simulate and report; ``quick`` only the smallest size."""
    return _report(_scenarios(SIZES[:1] if quick else SIZES), "-quick" if quick else "", {})


def _scenarios(sizes: Sequence[int]) -> list[Scenario]:
    scenarios = [
        Scenario(name, homes)
        for homes in sizes
        for name, build in TOPOLOGIES.items()
        if build is not _butterfly or homes <= MOST_ALL_REDUCE
    ]
    if FASTER in sizes:
        today, *_, two_levels = TOPOLOGIES
        scenarios += [Scenario(name, FASTER, FROM_CABLE_UP) for name in (today, two_levels)]
    return scenarios


Lines = dict[Scenario, tuple[Row, Row]]
"""Of the table of times and of that of loads."""


def _report(again: Sequence[Scenario], tail: str, known: Lines) -> list[Row]:
    details = json.loads((RESULTS / f"scale-hosts{tail}.json").read_text())
    combine_element_s = combining_s("int4", LAYOUT.chunk_elements)
    fits = fit_all(details, combine_element_s)
    checked = check(details, combine_element_s)
    write_report(f"scale_check{tail}", checked, note=f"{CHECK_NOTE}; {_fit_note(fits)}")
    lines = known | dict(zip(again, _simulate_all(again, fits), strict=True))
    order = [scenario for scenario in _scenarios(SIZES) if scenario in lines]
    rows, loads = ([lines[scenario][table] for scenario in order] for table in (0, 1))
    write_report(f"scale_model{tail}", rows, note=NOTE)
    write_report(f"scale_model_load{tail}", loads, note=LOAD_NOTE)
    sizes = sorted({scenario.homes for scenario in order})
    write_report(f"scale_encoding{tail}", _encodings(sizes), note=ENCODING_NOTE)
    if not tail:
        write_figure([row(detail) for detail in details], checked, rows, loads)
    return rows


def _known() -> Lines:
    """The lines of the last full report."""
    tables = []
    for name in ("scale_model", "scale_model_load"):
        path = RESULTS / f"{name}.json"
        tables.append(json.loads(path.read_text())["rows"] if path.exists() else [])
    named = {(s.topology, s.homes, _links(s)): s for s in _scenarios(SIZES)}
    return {
        named[times["topology"], times["homes"], times["links"]]: (times, load)
        for times, load in zip(*tables, strict=True)
        if (times["topology"], times["homes"], times["links"]) in named
    }


def _links(scenario: Scenario) -> str:
    return "all" if scenario.links == HOMES else "cable and better"


def _fit_note(fits: Fits) -> str:
    parts = []
    for name in ("gather", "broadcast", "coordinator", "daemon_bytes", "python_bytes"):
        fit = getattr(fits, name)
        costs = ", ".join(f"{step} {cost:.3g}" for step, cost in fit.costs.items())
        parts.append(f"{name} ({fit.rows} rows, off by {fit.residual:.0%} rms): {costs}")
    return "; ".join(parts)


def _encodings(sizes: Sequence[int]) -> list[Row]:
    rows: list[Row] = []
    for members in sizes:
        errors = [encoding_error(members, isqrt(members), seed) for seed in range(SEEDS)]
        line: Row = {"members": members, "groups": isqrt(members)}
        for name in ("members_only", "one_level", "two_levels", "two_levels_int8"):
            line[name] = statistics.median(getattr(error, name) for error in errors)
        rows.append(line)
    return rows


def _simulate_all(scenarios: Sequence[Scenario], fits: Fits) -> list[tuple[Row, Row]]:
    """The lines of all scenarios, the largest begun first."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        largest_first = sorted(scenarios, key=lambda scenario: -scenario.homes)
        begun = {scenario: pool.submit(_simulate, scenario, fits) for scenario in largest_first}
        return [begun[scenario].result() for scenario in scenarios]


def _simulate(scenario: Scenario, fits: Fits) -> tuple[Row, Row]:
    """A line of each table."""
    large = scenario.homes > 2000
    job = Job(LAYOUT, "int4", fits, most_pieces=1 if large else 2)
    taken = []
    for seed in range(1 if scenario.homes >= 1000 else SEEDS):
        members = scenario.members(seed)
        simulation = TOPOLOGIES[scenario.topology](job, members)
        taken.append(_facts(job, members, simulation, simulation.run()))
    middle = {name: statistics.median(facts[name] for facts in taken) for name in taken[0]}
    what: Row = {
        "homes": scenario.homes,
        "links": _links(scenario),
        "topology": scenario.topology,
    }
    times = what | {
        "round_s": middle["round_s"],
        "x_bound": middle["round_s"] / middle["bound_s"],
        "half_done_s": middle["half_s"],
        "utilisation_5_min": 300 / (300 + middle["round_s"]),
        "utilisation_30_min": 1800 / (1800 + middle["round_s"]),
        "MB_up": _two(middle, "up_mb"),
        "MB_down": _two(middle, "down_mb"),
        "streams": _two(middle, "streams"),
    }
    load = what | {
        "reducer_MB": round(middle["held_mb"]),
        "roster_KB": round(middle["roster_kb"]),
        "coordinator_sends_MB": round(middle["sent_mb"], 1),
        "reports_MB": round(middle["reports_mb"], 1),
        "statements": round(middle["statements"]),
        "screenings_MB": round(middle["screenings_mb"], 1),
        "rounds_lost": _losses(middle, "rounds"),
        "units_lost": _losses(middle, "units"),
        "more_s": " / ".join(f"{middle[f'more_{share}']:.0f}" for share in VANISHING),
    }
    return times, load


def _two(facts: dict[str, float], name: str) -> str:
    return f"{facts[name]:.0f} / {facts[f'most_{name}']:.0f}"


def _losses(facts: dict[str, float], kind: str) -> str:
    return " / ".join(f"{facts[f'{kind}_{share}']:.1%}" for share in VANISHING)


def _facts(
    job: Job, members: Sequence[Member], simulation: Simulation, done: Round
) -> dict[str, float]:
    if len(done.finished_at_s) != len(members):
        raise RuntimeError("a simulated member did not get the mean")
    ends_s = sorted(done.finished_at_s.values())
    nodes, streams = done.nodes[: len(members)], simulation.streams()
    up = [node.up.done / 1e6 for node in nodes]
    down = [node.down.done / 1e6 for node in nodes]
    facts = {
        "round_s": ends_s[-1],
        "half_s": ends_s[len(ends_s) // 2],
        "bound_s": bound_s(job, members),
        "up_mb": statistics.median(up),
        "most_up_mb": max(up),
        "down_mb": statistics.median(down),
        "most_down_mb": max(down),
        "streams": statistics.median(streams),
        "most_streams": max(streams),
        "held_mb": simulation.held_bytes() / 1e6,
        "roster_kb": simulation.roster_bytes() / 1e3,
        "sent_mb": done.load.sent_bytes / 1e6,
        "reports_mb": done.load.report_bytes / 1e6,
        "statements": done.load.statements,
        "screenings_mb": simulation.screening_bytes() / 1e6,
    }
    for share in VANISHING:
        loss = _loss(job, members, simulation, done, share)
        facts |= {
            f"rounds_{share}": loss.rounds_lost,
            f"units_{share}": loss.units_lost,
            f"more_{share}": loss.more_s,
        }
    return facts


def bound_s(job: Job, members: Sequence[Member]) -> float:
    """What the slowest home's link takes for one vector up and one down."""
    homes = [member for member in members if not member.anchor]
    up_s = max(job.vector_bytes / member.up_bytes_s for member in homes)
    return up_s + max(job.vector_bytes / member.down_bytes_s for member in homes)


def _loss(
    job: Job, members: Sequence[Member], simulation: Simulation, done: Round, vanishing: float
) -> Loss:
    whole_s = max(done.finished_at_s.values())
    if isinstance(simulation, GridRound):
        holders = statistics.mean(len(shares) for shares in simulation.shares)
        tops = sum(not members[top].anchor for top in simulation.back)
        inside = Phase(done.gathered_at_s, round(holders))
        across = Phase(done.gathered_at_s - done.inside_at_s, tops)
        groups = len(simulation.groups)
        return grid_loss(inside, across, whole_s, groups, ALLOWED_S, vanishing)
    home_reducers = sum(not members[i].anchor for i in simulation.reducing)
    anchors = [member for member in members if member.anchor]
    each_way_s = len(members) * job.vector_bytes / sum(a.slower_bytes_s for a in anchors)
    anchors_s = max(2 * each_way_s, bound_s(job, members))
    return flat_loss(Phase(whole_s, home_reducers), anchors_s, ALLOWED_S, vanishing)


def main() -> None:
    homes, part = int(sys.argv[1]), " ".join(sys.argv[2:])
    again = [s for s in _scenarios(SIZES) if s.homes == homes and part in s.topology]
    _report(again, "", _known())


if __name__ == "__main__":
    main()
