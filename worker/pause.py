"""The owner's pause, which outlasts every process: who said so once need not say it again."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import dataclass

import structlog

from protocol.errors import TransientError, UsageError
from worker.config import Home
from worker.journal import Journal

log = structlog.get_logger()

_KEY = "paused"
_EARLIER = {"yes": "{}", "no": "", None: ""}  # as it was written before a pause could end


@dataclass(frozen=True)
class Pause:
    """Nothing is worked until then."""

    until_s: float | None = None  # Unix time; None: until 'resume'


def kept_pause(home: Home) -> Pause | None:
    """The pause that holds; None if there is none, or it is over. Blocks.

    Raises:
        UsageError: the journal is damaged.
    """
    if not home.journal.exists():
        return None
    with closing(Journal(home.journal)) as journal:
        text = journal.get(_KEY)
    return as_kept(text)


def as_kept(text: str | None) -> Pause | None:
    """The pause that the journal's text tells of, if it still holds."""
    text = _EARLIER.get(text, text)
    if not text:
        return None
    pause = Pause(json.loads(text).get("until_s"))
    return None if pause.until_s is not None and pause.until_s <= time.time() else pause


def keep_pause(home: Home, pause: Pause | None) -> None:
    """Write down that it holds, or that none does; blocks briefly."""
    try:
        with closing(Journal(home.journal)) as journal:
            journal.put(_KEY, "" if pause is None else json.dumps({"until_s": pause.until_s}))
    except (TransientError, UsageError) as error:  # the disk is full, or refuses
        log.warning("will be forgotten at a restart", problem=str(error))
