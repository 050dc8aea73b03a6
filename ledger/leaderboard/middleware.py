"""Headers of every answer: what a browser may load, and ETags."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_OPEN_TO_ALL = ("/api/", "/tile/", "/checkpoint", "/delegations", "/receipts/", "/pictures/")
_NOT_MODIFIED = 304


class SecurityHeaders:
    """Adds the policy; lets scripts of other sites read the public record."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if scope["path"].startswith(_OPEN_TO_ALL):
                    headers["Access-Control-Allow-Origin"] = "*"
            await send(message)

        await self._app(scope, receive, send_with_headers)


class ETags:
    """Answers 304 when the body is what the client has already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Static files bring their own, and are streamed.
        if scope["type"] != "http" or scope["method"] != "GET" or _is_static(scope):
            await self._app(scope, receive, send)
            return
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                await _finish(scope, start, b"".join(parts), send)

        await self._app(scope, receive, collect)


def _is_static(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.startswith("/static/")


async def _finish(scope: Scope, start: Message, body: bytes, send: Send) -> None:
    if start["status"] == 200:
        tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = MutableHeaders(scope=start)
        headers["ETag"] = tag  # weak: the same page packed is other bytes
        headers.setdefault("Cache-Control", "no-cache")  # ask again, but get a 304
        if tag in Headers(scope=scope).get("if-none-match", ""):
            start["status"], body = _NOT_MODIFIED, b""
            del headers["content-length"]
    await send(start)
    await send({"type": "http.response.body", "body": body})
