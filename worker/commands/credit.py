"""``receipts`` and ``appeal``: what the work was worth, and what to say against a verdict."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from worker.commands.options import (
    CHECKS_FAILED,
    home_option,
    json_option,
    quiet_logs,
    run_async,
    show,
)
from worker.config import Home, WorkerConfig


@click.command()
@home_option
@json_option
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write them there, as files that 'barnraise ledger receipt check' takes.",
)
def receipts(home: Home, as_json: bool, save: Path | None) -> None:
    """List receipts, each verified against the run's log key, offline.

    \b
    Examples:
      barnraise worker receipts
      barnraise worker receipts --save receipts/
    """
    WorkerConfig.load(home.config)
    from worker.receipts import list_receipts, save_receipts

    if save is not None:
        save_receipts(home, save)
    rows = list_receipts(home)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            click.echo(
                f"round {row['round']:>5}  {row['tokens']:>10} tokens  "
                f"{row['microcredits']:>14} µcredits  {row['state']}"
            )
        verified = [row for row in rows if row["state"] == "verified"]
        total = sum(row["microcredits"] for row in verified) / 1_000_000
        click.echo(f"{len(verified)} of {len(rows)} verified: {total:.6f} credits")
    if any(row["state"].startswith("refused") for row in rows):
        sys.exit(CHECKS_FAILED)


@click.command()
@click.argument("round_", metavar="ROUND", type=click.IntRange(0))
@home_option
@json_option
def appeal(round_: int, home: Home, as_json: bool) -> None:
    """Appeal against the verdict on your work of ROUND: it is replayed on another kind of device.

    \b
    Example:
      barnraise worker appeal 12
    """
    config = WorkerConfig.load(home.config)
    quiet_logs()
    from worker.appeal import appeal as send_appeal

    said = run_async(send_appeal(home, config, round_))
    show({"round": round_, "message": said}, said, as_json=as_json)
