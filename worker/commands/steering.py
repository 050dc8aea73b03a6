"""``pause``, ``resume``, ``finish``, ``stop``: words to the worker that runs."""

from __future__ import annotations

import click

from worker.commands.options import home_option
from worker.config import Home


def _tell(name: str, text: str, done: str) -> click.Command:
    @click.command(name=name, help=text)
    @home_option
    def command(home: Home) -> None:
        from worker.control import ask

        ask(home, name)
        click.echo(done)

    return command


finish = _tell(
    "finish", "End after the unit under way and its reduce.", "It will end after this unit."
)
stop = _tell("stop", "End now; what was trained is kept.", "It is stopping.")
pause = _tell("pause", "Take no new work until 'resume'.", "Paused after the unit under way.")
resume = _tell("resume", "Take work again after 'pause'.", "Resumed.")
