"""What the commands of the record share: a progress bar, and a root key that a person typed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from protocol.errors import BadRecord, UsageError
from protocol.identity import PublicKey


class Bar:
    """Progress on standard error, so that standard output stays a report."""

    def __init__(self, bar: Progress, what: str) -> None:
        self._bar = bar
        self._task = bar.add_task(what, total=None)

    def __call__(self, done: int, total: int) -> None:
        if done % 256 == 0 or done == total:
            self._bar.update(self._task, completed=done, total=total)


@contextmanager
def progress_bar(what: str) -> Iterator[Bar]:
    """A bar that is gone afterwards."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        yield Bar(bar, what)


def check_fingerprint(root: str) -> None:
    """Insist that a root key can be one.

    Raises:
        UsageError: it is mistyped.
    """
    try:
        PublicKey.from_peer_id(root)
    except BadRecord as error:
        raise UsageError(f"--root: {error}; copy it from the join link") from error
