"""Talking to a running worker: a unix socket, mode 0600, in its home folder.

One request and one answer per connection, each a line of JSON:
``{"command": "pause", "for_s": 60}`` -> ``{"ok": true, "status": {...}}``, or
``{"ok": false, "error": "what is wrong"}``.

Invariants: the socket exists only while the worker runs, and only its owner can open it; a request
is bounded in size and time, and nobody waits for another's; no process but one holds the home
folder, also while that one becomes another program.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from protocol.errors import UsageError
from worker.config import Home

COMMANDS = ("status", "finish", "stop", "pause", "resume", "reload")
MOST_PAUSE_S = 366 * 86_400.0

_MAX_REQUEST_BYTES = 64 << 10
_MAX_ANSWER_BYTES = 1 << 20
_REQUEST_TIMEOUT_S = 5.0
_TURNING_S = 20.0  # between one program and the next: on a busy machine that loads for seconds
_AGAIN_S = 0.05
_LOCK_PATIENCE_S = 0.5  # somebody may be looking whether it is held


class NotRunning(UsageError):
    """No worker runs in this home folder."""

    exit_code = 3  # as init scripts have it for "not running"


Handler = Callable[[str, dict[str, Any]], dict[str, Any]]
"""``command, arguments -> answer``; must not block. What is checked: the command is one of
:data:`COMMANDS`, its arguments are of it and of the right type. It may raise UsageError."""


# ---- the home folder


@contextmanager
def home_lock(home: Home, inherited: int | None = None) -> Iterator[int]:
    """Hold the home folder: at most one worker runs in it.

    Args:
        inherited: descriptor of the lock, if the program that we were held it.

    Yields:
        The lock's descriptor.

    Raises:
        UsageError: another one does; says which process.
    """
    if inherited is not None and _is_lock(inherited, home):
        descriptor = inherited
        os.set_inheritable(descriptor, False)
    else:
        descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, home)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _is_lock(descriptor: int, home: Home) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), home.lock.stat())
    except OSError:
        return False


def _lock(descriptor: int, home: Home) -> None:
    until_s = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > until_s:
                owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise UsageError(
                    f"a worker runs in {home.path} already (process {owner}): see it with "
                    "'barnraise worker status', end it with 'barnraise worker finish', or give "
                    "another folder with --home"
                ) from error
        time.sleep(_AGAIN_S)


def is_held(home: Home) -> bool:
    """Whether a worker lives in this folder, one that answers or not."""
    try:
        descriptor = os.open(home.lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared: two who look at the same moment do not take each other for a worker.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# ---- the worker's side


@asynccontextmanager
async def control_server(home: Home, handler: Handler) -> AsyncIterator[None]:
    """Serve commands until the block ends; then the socket is gone."""
    home.socket.unlink(missing_ok=True)  # left by a kill -9: the lock says that nobody uses it
    serving: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(_serve(reader, writer, handler))
        serving.add(task)
        task.add_done_callback(serving.discard)

    previous = os.umask(0o177)  # the socket is born 0600, there is no moment before a chmod
    try:
        server = await asyncio.start_unix_server(
            connected, path=str(home.socket), limit=_MAX_REQUEST_BYTES
        )
    finally:
        os.umask(previous)
    try:
        yield
    finally:
        home.socket.unlink(missing_ok=True)
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await server.wait_closed()


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
) -> None:
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            writer.write(json.dumps(await _answer(reader, handler)).encode() + b"\n")
            await writer.drain()
        writer.close()
    except (TimeoutError, ConnectionError):
        pass  # the other side is slow or gone: its loss
    finally:
        if not writer.is_closing():
            writer.transport.abort()


async def _answer(reader: asyncio.StreamReader, handler: Handler) -> dict[str, Any]:
    try:
        command, arguments = _parse(await _line(reader))
        return {"ok": True, **handler(command, arguments)}
    except _TooLong:
        return {"ok": False, "error": f"a request has at most {_MAX_REQUEST_BYTES} bytes"}
    except UsageError as error:
        return {"ok": False, "error": str(error)}
    except Exception:
        # The boundary: a bug in one command must not leave who asks without an answer.
        import structlog  # loads what commands that only ask need not

        structlog.get_logger().exception("a command failed")
        return {"ok": False, "error": "internal error: see the worker's log"}


class _TooLong(Exception):
    """Private."""


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError as error:
        raise _TooLong from error


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    """
    Raises:
        UsageError: not a command with arguments of its own.
    """
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise UsageError('not a request: one is a line such as {"command": "status"}')
    command = request.pop("command")
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command[:40]!r}; known: {', '.join(COMMANDS)}")
    for name, value in request.items():
        if (command, name) != ("pause", "for_s"):
            raise UsageError(f"{command} takes no {name[:40]!r}")
        if type(value) not in (int, float) or not 0 < value <= MOST_PAUSE_S:
            raise UsageError("pause: for_s is a number of seconds, at most a year of them")
    return command, request


# ---- the other side


def ask(home: Home, command: str, **arguments: Any) -> dict[str, Any]:
    """Send one command to the worker of a home folder; blocking.

    Raises:
        NotRunning: no worker runs there.
        UsageError: it does not answer, or refuses.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    until_s = time.monotonic() + _TURNING_S
    while True:
        try:
            answer = _ask_once(home, request)
        except (OSError, ValueError) as error:
            if not is_held(home):
                raise NotRunning(
                    f"no worker runs in {home.path}: start one with 'barnraise worker run'"
                ) from error
            # It may be on its way from one program to the next.
            if isinstance(error, TimeoutError) or time.monotonic() > until_s:
                raise UsageError(f"the worker in {home.path} does not answer: {error}") from error
            time.sleep(_AGAIN_S)
            continue
        if not answer.get("ok"):
            raise UsageError(str(answer.get("error")))
        return answer


def _ask_once(home: Home, request: bytes) -> dict[str, Any]:
    """
    Raises:
        OSError, ValueError: nobody answers, or not in JSON.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_REQUEST_TIMEOUT_S)
        connection.connect(str(home.socket))
        with suppress(BrokenPipeError):  # it may answer what is too long before it is all there
            connection.sendall(request)
        with connection.makefile("rb") as file:
            answer: dict[str, Any] = json.loads(file.readline(_MAX_ANSWER_BYTES))
    return answer
