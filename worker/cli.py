"""``barnraise worker``: everything a volunteer types. A command's module loads when it is used."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "join": "joining",
    "move": "joining",
    "delegation": "delegating",
    "run": "running",
    "status": "status",
    "pause": "steering",
    "resume": "steering",
    "finish": "steering",
    "stop": "steering",
    "limits": "limits",
    "doctor": "doctor",
    "receipts": "credit",
    "appeal": "credit",
    "install-service": "service",
    "uninstall": "service",
    "export-key": "keys",
    "anchor": "running",
}
"""Name of a command -> its module in worker.commands, where a click command has that name."""


class LazyGroup(click.Group):
    """Imports a command's module only when it is used, all of them for the list in ``--help``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"worker.commands.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Give compute: join a run, train, see your credit.

    \b
    Examples:
      barnraise worker join 'barnraise://host:7443/RUN_ID#root=FINGERPRINT'
      barnraise worker run
      barnraise worker status --watch
      barnraise worker pause --for 2h
      barnraise worker limits busy_cpu_percent 25
      barnraise worker finish          end after the unit under way
      barnraise worker doctor          find out what does not work

    \b
    Exit codes:
      0  done
      1  it was done, and something is not as it should be: a check of 'doctor' fails, a receipt
         does not verify; or the other side broke the protocol
      2  not done: the sentence on stderr says what to do
      3  no worker runs in this folder
    """
