"""``run`` and ``anchor``: the commands that stay."""

from __future__ import annotations

from pathlib import Path

import click

from worker.commands.options import home_option, limit_threads, run_async
from worker.config import Home, WorkerConfig
from worker.logs import log_to_stderr


@click.command()
@home_option
@click.option("--threads", type=click.IntRange(1), help="Overrides the configuration.")
@click.option("--until-finished", is_flag=True, help="End when the run is complete.")
@click.option("--json-logs", is_flag=True, help="Log lines as JSON.")
def run(home: Home, threads: int | None, until_finished: bool, json_logs: bool) -> None:
    """Work until told to stop. Ctrl-C once finishes the unit under way, twice stops now.

    \b
    Example:
      barnraise worker run --until-finished
    """
    config = WorkerConfig.load(home.config).with_limits(threads=threads)
    limit_threads(config.limits.cpu_threads)
    log_to_stderr(json_logs)
    from worker.trainer import Trainer

    async def live() -> None:
        async with Trainer(config.limits.cpu_threads) as trainer:
            await trainer.start()
            from worker.daemon import Daemon  # loads for seconds, while the trainer does

            await Daemon(home, config, trainer, until_finished).run()

    run_async(live())


@click.command()
@click.option("--link", required=True, help="Join link of the run.")
@click.option("--home", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--identity", type=click.Path(path_type=Path, dir_okay=False), help="Key file.")
@click.option(
    "--listen", multiple=True, default=("/ip4/0.0.0.0/tcp/0",), help="Multiaddress to listen on."
)
@click.option("--announce", multiple=True, help="Multiaddress by which others reach it.")
@click.option("--json-logs", is_flag=True, help="Log lines as JSON.")
def anchor(
    link: str,
    home: Path,
    identity: Path | None,
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    json_logs: bool,
) -> None:
    """Serve a run as its public peer: bootstrap, seed weights, reduce. Trains nothing.

    \b
    Example:
      barnraise worker anchor --link "$LINK" --home anchor --listen /ip4/0.0.0.0/tcp/31337
    """
    config = WorkerConfig(
        link=link,
        listen=tuple(listen),
        announce=tuple(announce),
        device="cpu",
        name="anchor",
        client_mode=False,
    )
    limit_threads(1)
    log_to_stderr(json_logs)
    from worker.anchor import Anchor

    place = Home(home.absolute())

    async def live() -> None:
        await Anchor(place, config, identity or place.identity).run()

    run_async(live())
