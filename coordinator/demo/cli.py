"""``barnraise demo``: a whole swarm on this machine, in one command."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("barnraise-demo"),
    show_default=True,
    help="Where everything goes; an earlier demonstration there is replaced.",
)
@click.option("--rounds", type=click.IntRange(8, 200), default=None, help="More than the usual 9.")
@click.option(
    "--codec",
    type=click.Choice(["fp32", "int8", "int4", "int8-aes", "int4-aes"]),
    default="int8",
    show_default=True,
    help="How updates travel.",
)
@click.option("--stay", is_flag=True, help="Keep the leaderboard up until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def cli(folder: Path, rounds: int | None, codec: str, stay: bool, as_json: bool) -> None:
    """Raise a small model from text to release, with real processes on loopback.

    An organiser, an anchor and three volunteers: one without an inbound port, one that is
    killed in mid-round and comes back, one that comes late. Ends with exit code 0 only if
    everything held. Takes a few minutes on two cores.

    \b
    Examples:
      barnraise demo
      barnraise demo --stay               # look at the leaderboard afterwards
      barnraise demo --codec int4 --json
    """
    from coordinator.demo.play import play

    raise SystemExit(play(folder, rounds=rounds, codec=codec, stay=stay, as_json=as_json))
