"""How one reduce grows with its members: as many real ones as this machine holds.

Each member is a real peer (:mod:`bench.scale_host`) with a key, a peer-to-peer daemon and a DHT
node of its own; above eight they share Python processes. The vector is small (a million elements,
int4), so that what is measured is what a member more costs, not its bytes. All of them share the
processors of this machine, so round times say what the work is, not what homes would see: for
that :mod:`bench.scale_model` takes the costs that are fitted here. The part of the coordinator is
played by the bench: it verifies what the real one verifies, without a database.

``python -m bench.scale 64/64 ...`` measures single cases (members/reducers) anew and keeps the
others of the last report.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.report import RESULTS, Row, write_report
from bench.scale_rig import Case, Rig

NOTE = (
    "medians of the rounds after the first, all members on one machine; round: from the roster to "
    "the last member's mean; streams: opened in a round by all, and by one member at once"
)
LOAD_NOTE = (
    "MB: resident, shared pages in equal parts; connections: most of a member; reports, statements "
    "and processor time: what the coordinator gets and verifies in a round, medians"
)
SMALL, FINE, LARGE = (1 << 20, 1 << 14), (1 << 20, 1 << 11), (1 << 23, 1 << 17)

CASES = (
    Case(8, 8, *LARGE),
    *(Case(size, size, *SMALL) for size in (2, 8, 32, 4, 16, 64)),
    Case(16, 8, *LARGE, first_ones=True),
    Case(16, 16, *FINE),
    Case(32, 8, *SMALL),
    Case(32, 16, *SMALL, first_ones=True),
    Case(64, 8, *SMALL),
    Case(64, 32, *SMALL, first_ones=True),
)
QUICK = (Case(2, 2, *SMALL), Case(4, 2, *SMALL))


def run(quick: bool) -> list[Row]:
    """Measure all cases; ``quick`` only small ones."""
    return _report(QUICK if quick else CASES, quick=quick, kept=[])


def _report(cases: Sequence[Case], *, quick: bool, kept: Sequence[dict[str, Any]]) -> list[Row]:
    tail, details = "-quick" if quick else "", list(kept)
    for case in cases:
        taken = asyncio.run(measure(case, 2 if quick else 3))
        details = sorted([*details, taken], key=lambda detail: _order(detail["case"]))
        # After each case: the next one may well find no room on this machine.
        (RESULTS / f"scale-hosts{tail}.json").write_text(json.dumps(details, indent=1) + "\n")
    rows = [row(detail) for detail in details]
    write_report(f"scale{tail}", rows, note=NOTE)
    write_report(f"scale_load{tail}", [load_row(detail) for detail in details], note=LOAD_NOTE)
    return rows


def _order(case: dict[str, Any]) -> tuple[int, ...]:
    spread = case["members"] != case["reducers"]
    return (case["elements"], case["chunk_elements"] < SMALL[1], spread, *case.values())


async def measure(case: Case, rounds: int) -> dict[str, Any]:
    """One case: the first round, which makes the connections, and some more."""
    with tempfile.TemporaryDirectory() as folder:
        async with Rig(case, Path(folder)) as rig:
            taken = [await rig.round(number) for number in range(1, rounds + 2)]
            peers = await rig.peers()
            memory = [asdict(host) for host in rig.memory()]
    return {
        "case": asdict(case),
        "rounds": [asdict(round_) for round_ in taken],
        "streams": sum(peer["opened"] for peer in peers) / len(taken),
        "most_streams": max(peer["most_at_once"] for peer in peers),
        "connections": [peer["connections"] for peer in peers],
        "memory": memory,
    }


def row(detail: dict[str, Any]) -> Row:
    """A line of the table of times from what was measured of a case."""
    case, (first, *others) = Case(**detail["case"]), detail["rounds"]
    return {
        "members": case.members,
        "reducers": case.reducers,
        "elements": case.elements,
        "chunks": case.layout.count,
        "processes": len(case.hosts),
        "round_s": statistics.median(map(round_s, others)),
        "first_round_s": round_s(first),
        "gather_s": statistics.median(r["gather_s"] for r in others),
        "cpu_s": statistics.median(map(cpu_s, others)),
        "of_it_p2pd_s": statistics.median(cpu_s(r, "daemons_s") for r in others),
        "streams": round(detail["streams"]),
        "at_once": detail["most_streams"],
    }


def load_row(detail: dict[str, Any]) -> Row:
    """A line of the table of memory, connections and the coordinator's side."""
    case, others = Case(**detail["case"]), detail["rounds"][1:]
    memory, mega = detail["memory"], 1e-6
    tally = {key: statistics.median(r["tally"][key] for r in others) for key in others[0]["tally"]}
    return {
        "members": case.members,
        "reducers": case.reducers,
        "elements": case.elements,
        "chunks": case.layout.count,
        "python_MB_a_process": max(m["python_bytes"] for m in memory) * mega,
        "p2pd_MB_a_member": sum(m["daemons_bytes"] for m in memory) * mega / case.members,
        "connections": max(detail["connections"]),
        "roster_KB": tally["roster_bytes"] / 1e3,
        "reports": tally["reports"],
        "reports_MB": tally["report_bytes"] * mega,
        "statements": tally["statements"],
        "coordinator_cpu_s": tally["cpu_s"],
    }


def round_s(taken: dict[str, Any]) -> float:
    """Seconds of a round, without the encoding before it."""
    return float(taken["gather_s"] + taken["broadcast_s"])


def cpu_s(taken: dict[str, Any], *kinds: str) -> float:
    """Processor seconds of all members in a round."""
    used = [*taken["gather"], *taken["broadcast"]]
    return float(sum(host[kind] for host in used for kind in kinds or ("python_s", "daemons_s")))


def main() -> None:
    wanted = set(sys.argv[1:])
    again = [case for case in CASES if f"{case.members}/{case.reducers}" in wanted]
    path = RESULTS / "scale-hosts.json"
    known = json.loads(path.read_text()) if path.exists() else []
    measured = [asdict(case) for case in again]
    _report(again, quick=False, kept=[detail for detail in known if detail["case"] not in measured])


if __name__ == "__main__":
    main()
