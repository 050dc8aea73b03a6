"""``doctor``: what works here, and how to mend what does not."""

from __future__ import annotations

import json
import sys

import click

from worker.commands.options import CHECKS_FAILED, home_option, json_option, quiet_logs, run_async
from worker.config import Home, WorkerConfig
from worker.plain import plain


@click.command()
@home_option
@json_option
def doctor(home: Home, as_json: bool) -> None:
    """Check this machine and its way to the run; say how to mend what does not work.

    Ends with 1 when a check fails.

    \b
    Examples:
      barnraise worker doctor
      barnraise worker doctor --json
    """
    config = WorkerConfig.load(home.config)
    quiet_logs()
    from worker.doctor import Check, examine

    async def all_checks() -> list[Check]:
        found = []
        async for check in examine(home, config):
            found.append(check)
            if not as_json:
                mark = "ok  " if check.ok else "FAIL"
                click.echo(f"{mark} {check.name:<12} {plain(check.detail)}")
                advice = check.hint if check.ok else check.fix
                if advice:
                    click.echo(f"     -> {plain(advice)}")
        return found

    checks = run_async(all_checks())
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    if not all(check.ok for check in checks):
        sys.exit(CHECKS_FAILED)
