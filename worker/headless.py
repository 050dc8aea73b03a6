"""A worker of which nothing but the environment says what to do: on a server, in a container.

The environment is what holds: at each start, what it says is written into ``worker.toml``, so that
``limits`` shows the truth and ``--reload`` does not undo it. Nothing is proposed from the machine:
what a container sees of it is not what its owner knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog

from protocol.channel import backoff_s
from protocol.errors import TransientError, UsageError
from worker.config import Home, WorkerConfig
from worker.environment import Environment
from worker.settings import change_settings

log = structlog.get_logger()

Enter = Callable[[WorkerConfig], Any]
"""Joins the run of a configuration; see :func:`worker.commands.joining.enter`."""


def settle(home: Home, environment: Environment, enter: Enter) -> WorkerConfig:
    """The configuration to work with; joins first where nothing was joined and a link is given.

    Raises:
        UsageError: nothing was joined and there is no link; a value is wrong; the run refuses.
    """
    if not home.config.exists() and environment.link:
        _enter_patiently(environment.join_config(), enter)

    def updated(before: WorkerConfig) -> WorkerConfig:
        moved = environment.moves(before, home)
        after = environment.over(before)
        return after.with_options(link=environment.link) if moved else after

    return change_settings(home, updated)


def _enter_patiently(config: WorkerConfig, enter: Enter) -> None:
    """A machine may be up before its network, or before the coordinator is."""
    attempt = 0
    while True:
        try:
            enter(config)
            return
        except UsageError as error:
            if not isinstance(error.__cause__, TransientError):
                raise
            if not attempt:
                log.warning("not joined yet: trying again until it answers", problem=str(error))
        time.sleep(backoff_s(attempt))
        attempt += 1
