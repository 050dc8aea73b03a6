"""Benchmarks of many slow configurations: each is written down as soon as it is measured.

``BENCH_ONLY=PART,PART`` measures the configurations whose names have all these parts, and puts them
into the report that is there; without it the whole report is made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from bench.report import RESULTS, Row, write_report


class Case(Protocol):
    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=Case)


def run_cases(
    name: str, cases: Sequence[C], measure: Callable[[C], Sequence[Row]], *, note: str
) -> list[Row]:
    """Measure and report; each row gets the name of its case in front.

    Args:
        name: of the report.
        cases: all of the report, in its order.
        measure: the rows of one.
        note: see :func:`bench.report.write_report`.
    """
    only = [part for part in os.environ.get("BENCH_ONLY", "").split(",") if part]
    path = RESULTS / f"{name}.json"
    known: dict[str, list[Row]] = {}
    if only and path.exists():
        for row in json.loads(path.read_text())["rows"]:
            known.setdefault(row["case"], []).append(row)
    rows: list[Row] = []
    chosen = [case for case in cases if all(part in case.name for part in only)]
    for case in chosen:
        load = round(os.getloadavg()[0], 1)
        known[case.name] = [
            {"case": case.name, **row, "load_before": load} for row in measure(case)
        ]
        rows = [row for each in cases for row in known.get(each.name, ())]
        write_report(name, rows, note=note, show=case is chosen[-1])
    return rows
