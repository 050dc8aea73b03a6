"""``barnraise coordinator calibrate``."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coordinator.terminal import configure_logging, print_json, print_rich, reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.audit.calibrate import OnProgress
    from coordinator.audit.measure import Subject
    from coordinator.terminal import Read
    from protocol.manifest import RunManifest
    from protocol.tolerance import Entry, ToleranceTable

_ADVICE = """\
Work of 90 % of the steps cannot be told from honest work between: {pairs}.
Their audits stay inconclusive and punish nobody. What helps, in this order: codec int8 instead of
int4, more opened_chunks, more inner steps (max_steps), or auditors of the workers' own class."""


@click.command()
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("run"),
    show_default=True,
    help="The run's folder.",
)
@click.option(
    "--samples", default=3, show_default=True, type=click.IntRange(1, 100), help="Units to measure."
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Inner steps of a unit; default: the most that a contribution had, or the run's H.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write it there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(
    run_dir: Path, samples: int, steps: int | None, out: Path | None, as_json: bool
) -> None:
    """Measure how far honest machines are apart, and store the audits' bounds.

    Trains units of the run in every way that this machine has (precision, threads, micro-batches,
    devices), and lazily too. Without it, auditors measure a little themselves.

    \b
    Examples:
      barnraise coordinator calibrate
      barnraise coordinator calibrate --samples 5 --out tolerance.json
      barnraise coordinator calibrate --json | jq .entries
    """
    configure_logging(quiet=True)
    with reader(run_dir) as (read, manifest):
        from coordinator.audit.calibrate import calibrate_run
        from coordinator.audit.tolerances import store_table, usual_steps

        subject = _subject(run_dir, read, manifest)
        length = steps or read(lambda session: usual_steps(session, manifest))
        with _progress() as on_progress:
            table = calibrate_run(subject, samples=samples, steps=length, on_progress=on_progress)
        read(lambda session: store_table(session, table, time.time()))
    if out is not None:
        out.write_text(table.to_json() + "\n", encoding="utf-8")
    if as_json:
        print_json(table.model_dump(mode="json"))
        return
    print_rich(_render(table))
    inseparable = [f"{e.first} and {e.second}" for e in table.entries if e.bounds is None]
    if inseparable:
        click.echo(_ADVICE.format(pairs="; ".join(inseparable)), err=True)


def _subject(run_dir: Path, read: Read, manifest: RunManifest) -> Subject:
    from coordinator.audit.measure import Subject
    from coordinator.audit.tolerances import newest_state
    from coordinator.checkpoints import CheckpointStore
    from coordinator.config import RunFolder
    from protocol.dataset import folder_reader, read_manifest

    folder = RunFolder(run_dir)
    dataset = read_manifest(folder.data)
    digest, rounds, tokens = read(
        lambda session: (
            (row := newest_state(session)).weights_sha256,
            row.settled_rounds,
            row.merged_tokens,
        )
    )
    store = CheckpointStore(folder.blobs_url(folder.settings()), manifest, sweep=False)
    return Subject(
        manifest=manifest,
        weights=store.load_weights(digest),
        settled_rounds=rounds,
        merged_tokens=tokens,
        sequences=folder_reader(folder.data, dataset),
        sequence_count=dataset.train_sequences,
    )


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on stderr: the answer on stdout stays clean."""
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("calibrating", total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=f"training on {what}")

        yield tell


def _render(table: ToleranceTable) -> Any:
    from rich.table import Table

    title = (
        f"Bounds from {table.samples} units of {table.steps} steps after round "
        f"{table.settled_rounds:,} (relative L1)"
    )
    columns = ("between", "honest", "chunk", "nearest cheat", "agrees up to", "differs beyond")
    shown = Table(title=title, caption="pooled over an audit's opened chunks; chunk: the worst one")
    for column in columns:
        shown.add_column(column, justify="left" if column == "between" else "right")
    for entry in table.entries:
        shown.add_row(*_cells(entry))
    return shown


def _cells(entry: Entry) -> tuple[str, ...]:
    measured, bounds = entry.measured, entry.bounds
    cheat = min(measured.cheats, key=lambda name: measured.cheats[name], default="")
    nearest = f"{measured.cheats[cheat]:.4f} {cheat}" if cheat else "none possible"
    limits = ("none", "none")
    if bounds is not None:
        limits = (f"{bounds.pooled_pass:.4f}", f"{bounds.pooled_fail:.4f}")
    return (
        f"{entry.first} / {entry.second}",
        f"{measured.honest_pooled:.4f}",
        f"{measured.honest_chunk:.4f}",
        nearest.replace("_", " "),
        *limits,
    )
