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
Work of 90 % of the steps cannot be told from honest work between {pairs}: such a worker is not
convicted there. What helps: calibrate again later in the run, codec int8 instead of int4, more
opened_chunks, or auditors of the workers' own class."""

_CHEATS = {
    "nine_tenths": "90 % of the steps",
    "nine_tenths_scaled": "90 %, scaled",
    "half": "half of the steps",
    "other_data": "other data",
}


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
        from coordinator.audit.measure import LAZY
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
    too_near = [
        f"{entry.first} and {entry.second}"
        for entry in table.entries
        if entry.steps == table.steps
        and LAZY in entry.measured.cheats
        and LAZY not in entry.catches
    ]
    if too_near:
        click.echo(_ADVICE.format(pairs="; ".join(too_near)), err=True)


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

    shown = Table(
        title=f"Bounds of audits, measured after round {table.settled_rounds:,}",
        caption="relative L1 distances, pooled over the opened chunks; chunk: of the worst one",
    )
    shown.add_column("between")
    for column in ("steps", "honest", "chunk", "nearest cheat", "agrees", "differs"):
        shown.add_column(column, justify="right")
    for entry in table.entries:
        shown.add_row(*_cells(entry))
    return shown


def _cells(entry: Entry) -> tuple[str, ...]:
    measured, bounds = entry.measured, entry.bounds
    # The nearest that is caught; with no bounds, the nearest of all.
    names = entry.catches or tuple(measured.cheats)
    cheat = min(names, key=lambda name: measured.cheats[name], default="")
    nearest = f"{_CHEATS[cheat]} {measured.cheats[cheat]:.3f}" if cheat else "none possible"
    limits = ("no bound", "no bound")
    if bounds is not None:
        limits = (f"<= {bounds.pooled_pass:.3f}", f"> {bounds.pooled_fail:.3f}")
    return (
        f"{entry.first} / {entry.second}",
        str(entry.steps),
        f"{measured.honest_pooled:.3f}",
        f"{measured.honest_chunk:.3f}",
        nearest,
        *limits,
    )
