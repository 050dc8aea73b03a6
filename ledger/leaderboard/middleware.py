"""What every answer has, whichever page or file it is: its policy, CORS, ETag, HEAD.

Invariants:

* Every 200 has an ETag and a Cache-Control, and a client that has the body already gets a 304.
* HEAD is answered wherever GET is, with the headers of GET.
* The record, its API and what is made to be embedded may be read by scripts of any site; nothing
  here knows who asks, so that gives nobody more than they could fetch themselves.
"""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""Of a picture that is opened by itself: it loads nothing and runs nothing."""

_OPEN_TO_ALL = (
    "/api/",
    "/tile/",
    "/checkpoint",
    "/delegations",
    "/receipts/",
    "/acts/",
    "/profiles",
    "/site",
    "/certificate/",
    "/dumps/",
    "/boinc/",
    "/pictures/",
    "/badge/",
    "/card/",
)
_FILES = ("/dumps/", "/boinc/", "/tile/", "/profiles")
_SAFE_METHODS = "GET, HEAD, OPTIONS"
_PREFLIGHT_S = 86_400
_NOT_MODIFIED = 304


class SecurityHeaders:
    """Adds the policy; lets scripts of other sites read the public record."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        is_open = path.startswith(_OPEN_TO_ALL)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                picture = headers.get("Content-Type", "").startswith("image/")
                headers["Content-Security-Policy"] = (
                    PICTURE_POLICY if picture else CONTENT_SECURITY_POLICY
                )
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if is_open:
                    headers["Access-Control-Allow-Origin"] = "*"
                    headers["Access-Control-Expose-Headers"] = "ETag, Retry-After"
                    headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            await send(message)

        if is_open and scope["method"] == "OPTIONS":
            await _preflight(send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


async def _preflight(send: Send) -> None:
    """Answer a browser that asks whether a script may read this: it may."""
    headers = MutableHeaders()
    headers["Allow"] = _SAFE_METHODS
    headers["Access-Control-Allow-Methods"] = _SAFE_METHODS
    headers["Access-Control-Allow-Headers"] = "Accept, If-None-Match, Range"
    headers["Access-Control-Max-Age"] = str(_PREFLIGHT_S)
    await send({"type": "http.response.start", "status": 204, "headers": headers.raw})
    await send({"type": "http.response.body", "body": b""})


class Packing(GZipMiddleware):
    """Packs answers, but for files: those are packed already, asked for in parts, or very large."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_FILES):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Heads:
    """Answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # Not in place: the server tells by its scope that no body is to come.
        asked: Scope = {**scope, "method": "GET"}
        await self._app(asked, receive, send_without_body)
        if "route" in asked:
            scope["route"] = asked["route"]


class ETags:
    """Answers 304 when the body is what the client has already.

    An answer that brings its own ETag, as files do, is passed on as it comes; any other is read
    whole and tagged by its digest.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _Tagged(Headers(scope=scope), send))


class _Tagged:
    """One answer on its way out."""

    def __init__(self, asked: Headers, send: Send) -> None:
        self._asked = asked
        self._send = send
        self._start: Message | None = None  # held back until its body is known
        self._parts: list[bytes] = []
        self._dropping = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._dropping:
            return
        elif self._start is None:
            await self._send(message)
        else:
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._finish(self._start, b"".join(self._parts))

    async def _begin(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        if message["status"] != 200:
            await self._send(message)
            return
        headers.setdefault("Cache-Control", "no-cache")  # ask again, but get a 304
        if "ETag" not in headers:
            self._start = message
        elif self._is_known(headers["ETag"]):
            self._dropping = True
            await self._not_modified(message)
        else:
            await self._send(message)

    async def _finish(self, start: Message, body: bytes) -> None:
        tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'  # weak: packed, it is other bytes
        MutableHeaders(scope=start)["ETag"] = tag
        if self._is_known(tag):
            await self._not_modified(start)
        else:
            await self._send(start)
            await self._send({"type": "http.response.body", "body": body})

    async def _not_modified(self, start: Message) -> None:
        headers = MutableHeaders(scope=start)
        for name in ("Content-Length", "Content-Type", "Content-Disposition"):
            del headers[name]
        await self._send({**start, "status": _NOT_MODIFIED, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": b""})

    def _is_known(self, tag: str) -> bool:
        return is_known(tag, self._asked.get("if-none-match", ""))


def is_known(tag: str, if_none_match: str) -> bool:
    """RFC 9110 section 13.1.2: whether a list of tags, or ``*``, has this one; compared weakly."""
    known = {given.strip().removeprefix("W/") for given in if_none_match.split(",")}
    return "*" in known or tag.removeprefix("W/") in known
