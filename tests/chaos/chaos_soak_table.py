"""What a soak prints and writes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bench.report import Row, write_report

if TYPE_CHECKING:
    from chaos_soak import Outcome

NOTE = (
    "real processes on loopback, faults at named places from the seed; goodput: tokens merged of "
    "tokens trained; loss: against runs in peace with as many rounds, members and merged tokens"
)


def figures(outcome: Outcome) -> list[Row]:
    """One figure a line."""
    rounds, goodput = outcome.rounds, outcome.goodput
    calm = sum(outcome.calm) / len(outcome.calm)
    spread = max(outcome.calm) - min(outcome.calm)
    settled = sum(phase == "SETTLED" for phase, *_ in rounds.values())
    fired = Counter(str(happened.fault.do) for happened in outcome.fired)
    deaths = Counter(
        str(happened.fault.place)
        for happened in outcome.fired
        if happened.fault.do == "kill" and happened.fault.who != "coordinator"
    )
    rows: list[tuple[str, object]] = [
        ("seed", outcome.seed),
        ("minutes under faults", outcome.minutes),
        ("workers", outcome.shape.workers),
        ("rounds settled", settled),
        ("rounds skipped", len(rounds) - settled),
        *((f"faults: {do}", count) for do, count in sorted(fired.items())),
        ("workers killed in", ", ".join(f"{p} {n}" for p, n in deaths.most_common())),
        ("steps trained", goodput.trained),
        ("steps merged", goodput.merged),
        ("goodput", f"{goodput.ratio:.1%}"),
        *((f"steps lost: {cause}", n) for cause, n in sorted(goodput.lost.items())),
        ("validation loss, nats", round(outcome.loss, 4)),
        ("in peace, nats", f"{calm:.4f} (spread {spread:.4f})"),
        ("above peace", f"{outcome.loss / calm - 1:+.2%}"),
        ("processes watched", len({trend.name for trend in outcome.trends})),
        ("processes that grow", sum(trend.grows for trend in outcome.trends)),
        ("largest rise, MiB", _largest(outcome)),
        ("wrong", len(outcome.wrong)),
    ]
    return [{"figure": name, "value": value} for name, value in rows]


def _largest(outcome: Outcome) -> str:
    memory = [trend for trend in outcome.trends if trend.what.startswith("memory")]
    if not memory:
        return "-"
    worst = max(memory, key=lambda trend: trend.growth.rise)
    return f"{worst.growth.rise:.1f} of {worst.growth.first:.0f} ({worst.name})"


def as_text(outcome: Outcome) -> str:
    """The table as it goes into a failure's message."""
    rows = figures(outcome)
    width = max(len(str(row["figure"])) for row in rows)
    lines = [f"{row['figure']:<{width}}  {row['value']}" for row in rows]
    return "\n".join([*lines, *(f"WRONG: {problem}" for problem in outcome.wrong)])


def write(outcome: Outcome) -> None:
    """Print the table and write ``bench/results/soak.json``."""
    write_report("soak", figures(outcome), note=NOTE)
