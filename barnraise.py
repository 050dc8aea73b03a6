"""The command: ``barnraise``. Sub-commands load lazily, so ``--help`` never imports torch."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click
import platformdirs

from protocol.errors import ProtocolError, UsageError

_COMMANDS = {
    "worker": ("worker.cli", "Give compute: join a run, train, see your credit."),
    "donor": ("worker.donor.cli", "One key for several devices; pledges, teams, a profile."),
    "coordinator": ("coordinator.cli", "Organise a run: make it, serve it, release the model."),
    "ledger": ("ledger.cli", "Read and verify the public record; serve the leaderboard."),
    "data": ("coordinator.data.cli", "Turn text into a dataset for a run."),
    "demo": ("coordinator.demo.cli", "A whole swarm on this machine, in one command."),
}

# Any write of any command can meet these; what it had done before stays as it is.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


class LazyGroup(click.Group):
    """Imports a sub-command's module only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command: click.Command = module.cli
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="barnraise")
def cli() -> None:
    """Raise a language model together, and prove who gave what.

    \b
    Examples:
      barnraise demo                                    a whole swarm on this machine
      barnraise worker join 'barnraise://host:7443/RUN#root=KEY'
      barnraise data build --text 'corpus/*.txt' --out data/
      barnraise ledger verify --url https://example.org
    """


def main() -> None:
    """Entry point: errors meant for a person end in one sentence and a non-zero exit code."""
    # Importing transformers makes torch create a cache folder, by default in the temporary one.
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", str(platformdirs.user_cache_path("barnraise") / "torch")
    )
    try:
        cli.main(prog_name="barnraise")
    except UsageError as error:
        click.echo(f"barnraise: {error}", err=True)
        sys.exit(error.exit_code)
    except ProtocolError as error:
        click.echo(f"barnraise: {error} [{error.reason}]", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        click.echo(f"barnraise: {what}; free space or allow access, then try again", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
