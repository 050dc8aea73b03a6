"""Runs the leaderboard under uvicorn."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
from pathlib import Path

import click
import platformdirs
import structlog
import uvicorn
from sqlalchemy.exc import DatabaseError

from ledger.folder_index import FolderIndex
from ledger.leaderboard.app import create_app
from protocol.errors import ProtocolError, UsageError
from protocol.identity import PeerId

logger = structlog.get_logger()

_LOOK_EVERY_S = 2.0
_SWITCH_S = 0.001
"""How long the thread that folds may keep a request from running; Python's own is 5 ms."""


def serve_folder(
    folder: Path,
    index: Path | None,
    root: PeerId | None,
    host: str,
    port: int,
    *,
    dumps: Path | None = None,
) -> None:
    """Serve a folder of tiles until interrupted; what is new in it is shown within seconds.

    Raises:
        PeerFault: the folder is damaged, or not signed by who may.
        UsageError: it holds no record, or the address or the index cannot be had.
    """
    made = FolderIndex(folder, index or _cached(folder), root=root)
    made.refresh()
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(made, ended), name="folder")
    watcher.start()
    try:
        serve(made.url, host, port, dumps=dumps)
    finally:
        ended.set()
        watcher.join()


def _watch(index: FolderIndex, ended: threading.Event) -> None:
    while not ended.wait(_LOOK_EVERY_S):
        try:
            index.refresh()
        except (
            ProtocolError,
            DatabaseError,
            OSError,
        ) as error:  # what was shown before goes on being shown
            logger.warning("the folder cannot be followed", error=str(error))


def _cached(folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return platformdirs.user_cache_path("barnraise") / "record" / f"{name}.db"


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
