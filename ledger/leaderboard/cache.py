"""Keeps pages that were made, for as long as nothing changes: who asks again gets the same bytes.

Invariants:

* What is kept is of one snapshot: with the next one it is gone.
* Only answers that follow from the snapshot, the path and the query alone are kept.
* A client that has the page already is told so (304) without the page being made again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.leaderboard.middleware import is_known

_MOST_BYTES = 64 << 20
_VIEWS = re.compile(
    rb"(/api/v1)?/(donors|teams|pools|campaigns|pledges)"
    rb"|(/api/v1)?/(donors?|teams?|campaigns?)/[^/]*"
    rb"|/|/charts|/api/v1/series/[a-z]+|/api/v1/campaign"
    rb"|(/api/v1)?/(rounds|audits|verdicts)|(/api/v1)?/rounds?/[0-9]+"
)
"""Paths of pages that are pure views of a snapshot and its fold."""


@dataclass(frozen=True)
class _Kept:
    """An answer."""

    start: Message
    body: bytes
    tag: bytes
    route: object  # that made it; also known of an answer that is not made again


class PageCache:
    """Answers what it can, and keeps what the app answers.

    The app gives an ETag with every answer that may be kept.
    """

    def __init__(self, app: ASGIApp, serial: Callable[[], int | None]) -> None:
        """Keep pages of ``app``.

        Args:
            app: makes them.
            serial: of the newest snapshot, which it waits for as any page would; None: there is
                none. Runs in a thread.
        """
        self._app, self._serial = app, serial
        self._of: int | None = None
        self._kept: dict[tuple[bytes, ...], _Kept] = {}
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        path: bytes = scope["path"].encode()
        if not _VIEWS.fullmatch(path):
            await self._app(scope, receive, send)
            return
        serial = await run_in_threadpool(self._serial)
        if serial != self._of:
            self._kept, self._bytes, self._of = {}, 0, serial
        headers = Headers(scope=scope)
        host = headers.get("host", "").encode()  # pages quote their own address
        key = (scope["scheme"].encode(), host, path, scope["query_string"])
        kept = self._kept.get(key)
        if kept is None:
            kept = await self._make(scope, receive)
            if serial is not None and serial == self._of and kept.tag:
                self._keep(key, kept)
        scope["route"] = kept.route
        await _answer(kept, headers.get("if-none-match", ""), send)

    async def _make(self, scope: Scope, receive: Receive) -> _Kept:
        """Have the app answer, whole."""
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        unconditional = [pair for pair in scope["headers"] if pair[0] != b"if-none-match"]
        asked: Scope = {**scope, "headers": unconditional}
        await self._app(asked, receive, collect)
        tag = next((value for name, value in start["headers"] if name == b"etag"), b"")
        return _Kept(start, b"".join(parts), tag, asked.get("route"))

    def _keep(self, key: tuple[bytes, ...], kept: _Kept) -> None:
        size = len(kept.body) + sum(map(len, key))
        while self._kept and self._bytes + size > _MOST_BYTES:
            oldest = next(iter(self._kept))
            self._bytes -= len(self._kept.pop(oldest).body) + sum(map(len, oldest))
        self._kept[key] = kept
        self._bytes += size


async def _answer(kept: _Kept, wanted: str, send: Send) -> None:
    if kept.tag and is_known(kept.tag.decode(), wanted):
        headers = [pair for pair in kept.start["headers"] if pair[0] != b"content-length"]
        await send({**kept.start, "status": HTTPStatus.NOT_MODIFIED, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = list(kept.start["headers"])  # whoever packs the answer changes them
    await send({**kept.start, "headers": headers})
    await send({"type": "http.response.body", "body": kept.body})
