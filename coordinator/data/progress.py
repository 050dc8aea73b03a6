"""A build's progress on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Final

from coordinator.data.options import Phase, Progress, ProgressCallback

TITLES: Final[dict[Phase, str]] = {
    "tokenizer": "Train tokenizer",
    "tokenise": "Tokenise",
    "shuffle": "Shuffle",
    "shards": "Write shards",
    "publish": "Publish",
}
LINE_EVERY_S = 5.0


@contextlib.contextmanager
def shown(quiet: bool) -> Iterator[ProgressCallback]:
    """A callback for ``build_dataset``; shows nothing when ``quiet``."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bars() as callback:
            yield callback
    else:
        yield _Lines()


class _Lines:
    """At most one line each few seconds, and one when a phase begins."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._said_at = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase == self._phase and now - self._said_at < LINE_EVERY_S:
            return
        self._phase, self._said_at = progress.phase, now
        share = f" {100 * progress.done // progress.total}%" if progress.total else ""
        print(f"{TITLES[progress.phase]}{share}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bars() -> Iterator[ProgressCallback]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description:<16}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[amount]}"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[Phase, rich_progress.TaskID] = {}

        def update(progress: Progress) -> None:
            if progress.phase not in tasks:
                for task in tasks.values():  # an earlier phase is over
                    bars.update(task, completed=bars.tasks[task].total)
                tasks[progress.phase] = bars.add_task(TITLES[progress.phase], amount="")
            # Training does not say how far it is until it is done: a bar that pulses.
            is_known = progress.done > 0 or progress.phase != "tokenizer"
            bars.update(
                tasks[progress.phase],
                completed=progress.done,
                total=progress.total if is_known else None,
                amount=_amount(progress),
            )

        yield update


def _amount(progress: Progress) -> str:
    if progress.unit == "bytes":
        return f"{progress.done / 1e6:.1f}/{progress.total / 1e6:.1f} MB"
    return f"{progress.done}/{progress.total} sequences"
