"""Talking to a running worker: a unix socket, mode 0600, in its home folder.

One request and one answer per connection, each a line of JSON: ``{"command": "status"}`` ->
``{"ok": true, "status": {...}}``.

Invariants: the socket exists only while the worker runs, and only its owner can open it; a request
is bounded in size and time.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from protocol.errors import UsageError
from worker.config import Home

COMMANDS = ("status", "finish", "stop", "pause", "resume")
_MAX_LINE_BYTES = 1 << 20
_REQUEST_TIMEOUT_S = 5.0


class NotRunning(UsageError):
    """No worker runs in this home folder."""

    exit_code = 3  # as init scripts have it for "not running"


Handler = Callable[[str], dict[str, Any]]
"""``command -> answer``; must not block."""


@contextmanager
def home_lock(home: Home) -> Iterator[None]:
    """Hold the home folder: at most one worker runs in it.

    Raises:
        UsageError: another one does; says which process.
    """
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise UsageError(
                f"a worker runs in {home.path} already (process {owner}): see it with "
                "'barnraise worker status', end it with 'barnraise worker finish', or give "
                "another folder with --home"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@asynccontextmanager
async def control_server(home: Home, handler: Handler) -> AsyncIterator[None]:
    """Serve commands until the block ends; then the socket is gone."""
    home.socket.unlink(missing_ok=True)  # left by a kill -9: the lock says that nobody uses it
    previous = os.umask(0o177)  # the socket is born 0600, there is no moment before a chmod
    try:
        server = await asyncio.start_unix_server(
            lambda reader, writer: _serve(reader, writer, handler),
            path=str(home.socket),
            limit=_MAX_LINE_BYTES,
        )
    finally:
        os.umask(previous)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
        home.socket.unlink(missing_ok=True)


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
) -> None:
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            answer = _answer(await reader.readline(), handler)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
    except (TimeoutError, ConnectionError, ValueError):
        return  # the other side is slow, gone, or talks nonsense: its loss
    finally:
        writer.close()


def _answer(line: bytes, handler: Handler) -> dict[str, Any]:
    try:
        command = json.loads(line)["command"]
    except (ValueError, KeyError, TypeError):
        return {"ok": False, "error": "not a request"}
    if command not in COMMANDS:
        return {"ok": False, "error": f"unknown command; known: {', '.join(COMMANDS)}"}
    return {"ok": True, **handler(command)}


def ask(home: Home, command: str, **arguments: Any) -> dict[str, Any]:
    """Send one command to the worker of a home folder; blocking.

    Raises:
        NotRunning: no worker runs there.
        UsageError: it does not answer, or refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_REQUEST_TIMEOUT_S)
            connection.connect(str(home.socket))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer: dict[str, Any] = json.loads(file.readline(_MAX_LINE_BYTES))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotRunning(
            f"no worker runs in {home.path}: start one with 'barnraise worker run'"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"the worker in {home.path} does not answer: {error}") from error
    if not answer.get("ok"):
        raise UsageError(str(answer.get("error")))
    return answer
