"""``export-key``: a copy of the device's key, to be kept or to be used elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from protocol.errors import UsageError
from protocol.identity import Identity
from worker.commands.options import home_option, json_option, show
from worker.config import Home


@click.command(name="export-key")
@click.argument(
    "file", required=False, metavar="FILE", type=click.Path(path_type=Path, dir_okay=False)
)
@home_option
@click.option("--stdout", "to_stdout", is_flag=True, help="Write it to stdout, not to a file.")
@json_option
def export_key(file: Path | None, home: Home, to_stdout: bool, as_json: bool) -> None:
    """Write this device's key to FILE, readable by you only. Never overwrites.

    Whoever has the key is this device: its credit can be claimed, and work be signed, in its name.
    Keep it where you keep passwords; use it on one machine at a time. The way back is
    'barnraise worker join LINK --key FILE'.

    \b
    Examples:
      barnraise worker export-key my-device.key
      barnraise worker export-key --stdout | age -r age1... > my-device.key.age
    """
    identity = Identity.load(home.identity)
    if to_stdout:
        if file is not None or as_json:
            raise UsageError("--stdout goes without FILE and without --json")
        if sys.stdout.isatty():
            raise UsageError("the key is 68 bytes, not text: send stdout to a file or a program")
        click.echo(identity.libp2p_bytes(), nl=False)
        return
    if file is None:
        raise UsageError("give a FILE to write the key to, or --stdout")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {file.absolute().parent}: make it first")
    if file.exists():
        raise UsageError(f"{file} is there already, and nothing is overwritten: give another name")
    identity.save(file)
    text = (
        f"Wrote the key of {identity.peer_id} to {file}: keep it secret.\n"
        "To be this device elsewhere, once it has ended here:\n"
        f"  barnraise worker join LINK --key {file.name}"
    )
    show({"worker": identity.peer_id, "file": str(file.absolute())}, text, as_json=as_json)
