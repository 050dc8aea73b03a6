"""One table on the screen and one JSON file: numbers, machine, versions, command."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("barnraise", "torch", "transformers", "numpy", "hivemind", "grpcio", "sqlalchemy")

_TABLE_COLUMNS = 120

Row = dict[str, object]


def write_report(name: str, rows: list[Row], *, note: str, show: bool = True) -> Path:
    """Print ``rows`` as a table and write them to ``bench/results/<name>.json``.

    Args:
        name: the benchmark's module name.
        rows: one mapping per line, all with the same keys; units belong in the keys.
        note: what was measured against what, in a sentence.
        show: print it, too.
    """
    if show:
        _show(name, rows, note)
    report = {
        "name": name,
        "note": note,
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "measured_at_s": int(time.time()),
        "machine": machine(),
        "versions": {package: version(package) for package in _PACKAGES},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return path


def ratio_columns(ratios: Sequence[float], digits: int = 3) -> Row:
    """The median of the turns' ratios, and between what they were."""
    return {
        "ratio": round(statistics.median(ratios), digits),
        "ratio_min": round(min(ratios), digits),
        "ratio_max": round(max(ratios), digits),
    }


def _show(name: str, rows: list[Row], note: str) -> None:
    table = Table(title=name, caption=note)
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console()
    console.width = max(console.width, _TABLE_COLUMNS)  # a wrapped line is better than "pl…"
    console.print(table)


def machine() -> Row:
    """What a reader needs to compare two reports."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cell(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
