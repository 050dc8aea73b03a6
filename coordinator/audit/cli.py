"""``barnraise coordinator audit``. Nothing heavy is imported before they run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.terminal import configure_logging

if TYPE_CHECKING:
    from protocol.training import Execution

_run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("run"),
    show_default=True,
    help="The run's folder.",
)
_device_option = click.option(
    "--device",
    type=click.Choice(("auto", "cpu", "cuda", "mps")),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
_bf16_option = click.option("--bf16", is_flag=True, help="Compute under bfloat16 autocast.")
_threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Processor threads; default: all, or OMP_NUM_THREADS."
)
_micro_batch_option = click.option(
    "--micro-batch",
    type=click.IntRange(1),
    help="Sequences at a time, where memory is short; default: whole batches.",
)


@click.command()
@_run_dir_option
@_device_option
@_bf16_option
@_threads_option
@_micro_batch_option
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="This auditor's key, made if missing; default: one in the run's auditors folder.",
)
@click.option("--once", is_flag=True, help="End when there is nothing to do.")
@click.option(
    "--poll-s",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.05, 600),
    help="Longest wait between two looks for work, seconds.",
)
@click.option("--no-calibrate", is_flag=True, help="Never measure the bounds of comparisons.")
@click.option("--json-logs", is_flag=True, help="Log lines as JSON.")
def audit(
    run_dir: Path,
    device: str,
    bf16: bool,
    threads: int | None,
    micro_batch: int | None,
    key: Path | None,
    once: bool,
    poll_s: float,
    no_calibrate: bool,
    json_logs: bool,
) -> None:
    """Replay contributions that were drawn for an audit, until SIGTERM or Ctrl-C.

    'serve' starts one by itself. More may run at the same time: on this machine, or on another one
    with a copy of the run's folder (manifest.json, run.toml, data; no keys) whose run.toml names
    database and blobs by URL. A second device class settles what the first finds doubtful.

    \b
    Examples:
      barnraise coordinator audit
      barnraise coordinator audit --run-dir bard --device cuda --bf16
      barnraise coordinator audit --once --threads 2
    """
    configure_logging(json_lines=json_logs)
    from coordinator.audit.auditor import Auditor, Settings
    from coordinator.audit.workplace import Workplace, auditor_key
    from coordinator.config import RunFolder

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    folder = RunFolder(run_dir)
    folder.require()
    execution = _execution(device, bf16, threads, micro_batch)
    settings = Settings(execution, poll_s=poll_s, once=once, calibrate=not no_calibrate)
    with auditor_key(folder.auditors, key) as identity:
        place = Workplace.open(folder)
        auditor = Auditor(place, identity, settings, stop)
        try:
            done = auditor.run()
        finally:
            place.database.close()
        click.echo(f"{done} replays done", err=True)
        if auditor.abandoned:  # its thread is in the middle of a step: nothing of it is needed
            sys.stderr.flush()
            os._exit(0)


def _execution(device: str, bf16: bool, threads: int | None, micro_batch: int | None) -> Execution:
    import torch

    from coordinator.audit.replay import choose_execution

    if threads is not None:
        torch.set_num_threads(threads)
    return choose_execution(device, bf16=bf16, micro_batch=micro_batch)
