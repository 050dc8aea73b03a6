"""``barnraise ledger mirror``: keep a copy of the record that outlives whoever serves it."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import asdict
from pathlib import Path

import click

from ledger.cli_shared import check_fingerprint, progress_bar
from ledger.fetching import Fetch, WebFolder
from ledger.mirror import Mirror, Update
from ledger.tile_folder import TileFolder
from protocol.errors import PeerFault, TransientError


@click.command("mirror")
@click.argument("source", metavar="URL")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--root", metavar="FINGERPRINT", help="Root key of the run, from the join link.")
@click.option("--once", is_flag=True, help="Bring DIR up to date, then end; the default.")
@click.option(
    "--every",
    type=click.FloatRange(min=1, max=86_400),
    metavar="SECONDS",
    help="Go on, and look for a new head that often.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each update.")
def mirror_command(
    source: str, folder: Path, root: str | None, once: bool, every: float | None, as_json: bool
) -> None:
    """Bring the folder DIR up to date from URL: a leaderboard, or another mirror.

    Checks every leaf, its credit and its signatures, and that the new head extends the one in DIR.
    Anything else is refused and changes nothing; the refused head is kept in DIR/refused.

    URL may be a folder, too.
    """
    if once and every is not None:
        raise click.UsageError("give --once or --every, not both")
    if root is not None:
        check_fingerprint(root)
    with progress_bar("mirroring") as show:
        mirror = Mirror(TileFolder(folder), _fetch_from(source), root=root, progress=show)
        if every is None:
            _say(mirror.update(), folder, as_json)
            return
        _keep_up(mirror, every, folder, as_json)


def _keep_up(mirror: Mirror, every_s: float, folder: Path, as_json: bool) -> None:
    """Update again and again, until somebody ends it; what fails is told, and tried again."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    shown: str | None = None
    while not ended.is_set():
        try:
            made = mirror.update()
            if made.size != made.old_size or shown != "":
                _say(made, folder, as_json)
            shown = ""
        except (PeerFault, TransientError) as error:
            if str(error) != shown:
                shown = str(error)
                told = {"error": shown, "reason": error.reason}
                click.echo(json.dumps(told) if as_json else shown, err=not as_json)
        ended.wait(every_s)


def _fetch_from(source: str) -> Fetch:
    if Path(source).is_dir():
        return TileFolder(Path(source)).read
    return WebFolder(source).get


def _say(made: Update, folder: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(made)))
        return
    new = made.size - made.old_size
    click.echo(
        f"{made.size} leaves of {made.origin} are in {folder}, {new} of them new; root key "
        f"{made.root}. Serve them with: barnraise ledger serve --dir {folder}"
    )
