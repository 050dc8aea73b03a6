"""``barnraise coordinator audit`` and ``replay``. Nothing heavy is imported before they run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import platformdirs

from coordinator.terminal import configure_logging, print_json
from protocol.errors import NotFound, PeerFault, TransientError, UsageError

if TYPE_CHECKING:
    from coordinator.audit.public import Report
    from coordinator.audit.public_records import Evidence
    from protocol.tolerance import ToleranceTable
    from protocol.training import Execution, OnStep

Say = Callable[[str], None]

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


@click.command()
@click.argument("round_", metavar="ROUND", type=click.IntRange(0))
@click.argument("worker", metavar="WORKER")
@click.option("--link", metavar="LINK", help="The run's join link: all that one has to believe.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Instead of a link, for organisers: the run's folder.",
)
@click.option(
    "--record",
    default="",
    metavar="URL",
    help="The public record (a leaderboard or a folder of tiles); default: what the run names.",
)
@click.option(
    "--tolerance",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Bounds of one's own ('coordinator calibrate --out'); default: the run's.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where downloads are kept; default: in the user's cache.",
)
@_device_option
@_bf16_option
@_threads_option
@_micro_batch_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replay(
    round_: int,
    worker: str,
    link: str | None,
    run_dir: Path | None,
    record: str,
    tolerance: Path | None,
    home: Path | None,
    device: str,
    bf16: bool,
    threads: int | None,
    micro_batch: int | None,
    as_json: bool,
) -> None:
    """Do an audit again, from public data, and compare.

    Fetches what WORKER's audit of ROUND rests on, checks every signature and proof against the
    root key in the link, checks the draw against the public record, trains the unit again on this
    machine and compares. Nobody's permission is needed, and nobody is asked to believe anything.

    Exit code 0: it agrees. 1: something contradicts. 2: it cannot be checked.

    \b
    Examples:
      barnraise coordinator replay 12 12D3KooW... --link 'barnraise://host:7443/RUN#root=KEY'
      barnraise coordinator replay 12 12D3KooW... --link "$LINK" --record https://example.org
      barnraise coordinator replay 12 12D3KooW... --run-dir bard --json
    """
    if (link is None) == (run_dir is None):
        raise UsageError("give the run's join link with --link, or an own run with --run-dir")
    configure_logging(quiet=True)
    try:
        execution = _execution(device, bf16, threads, micro_batch)
        with _progress() as (say, on_step):
            if run_dir is not None:
                report = _from_folder(run_dir, round_, worker, execution, on_step)
            else:
                assert link is not None
                evidence = asyncio.run(
                    _fetched(link, round_, worker, record, _table(tolerance), home, say)
                )
                report = _report(evidence, execution, on_step)
    except (TransientError, NotFound) as error:
        raise UsageError(f"cannot be checked: {error}") from error  # exit code 2
    except PeerFault as error:
        click.echo(f"contradicts: {error}", err=True)
        sys.exit(1)
    _show(report, as_json)
    sys.exit(report.exit_code)


def _from_folder(
    run_dir: Path, round_: int, worker: str, execution: Execution, on_step: OnStep
) -> Report:
    from coordinator.audit.public_folder import folder_evidence
    from coordinator.config import RunFolder

    with folder_evidence(RunFolder(run_dir), round_, worker, time.time()) as evidence:
        return _report(evidence, execution, on_step)


async def _fetched(
    link: str,
    round_: int,
    worker: str,
    record: str,
    table: ToleranceTable | None,
    home: Path | None,
    say: Say,
) -> Evidence:
    from coordinator.audit.public_source import Visitor
    from protocol.link import JoinLink

    parsed = JoinLink.parse(link)
    cache = platformdirs.user_cache_path("barnraise") / "replays"
    folder = (home or cache) / parsed.run_id.hex()
    async with Visitor.connect(parsed, folder) as visitor:
        return await visitor.evidence(round_, worker, record=record, table=table, say=say)


def _report(evidence: Evidence, execution: Execution, on_step: OnStep) -> Report:
    from coordinator.audit.public import AuditCheck

    return AuditCheck(evidence, execution).run(on_step)


def _table(path: Path | None) -> ToleranceTable | None:
    from protocol.tolerance import ToleranceTable

    return None if path is None else ToleranceTable.parse(path.read_text(encoding="utf-8"))


@contextmanager
def _progress() -> Iterator[tuple[Say, OnStep]]:
    """A line on stderr while something takes long: the answer on stdout stays clean."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("connecting")

        def say(what: str) -> None:
            bar.update(task, description=f"fetching {what}")

        def on_step(steps_done: int, loss: float) -> bool:
            bar.update(task, description=f"training: step {steps_done:,}, loss {loss:.3f}")
            return True

        yield say, on_step


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "verdict": report.verdict,
                "exit_code": report.exit_code,
                "findings": [
                    {"step": line.step, "found": line.found.value, "text": line.text}
                    for line in report.lines
                ],
            }
        )
        return
    for line in report.lines:
        click.echo(f"{line.found.value:<11}  {line.step:<11}  {line.text}")
    summary = {0: "the audit agrees", 1: "the audit is CONTRADICTED", 2: "cannot be told"}
    click.echo(f"verdict {report.verdict or 'none'}: {summary[report.exit_code]}")
