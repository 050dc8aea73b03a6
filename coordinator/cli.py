"""``barnraise coordinator``: make a run, serve it, look at it, release the model.

Nothing heavy is imported before a command runs: ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coordinator import cli_access, cli_backup, cli_blocks, cli_keys
from coordinator.audit.cli import audit, replay
from coordinator.audit.cli_calibrate import calibrate
from coordinator.crowd import (
    cli_campaign,
    cli_donations,
    cli_pool,
    cli_profile,
    cli_treasurer,
)
from coordinator.terminal import configure_logging, print_json, print_rich, reader, watch
from protocol.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("run"),
    show_default=True,
    help="The run's folder.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Organise a run: make it, serve it, release the model.

    \b
    Examples:
      barnraise coordinator init --example > run.toml
      barnraise coordinator init --config run.toml --data data/
      barnraise coordinator serve
      barnraise coordinator status --watch
      barnraise coordinator release --out my-model
    """


cli.add_command(audit)
cli.add_command(replay)


@cli.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The run.toml that describes the run.",
)
@click.option("--preset", help="Without --config: a model of this size (see --example).")
@click.option("--name", default="my-run", show_default=True, help="With --preset: the run's name.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Dataset folder made by 'barnraise data build'.",
)
@click.option("--copy-data", is_flag=True, help="Copy the dataset into the run's folder.")
@click.option("--example", is_flag=True, help="Print a commented run.toml and stop.")
@_run_dir_option
@_json_option
def init(
    config: Path | None,
    preset: str | None,
    name: str,
    data: Path | None,
    copy_data: bool,
    example: bool,
    run_dir: Path,
    as_json: bool,
) -> None:
    """Make a run: keys, certificate, database, manifest, join link.

    \b
    Examples:
      barnraise coordinator init --example > run.toml
      barnraise coordinator init --config run.toml --data data/
      barnraise coordinator init --preset tiny --name bard --data data/ --run-dir bard
    """
    from coordinator import plan
    from coordinator.config import RunFile

    if example:
        click.echo(plan.example(preset or "tiny"), nl=False)
        return
    if data is None:
        raise UsageError("give the dataset folder with --data (see 'barnraise data build --help')")
    if (config is None) == (preset is None):
        raise UsageError("give either --config run.toml or --preset; --example prints a run.toml")
    configure_logging(quiet=True)
    if config is not None:
        file, text, base = RunFile.load(config), config.read_text(encoding="utf-8"), config.parent
    else:
        text = f'[run]\nname = {json.dumps(name)}\n\n[model]\npreset = "{preset}"\n'
        file, base = RunFile.parse(text, "--preset"), Path()
    from coordinator.init import init_run

    result = init_run(file, text, data, run_dir, base=base, copy_data=copy_data)
    if as_json:
        print_json(
            {
                "run_id": result.manifest.run_id.hex(),
                "join_link": str(result.link),
                "folder": str(run_dir),
                "parameters": result.parameters,
            }
        )
        return
    click.echo(f"run          {result.manifest.name} ({result.manifest.run_id.hex()[:12]})")
    click.echo(f"model        {result.parameters:,} parameters")
    click.echo(f"folder       {run_dir}")
    click.echo(f"join link    {result.link}")
    if result.local_only:
        click.echo(
            "\nThe link names this machine's own address. For volunteers elsewhere, set "
            f"[server] public_address in {result.folder.run_file}: 'serve' prints the new link."
        )
    click.echo(
        f"\nMove {result.folder.keys / 'root.key'} to a safe place: serving does not need it, and "
        "whoever has it is the run.\n"
        f"Next: barnraise coordinator serve --run-dir {run_dir}"
    )


@cli.command()
@_run_dir_option
@click.option("--listen", metavar="HOST:PORT", help="Instead of [server] listen.")
@click.option("--no-anchor", is_flag=True, help="Do not start the run's own anchor.")
@click.option("--no-auditor", is_flag=True, help="Do not start an auditor beside the server.")
@click.option("--leaderboard", metavar="HOST:PORT", help="Also serve the leaderboard there.")
@click.option("--verbose", is_flag=True, help="Log more.")
def serve(
    run_dir: Path,
    listen: str | None,
    no_anchor: bool,
    no_auditor: bool,
    leaderboard: str | None,
    verbose: bool,
) -> None:
    """Serve the run until SIGTERM or Ctrl-C.

    A person sees lines on a terminal; anything else gets JSON, one object a line.

    \b
    Examples:
      barnraise coordinator serve
      barnraise coordinator serve --run-dir bard --listen 0.0.0.0:7443
      barnraise coordinator serve --leaderboard 127.0.0.1:8080
    """
    import asyncio

    from coordinator.config import RunFolder, split_address
    from coordinator.ports import require_free

    folder = RunFolder(run_dir)
    settings = folder.settings()
    with folder.hold():  # said at once, not after the imports
        require_free(*split_address(listen or settings.listen))
    configure_logging(verbose=verbose)
    # Before gRPC loads: its own log has a line for each failed handshake, and a stranger could fill
    # the disk with them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from coordinator.serve import serve_run

    asyncio.run(
        serve_run(
            folder,
            listen=listen,
            with_anchor=not no_anchor,
            with_auditor=not no_auditor,
            leaderboard=leaderboard,
            announce=lambda line: click.echo(line, err=True),
        )
    )


@cli.command()
@_run_dir_option
@click.option("--watch", "keep_watching", is_flag=True, help="Refresh until Ctrl-C.")
@_json_option
def status(run_dir: Path, keep_watching: bool, as_json: bool) -> None:
    """Show the run now; works also while the coordinator is down.

    \b
    Examples:
      barnraise coordinator status
      barnraise coordinator status --watch
      barnraise coordinator status --json | jq .round
    """
    from coordinator import views
    from coordinator.config import RunFolder
    from coordinator.troubles import read_note

    with reader(run_dir) as (read, manifest):

        def look() -> dict[str, Any]:
            folder, now_s = RunFolder(run_dir), time.time()
            serving = folder.serving
            troubles = read_note(folder.troubles) if serving else []
            return read(
                lambda session: views.status(
                    session, manifest, now_s, serving=serving, troubles=troubles
                )
            )

        if as_json:
            print_json(look())
        elif keep_watching:
            watch(lambda: views.render_status(look()))
        else:
            print_rich(views.render_status(look()))


@cli.command()
@_run_dir_option
@_json_option
def workers(run_dir: Path, as_json: bool) -> None:
    """List the devices that have enrolled, the last seen first.

    \b
    Examples:
      barnraise coordinator workers
      barnraise coordinator workers --json
    """
    from coordinator import views

    with reader(run_dir) as (read, _):
        found = read(lambda session: views.workers(session, time.time()))
    if as_json:
        print_json(found)
    else:
        print_rich(views.render_workers(found))


@cli.command()
@_run_dir_option
@click.option("--last", default=20, show_default=True, type=click.IntRange(1), help="How many.")
@_json_option
def rounds(run_dir: Path, last: int, as_json: bool) -> None:
    """List the newest rounds.

    \b
    Examples:
      barnraise coordinator rounds --last 50
      barnraise coordinator rounds --json
    """
    from coordinator import views

    with reader(run_dir) as (read, _):
        found = read(lambda session: views.rounds(session, last))
    if as_json:
        print_json(found)
    else:
        print_rich(views.render_rounds(found))


@cli.command()
@_run_dir_option
@_json_option
def pause(run_dir: Path, as_json: bool) -> None:
    """Hand out no more work. Work under way is still merged.

    \b
    Example:
      barnraise coordinator pause
    """
    _set_paused(run_dir, True, as_json)


@cli.command()
@_run_dir_option
@_json_option
def resume(run_dir: Path, as_json: bool) -> None:
    """Hand out work again.

    \b
    Example:
      barnraise coordinator resume
    """
    _set_paused(run_dir, False, as_json)


@cli.command()
@_run_dir_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder to make.",
)
@click.option("--round", "round_", type=click.IntRange(0), help="The state after this round.")
@_json_option
def release(run_dir: Path, out: Path, round_: int | None, as_json: bool) -> None:
    """Write the model as a Hugging Face folder, with a signed account of its origin.

    \b
    Examples:
      barnraise coordinator release --out my-model
      barnraise coordinator release --out early --round 5
    """
    from coordinator.config import RunFolder

    folder = RunFolder(run_dir)
    folder.require()
    configure_logging(quiet=True)
    from coordinator.release import release as write_release

    result = write_release(folder, out, round_=round_)
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "weights_sha256": result.weights_sha256,
                "settled_rounds": result.settled_rounds,
                "merged_tokens": result.merged_tokens,
                "validation_loss": result.validation_loss,
                "leaf_index": result.leaf_index,
            }
        )
        return
    loss = "" if result.validation_loss is None else f", loss {result.validation_loss:.4f}"
    click.echo(
        f"{out}: the model after {result.settled_rounds:,} rounds and "
        f"{result.merged_tokens:,} tokens{loss}\n"
        "loaded again and compared: every weight is the run's\n"
        f"leaf {result.leaf_index} of the public record says so"
    )


@cli.command("renew-keys")
@_run_dir_option
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650))
def renew_keys(run_dir: Path, days: int) -> None:
    """Delegate the run's keys again; needs keys/root.key in the folder for a moment.

    \b
    Example:
      barnraise coordinator renew-keys --days 365
    """
    from coordinator.config import RunFolder
    from coordinator.crowd.delegations import keep_delegations
    from coordinator.keys import KeyRing
    from ledger.log import Log

    configure_logging(quiet=True)
    with reader(run_dir) as (read, manifest):
        keys, now_s = RunFolder(run_dir).keys, int(time.time())
        ring = KeyRing.load(
            keys, run_id=manifest.run_id, root_id=manifest.root, now_s=now_s, checked=False
        )
        renewed = ring.renewed(keys, now_s=now_s, valid_s=days * 24 * 3600)
        log = Log(manifest.origin, renewed.log)
        read(lambda session: keep_delegations(log, session, renewed, now_s))
        read(log.sign_head)
    click.echo(f"the keys are good for {days} more days; restart 'barnraise coordinator serve'")


def _set_paused(run_dir: Path, paused: bool, as_json: bool) -> None:
    from coordinator.config import RunFolder
    from coordinator.schema import ControlRow

    def write(session: Session) -> None:
        control = session.get(ControlRow, 1)
        if control is None:
            raise UsageError("the database holds no run: see [server] database in run.toml")
        control.paused = paused

    with reader(run_dir) as (read, _):
        read(write)
    serving = RunFolder(run_dir).serving
    if as_json:
        print_json({"paused": paused, "serving": serving})
        return
    word = "paused: no more work is handed out" if paused else "resumed"
    click.echo(word if serving else f"{word}, once the coordinator runs (it is down now)")


cli.add_command(calibrate)
cli_access.register(cli)
cli_backup.register(cli)
cli_blocks.register(cli)
cli_keys.register(cli)
for module in (cli_campaign, cli_donations, cli_pool, cli_profile, cli_treasurer):
    module.register(cli)
