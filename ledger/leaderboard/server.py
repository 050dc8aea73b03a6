"""Runs the leaderboard under uvicorn."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import click
import uvicorn

from ledger.leaderboard.app import create_app
from protocol.errors import UsageError

_SWITCH_S = 0.001
"""How long the thread that folds may keep a request from running; Python's own is 5 ms."""


def serve(database_url: str, host: str, port: int, *, dumps: Path | None = None) -> None:
    """Serve until interrupted.

    Raises:
        UsageError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --listen"
        ) from error
    with listener:
        port = listener.getsockname()[1]  # port 0 asks for any free one
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        click.echo(f"leaderboard at http://{shown}:{port}/; Ctrl-C ends it", err=True)
        sys.setswitchinterval(_SWITCH_S)
        app = create_app(database_url, dumps=dumps)
        app.state.reader.start()
        config = uvicorn.Config(app, log_level="warning", server_header=False, access_log=False)
        uvicorn.Server(config).run(sockets=[listener])
