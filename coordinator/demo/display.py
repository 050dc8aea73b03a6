"""The demonstration on the terminal: one line per thing that happened, a bar while it trains."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from coordinator.demo.checks import Check
from coordinator.demo.observer import RoundView, Snapshot


@dataclass
class Display:
    """Prints progress on standard error, so that ``--json`` owns standard output."""

    total_rounds: int
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    _started_s: float = field(default_factory=time.monotonic)
    _told: set[int] = field(default_factory=set)
    _progress: Progress | None = None

    def say(self, text: str) -> None:
        elapsed_s = time.monotonic() - self._started_s
        self.console.print(f"[dim]{elapsed_s:6.1f} s[/dim]  {escape(text)}", soft_wrap=True)

    def show(self, snapshot: Snapshot) -> None:
        """Tell each round once, when it has ended and its loss is known."""
        for view in snapshot.rounds:
            settled = view.phase == "SETTLED" and view.loss is not None
            if view.number not in self._told and (settled or view.phase == "SKIPPED"):
                self._told.add(view.number)
                self.say(_round_line(view))
        if self._progress is None or snapshot.current is None:
            return
        steps = sum(worker.steps_done for worker in snapshot.workers.values())
        current = snapshot.current
        self._progress.update(
            self._progress.task_ids[0],
            completed=len(snapshot.settled),
            description=f"round {current.number} {current.phase.lower():<10} {steps:>4} steps",
        )

    def training(self) -> Progress:
        """The bar of the run; use as a context manager."""
        self._progress = Progress(
            TextColumn("          {task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f} of {task.total:.0f} rounds"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._progress.add_task("starting", total=self.total_rounds)
        return self._progress

    def verdict(self, checks: list[Check], text: str, notes: dict[str, str]) -> None:
        """The closing table, what the model wrote, and where everything is."""
        table = Table(title="Did it hold?", title_justify="left", show_lines=False)
        table.add_column("")
        table.add_column("check", ratio=3)
        table.add_column("seen", ratio=3)
        for check in checks:
            mark = "[green]yes[/green]" if check.held else "[red]NO[/red]"
            table.add_row(mark, escape(check.name), escape(check.seen))
        self.console.print(table)
        if text:
            self.console.print("\nThe model writes:\n")
            self.console.print(escape(text), style="italic")
        self.console.print()
        for name, value in notes.items():
            self.console.print(f"{name:<12} {escape(value)}", soft_wrap=True)


def _round_line(view: RoundView) -> str:
    if view.phase == "SKIPPED":
        return f"round {view.number} skipped: {view.reason}"
    people = "member" if view.members == 1 else "members"
    return (
        f"round {view.number} settled: {view.members} {people}, {view.tokens:,} tokens, "
        f"validation loss {view.loss:.3f}"
    )
