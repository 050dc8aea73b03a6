"""A problem of something that is tried again and again: told when it begins, not at each try."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from protocol.errors import ProtocolError

log = structlog.get_logger()


@dataclass
class Trouble:
    """What keeps one thing from succeeding."""

    event: str  # the log line
    _kind: str = ""

    def tell(self, error: BaseException) -> None:
        """It failed. How a call fails differs from try to try and tells nobody anything: its kind
        does.
        """
        kind = error.reason if isinstance(error, ProtocolError) else type(error).__name__
        if kind != self._kind:
            log.warning(self.event, problem=str(error) or "no answer in time")
        self._kind = kind

    def over(self) -> None:
        """It succeeded: the next failure is news."""
        self._kind = ""
