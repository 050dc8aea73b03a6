"""``barnraise donor certificate``: proof of what one gave, in a file that needs nobody."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from protocol.errors import BadRecord, UsageError
from protocol.identity import PublicKey
from worker.config import Home
from worker.donor.amounts import in_credits
from worker.donor.certificate import MAX_BYTES, Proven, check, fetch_certificate
from worker.donor.desk import Desk
from worker.donor.home import DonorHome
from worker.donor.options import HELP, Place, json_option, run_options


@click.group(context_settings=HELP)
def certificate() -> None:
    """Proof of what you gave, with all your keys, that verifies offline and for ever.

    \b
    Examples:
      barnraise donor certificate save --out ada.json
      barnraise donor certificate check ada.json --root FINGERPRINT
    """


@certificate.command()
@run_options
@click.option("--key", metavar="KEY", help="Of this donor [default: yourself].")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write; a long history comes in several.",
)
def save(
    home: DonorHome,
    worker_home: Home,
    link: str | None,
    as_json: bool,
    key: str | None,
    out: Path,
) -> None:
    """Fetch your certificate from the run's public site, check it, and write it to a file.

    \b
    Example:
      barnraise donor certificate save --out ada.json
    """

    async def get(desk: Desk) -> list[bytes]:
        site, donor = desk.greeting.public_url, key or desk.signer.peer_id
        return await asyncio.to_thread(fetch_certificate, site, donor, desk.link.root)

    files = Place(home, worker_home, link).at_desk(get)
    paths = [out, *(out.with_stem(f"{out.stem}-{part}") for part in range(2, len(files) + 1))]
    try:
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}") from error
    names = [str(path) for path in paths]
    click.echo(json.dumps({"files": names}) if as_json else f"Wrote {', '.join(names)}")


@certificate.command(name="check")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--root", metavar="FINGERPRINT", required=True, help="From the run's join link.")
@json_option
def check_file(file: Path, root: str, as_json: bool) -> None:
    """Check a certificate's FILE offline: these credits are in the run's signed log.

    \b
    Example:
      barnraise donor certificate check ada.json --root 12D3KooW...
    """
    try:
        PublicKey.from_peer_id(root)
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except BadRecord as error:
        raise UsageError(f"--root: {error}; copy it from the join link") from error
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    proven = check(data, root)
    click.echo(json.dumps(_facts(proven), indent=2) if as_json else _text(proven))


def _facts(proven: Proven) -> dict[str, object]:
    return {
        "subject": proven.subject,
        "keys": sorted(proven.keys),
        "run": proven.run,
        "origin": proven.head.origin,
        "size": proven.head.size,
        "part": proven.part,
        "parts": proven.parts,
        "credits": len(proven.credits),
        "pending_microcredits": proven.total("pending"),
        "final_microcredits": proven.total("final"),
        "taken_back_microcredits": proven.total("taken back"),
    }


def _text(proven: Proven) -> str:
    more = f", part {proven.part} of {proven.parts}" if proven.parts > 1 else ""
    return "\n".join(
        [
            f"genuine: {len(proven.credits)} credits of {proven.subject}{more}",
            f"  run         {proven.run}, log {proven.head.origin} of {proven.head.size} leaves",
            f"  final       {in_credits(proven.total('final'))}",
            f"  pending     {in_credits(proven.total('pending'))}",
            f"  taken back  {in_credits(proven.total('taken back'))}",
            "That nothing was left out, the whole record shows: barnraise ledger verify.",
        ]
    )


COMMANDS = (certificate,)
