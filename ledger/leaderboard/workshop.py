"""Makes what is dear: one at a time, and the same thing once.

Invariant: however many ask, one thread works; who would wait long is told to come again, and does
not keep a thread from others.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from fastapi import Request
from starlette.exceptions import HTTPException

_MOST_BYTES = 32 << 20
_MOST_WAIT_S = 2.0
_AGAIN_S = 5


class Workshop:
    """Safe to share between threads."""

    def __init__(self) -> None:
        self._working = threading.Lock()
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """What ``make`` gives, or gave for this key.

        Raises:
            HTTPException: 503, others wait already.
        """
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        if not self._working.acquire(timeout=_MOST_WAIT_S):
            raise HTTPException(
                503, "Too many ask for this just now.", headers={"Retry-After": str(_AGAIN_S)}
            )
        try:
            kept = self._kept.get(key)
            if kept is None:
                kept = self._kept[key] = make()
                self._bytes += len(kept)
                while self._bytes > _MOST_BYTES and len(self._kept) > 1:
                    self._bytes -= len(self._kept.popitem(last=False)[1])
            return kept
        finally:
            self._working.release()


def workshop_of(request: Request) -> Workshop:
    """The app's workshop."""
    workshop: Workshop = request.app.state.workshop
    return workshop
