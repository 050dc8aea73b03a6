"""``barnraise coordinator backup | restore``: copies of a run, and a run from a copy."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.terminal import configure_logging, print_json
from protocol.errors import UsageError

if TYPE_CHECKING:
    from coordinator.backup import BackupResult
    from coordinator.restore import RestoreResult
    from ledger.sources import Source

_HOUR_S = 3600
_run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("run"),
    show_default=True,
    help="The run's folder.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@_run_dir_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A folder for any number of backups of this run, or a file that ends in .tar.",
)
@click.option("--with-data", is_flag=True, help="Include the shards of the dataset.")
@click.option(
    "--with-root-key",
    is_flag=True,
    help="Include keys/root.key: whoever reads the backup is then the run, for ever.",
)
@click.option("--keep", type=click.IntRange(1), help="Of a folder: the newest so many stay.")
@click.option(
    "--verify",
    "verified",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Check every byte of a backup instead of making one.",
)
@_json_option
def backup(
    run_dir: Path,
    out: Path | None,
    with_data: bool,
    with_root_key: bool,
    keep: int | None,
    verified: Path | None,
    as_json: bool,
) -> None:
    """Back the run up, while it is served or not: database, states, keys and settings.

    It holds private keys and is readable by you only: keep it so. A further backup into the same
    folder copies only what is new.

    \b
    Examples:
      barnraise coordinator backup --out /backup/my-run --keep 14
      barnraise coordinator backup --out my-run.tar --with-data
      barnraise coordinator backup --verify /backup/my-run
    """
    if (out is None) == (verified is None):
        raise UsageError("give either --out to make a backup, or --verify to check one")
    configure_logging(quiet=True)
    if verified is not None:
        _verify(verified, as_json)
        return
    assert out is not None
    from coordinator.backup import make_backup

    with _bar("copying") as show:
        made = make_backup(
            run_dir,
            out,
            with_root_key=with_root_key,
            with_data=with_data,
            keep=keep,
            progress=show,
        )
    _say_made(made, as_json)


def _say_made(made: BackupResult, as_json: bool) -> None:
    files = made.list
    if as_json:
        print_json(
            {
                "backup": str(made.path),
                "files": len(files.files),
                "bytes": files.total_bytes,
                "copied_bytes": made.copied_bytes,
                "round": files.round,
                "settled_rounds": files.settled_rounds,
                "log_size": files.log_size,
                "lost": list(files.lost),
                "root_key": files.has_root_key,
                "data": files.has_data,
            }
        )
        return
    click.echo(
        f"{made.path}\n"
        f"  round {files.round}, {files.settled_rounds} settled, {files.log_size} leaves of the "
        f"record\n  {len(files.files)} files, {_size(files.total_bytes)}; "
        f"{_size(made.copied_bytes)} of them new"
    )
    if files.lost:
        click.echo(
            f"  {len(files.lost)} files that audits may ask for were not in the blob store: what "
            "needs them stays unaudited"
        )
    if files.has_root_key:
        click.echo("  with the root key: whoever reads this backup is the run. Keep it offline")
    else:
        click.echo("  without the root key: keep that one elsewhere, new keys need it")
    if not files.has_data:
        click.echo("  without the dataset's shards: --with-data includes them")


def _verify(path: Path, as_json: bool) -> None:
    from coordinator.backup_format import open_backup

    with open_backup(path) as found, _bar("checking") as show:
        found.verify(show)
        files = found.list
    age_s = time.time() - files.made_at_s
    if as_json:
        print_json(
            {
                "backup": str(found.where),
                "whole": True,
                "run_id": files.run_id,
                "root": files.root,
                "made_at_s": files.made_at_s,
                "age_s": age_s,
                "files": len(files.files),
                "bytes": files.total_bytes,
                "root_key": files.has_root_key,
                "data": files.has_data,
            }
        )
        return
    click.echo(
        f"{found.where}: whole, {len(files.files)} files, {_size(files.total_bytes)}\n"
        f"  run {files.name} ({files.run_id[:12]}), root key {files.root}\n"
        f"  {age_s / _HOUR_S:.1f} hours old, in round {files.round}"
    )


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder to make.",
)
@click.option("--public-address", metavar="HOST:PORT", help="Where volunteers reach it from now.")
@click.option("--database", metavar="URL", help="An empty database, instead of run.toml's.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="The dataset's folder, when the backup has no shards.",
)
@click.option(
    "--log-from",
    metavar="URL_OR_FOLDER",
    help="A copy of the public record: what it has more than the backup is brought back.",
)
@click.option(
    "--skip-rounds",
    type=click.IntRange(1),
    help="Numbers of rounds to leave out [default: estimated from the backup's age].",
)
@_json_option
def restore(
    path: Path,
    run_dir: Path,
    public_address: str | None,
    database: str | None,
    data: Path | None,
    log_from: str | None,
    skip_rounds: int | None,
    as_json: bool,
) -> None:
    """Make a run folder from the backup at PATH: an archive, a folder of backups or one of them.

    Stop the old coordinator for good first: two with the same keys contradict each other, and
    workers would take that for fraud.

    \b
    Examples:
      barnraise coordinator restore /backup/my-run --run-dir run --data data/
      barnraise coordinator restore my-run.tar --run-dir run --public-address new.example.org:7443
      barnraise coordinator restore /backup/my-run --run-dir run --log-from https://mirror.example
    """
    configure_logging(quiet=True)
    from coordinator.restore import restore as make

    with _bar("checking") as show:
        made = make(
            path,
            run_dir,
            public_address=public_address,
            database=database,
            data=data,
            skip_rounds=skip_rounds,
            record=None if log_from is None else _record(log_from),
            progress=show,
        )
    _say_restored(made, run_dir, as_json)


def _record(where: str) -> Source:
    from ledger.sources import HttpSource, directory_source

    if where.startswith(("https://", "http://")):
        return HttpSource(where)
    return directory_source(Path(where))


def _say_restored(made: RestoreResult, run_dir: Path, as_json: bool) -> None:
    went_on = made.continuation
    if as_json:
        print_json(
            {
                "folder": str(run_dir),
                "join_link": str(made.link),
                "lost_round": went_on.lost_round,
                "next_round": went_on.next_round,
                "settled_rounds": went_on.settled_rounds,
                "merged_tokens": went_on.merged_tokens,
                "log_size": went_on.log_size,
                "recovered_leaves": made.recovered.leaves if made.recovered else 0,
                "root_key": made.has_root_key,
                "data": made.has_data,
            }
        )
        return
    click.echo(
        f"{run_dir}: the run as it was {(time.time() - made.made_at_s) / _HOUR_S:.1f} hours ago\n"
        f"  goes on from {went_on.settled_rounds} settled rounds and {went_on.merged_tokens:,} "
        f"tokens with round {went_on.next_round}\n"
        f"  join link    {made.link}\n\n"
        "What was merged after the backup is lost to the model, and trained again."
    )
    if made.recovered is not None:
        click.echo(
            f"{made.recovered.leaves} leaves were brought back from the copy of the record: their "
            "credit stands. "
        )
    click.echo(
        f"Readers who hold a head of the record with more than {went_on.log_size} leaves will find "
        f"that it was not continued, and leaf {went_on.leaf_index} tells them why."
    )
    if not made.has_data:
        click.echo(f"Put the dataset's shards into {run_dir / 'data' / 'shards'}.")
    click.echo(
        "Make sure that the old coordinator never runs again.\n"
        f"Next: barnraise coordinator serve --run-dir {run_dir}\n"
        "Workers come back by themselves if the address is the same; else give them the new link: "
        "barnraise worker move LINK"
    )


def register(group: click.Group) -> None:
    """Add the commands to ``barnraise coordinator``."""
    for command in (backup, restore):
        group.add_command(command)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Progress on standard error, so that standard output stays an answer."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
