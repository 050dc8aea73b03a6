"""``barnraise donor rotate-key``, ``merge`` and ``consent``: which keys are one person's."""

from __future__ import annotations

import json

import click

from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker.config import Home
from worker.donor import acts
from worker.donor.desk import Desk, Outcome
from worker.donor.home import DonorHome
from worker.donor.joining import consent_line, join_accounts, read_consent
from worker.donor.options import Place, confirm, run_options, show, yes_option
from worker.donor.rotation import change_key, finished_but_untold, told


@click.command(name="rotate-key")
@run_options
@yes_option
def rotate_key(
    home: DonorHome, worker_home: Home, link: str | None, as_json: bool, yes: bool
) -> None:
    """Give the account to a new key, when the old one may be known to others. For good.

    The new key is on disk before anything is sent, and the old one is kept: devices that work
    under its name go on. A command that was interrupted is given again.

    \b
    Example:
      barnraise donor rotate-key
    """

    async def rotate(desk: Desk) -> tuple[Outcome, str, str]:
        done = finished_but_untold(desk)
        if done is None:
            confirm(f"Give the account of {desk.signer.peer_id} to a new key, for good?", yes=yes)
            done = await change_key(desk)
        record = wire.KeyChange.FromString(done.envelope.payload)
        told(desk)
        return done, record.old, record.new

    outcome, old, new = Place(home, worker_home, link).at_desk(rotate, own_key=True)
    text = f"Your key is {new} now.\nKeep a copy of {home.key} in a safe place; the old key "
    text += f"lies in {home.retired}."
    show(outcome, text, as_json=as_json, old=old, new=new)


@click.command()
@click.argument("of", metavar="KEY")
@run_options
def consent(of: str, home: DonorHome, worker_home: Home, link: str | None, as_json: bool) -> None:
    """Agree that the account of KEY is counted with this donor's. Prints one line for its owner.

    The owner of KEY completes it with 'barnraise donor merge --consent LINE'.

    \b
    Example:
      barnraise donor consent 12D3KooW...
    """

    async def agree(desk: Desk) -> str:
        return consent_line(desk.run_id, of, desk.signer)

    line = Place(home, worker_home, link).at_desk(agree)
    click.echo(json.dumps({"consent": line, "of": of}) if as_json else line)


@click.command()
@run_options
@yes_option
@click.option(
    "--consent", "line", metavar="LINE", help="Of the key that takes the account, from its owner."
)
def merge(
    home: DonorHome, worker_home: Home, link: str | None, as_json: bool, yes: bool, line: str | None
) -> None:
    """Count this machine's worker, which trained under its own key, for the donor. For good.

    With --consent the account goes to another key: of the donor where there is a donor key here,
    else of the worker.

    \b
    Examples:
      barnraise donor merge
      barnraise donor merge --consent 'barnraise-consent:...'
    """

    async def join(desk: Desk) -> tuple[Outcome, str, str]:
        if line is None:
            given_up = _worker_key(worker_home)
            agreed = acts.consent(desk.run_id, given_up.peer_id, desk.signer)
        else:
            given_up, agreed = desk.signer, read_consent(line)
        into = acts.checked_consent(desk.run_id, given_up, agreed).signer
        confirm(f"Count everything of {given_up.peer_id} for {into}, for good?", yes=yes)
        return await join_accounts(desk, given_up, agreed), given_up.peer_id, into

    outcome, old, new = Place(home, worker_home, link).at_desk(join, own_key=line is None)
    show(outcome, f"{old} counts for {new} from here on.", as_json=as_json, old=old, into=new)


def _worker_key(worker_home: Home) -> Identity:
    if not worker_home.identity.exists():
        raise UsageError(
            f"no worker has a key in {worker_home.path}: give its folder with --worker-home"
        )
    return Identity.load(worker_home.identity)


COMMANDS = (rotate_key, merge, consent)
