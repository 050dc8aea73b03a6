"""``tune``: how this machine trains best, and measuring it again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from protocol.errors import UsageError
from worker.commands.options import (
    home_option,
    home_words,
    json_option,
    limit_threads,
    quiet_logs,
    show,
)
from worker.config import Home, WorkerConfig
from worker.control import home_lock, is_held
from worker.tuning_record import TuningFile, TuningRecord


@click.command()
@home_option
@click.option("--force", is_flag=True, help="Measure again, and try again what did not fit.")
@json_option
def tune(home: Home, force: bool, as_json: bool) -> None:
    """Show how this machine trains best: as was measured before its first unit.

    With --force it is measured again: at once, or, where a worker runs, by that before its next
    unit.

    \b
    Examples:
      barnraise worker tune
      barnraise worker tune --force
    """
    config, file = WorkerConfig.load(home.config), TuningFile(home.tuning)
    if force:
        file.forget()
        if is_held(home):
            show(
                {"again": True}, "The worker measures again before its next unit.", as_json=as_json
            )
            return
        _measure(home, config)
    found = file.read_any()
    if found is None or not found[1].decided:
        raise UsageError(
            "nothing is measured yet: that is done before the first unit of "
            f"'barnraise worker run{home_words(home)}'"
        )
    key, record = found
    show({**_facts(record), "device": key.device}, _text(record, key.device), as_json=as_json)


def _measure(home: Home, config: WorkerConfig) -> None:
    """Now; the manifest is that of the last time that a worker ran here."""
    from protocol.manifest import RunManifest

    try:
        manifest = RunManifest.parse(home.manifest.read_bytes())
    except FileNotFoundError:
        return
    limit_threads(config.limits.cpu_threads)
    quiet_logs()
    from worker.devices import pick_device
    from worker.trainer import Trainer
    from worker.tuning import Tuner

    async def measure() -> None:
        limits = config.limits
        async with Trainer(limits.cpu_threads, limits.nice, limits.memory_mib) as trainer:
            device = await asyncio.to_thread(pick_device, config.device)
            await Tuner(home, config, manifest, device, trainer, _tell).settle()

    with home_lock(home):
        asyncio.run(measure())


def _tell(what: str) -> None:
    click.echo(what, err=True)


def _facts(record: TuningRecord) -> dict[str, Any]:
    return {
        "choice": record.choice and record.choice.dump(),
        "tokens_per_s": record.tokens_per_s,
        "measured_at_s": record.measured_at_s,
        "tried": [one.dump() for one in record.tried],
    }


def _text(record: TuningRecord, device: str) -> str:
    day = time.strftime("%Y-%m-%d", time.localtime(record.measured_at_s))
    lines = [f"{device}, measured on {day}:"]
    for one in record.tried:
        result = one.failed or f"{one.tokens_per_s:.0f} tokens/s"
        mark = "*" if one.choice == record.choice else " "
        lines.append(f"{mark} {one.choice.words:<44} {result}")
    if record.choice is None:
        lines.append("Not enough memory to train this model.")
    return "\n".join(lines)
