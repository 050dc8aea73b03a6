"""Downloads and certificates in a real browser: whole on a phone, and for every eye."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import looks_rig as rig
import pytest
import uvicorn
from playwright.sync_api import Browser
from sqlalchemy.orm import Session

from ledger.exports.dumps import write_dump
from ledger.exports.loading import from_database
from ledger.leaderboard.app import create_app

pytestmark = [pytest.mark.web, pytest.mark.timeout(240)]


def test_axe_finds_nothing_and_a_phone_shows_it_all(
    crowded: Any, browser: Browser, tmp_path: Path, ledger_history: ModuleType
) -> None:
    dumps = tmp_path / "dumps"
    with Session(crowded.engine) as session:
        write_dump(*from_database(session), dumps)
    app = create_app(crowded.url, dumps=dumps)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    cleo = ledger_history.identity("cleo").peer_id
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        site = f"http://127.0.0.1:{listener.getsockname()[1]}"
        found = {}
        try:
            for scheme, width in (("light", 320), ("dark", 1280)):
                context = browser.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                page = context.new_page()
                for path in ("/dumps/", f"/certificate/{cleo}", f"/donor/{cleo}"):
                    page.goto(site + path)
                    shown = page.evaluate("document.documentElement.scrollWidth")
                    found[path, width] = [*rig.axe(page), *(["too wide"] if shown > width else [])]
                context.close()
        finally:
            server.should_exit = True
            thread.join()
    assert len(found) == 6
    assert not any(found.values()), found
