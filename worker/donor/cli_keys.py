"""``barnraise donor rotate-key``, ``merge`` and ``consent``: which keys are one person's."""

from __future__ import annotations

import base64
import json

import click

from protocol.envelope import parse_envelope
from protocol.errors import BadRecord, UsageError
from protocol.identity import Identity
from protocol.wire import records_pb2 as wire
from worker.config import Home
from worker.donor import acts
from worker.donor.desk import Desk, Outcome, Refused
from worker.donor.home import DonorHome
from worker.donor.options import Place, confirm, run_options, show, yes_option
from worker.donor.rotation import change_key, finished_but_untold, told

CONSENT_PREFIX = "barnraise-consent:"


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
        envelope = acts.consent(desk.run_id, of, desk.signer)
        data = envelope.SerializeToString(deterministic=True)
        return CONSENT_PREFIX + base64.urlsafe_b64encode(data).decode()

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
            given_up, agreed = desk.signer, _read_consent(line)
        draft = acts.merge(desk.run_id, given_up, agreed)
        old, new = str(draft.intent["donor"]), str(draft.intent["into"])
        confirm(f"Count everything of {old} for {new}, for good?", yes=yes)
        return await _join(desk, draft, given_up, agreed), old, new

    outcome, old, new = Place(home, worker_home, link).at_desk(join, own_key=line is None)
    show(outcome, f"{old} counts for {new} from here on.", as_json=as_json, old=old, into=new)


async def _join(
    desk: Desk, draft: acts.Draft, given_up: Identity, agreed: wire.Envelope
) -> Outcome:
    """Merge the accounts; a key that has no account yet takes the other's over instead."""
    try:
        return await desk.perform(draft)
    except Refused as refused:
        change = acts.takeover(desk.run_id, given_up, agreed)
        try:
            return await desk.perform(change)
        except Refused:
            raise refused from None


def _worker_key(worker_home: Home) -> Identity:
    if not worker_home.identity.exists():
        raise UsageError(
            f"no worker has a key in {worker_home.path}: give its folder with --worker-home"
        )
    return Identity.load(worker_home.identity)


def _read_consent(line: str) -> wire.Envelope:
    text = line.strip()
    if not text.startswith(CONSENT_PREFIX):
        raise UsageError(f"a consent begins with {CONSENT_PREFIX!r}, as 'donor consent' prints it")
    try:
        data = base64.urlsafe_b64decode(text.removeprefix(CONSENT_PREFIX).encode())
        return parse_envelope(data)
    except (ValueError, BadRecord) as error:
        raise UsageError(f"the consent is damaged ({error}): copy the whole line") from error


COMMANDS = (rotate_key, merge, consent)
