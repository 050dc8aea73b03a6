"""The leaderboard under test, on a record whose donors have hostile names, and in real Chromium.

A page in the browser fails its test on any complaint: an error on the console or in a script, a
breach of the site's policy, a dialog, a request to another host.
"""

from __future__ import annotations

import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from ledger.leaderboard.app import create_app
from ledger.schema import ErasedProfile, Profile, TeamProfile
from protocol.audit_policy import Verdict, Why

sys.path.insert(0, str(Path(__file__).parent))

from crowd_rig import TEAM, act_in_every_way, give_and_join
from proof_rig import PLAIN_HTTP_HOST, Visit

_CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {PLAIN_HTTP_HOST} 127.0.0.1",
]

HOSTILE_NAMES = (
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=document.title='owned'>",
    "{{ 7 * 7 }}{% raw %}",
    "' onmouseover='document.title=1",
)

CROWDED_NAME = '=HYPERLINK("x"),]]>&<b>\'é'


@pytest.fixture
def hostile(history: Any) -> tuple[str, ...]:
    """Donors with these names, credited in one more round."""
    numbers = [history.enrol(f"h{n}", display_name=name) for n, name in enumerate(HOSTILE_NAMES)]
    history.enrol("anonymous")
    history.settle(dict.fromkeys(numbers, 3), loss_nats=4.5)
    return HOSTILE_NAMES


@pytest.fixture
def audited(history: Any) -> Any:
    """The record with every kind of leaf that audits leave: of Ada verified, of Bob forfeited."""
    ada, bob, laptop = 0, 1, 2
    history.judge(0, ada)
    history.judge(0, bob, Verdict.UNAVAILABLE, reason="nobody_answers")
    history.reverse(bob, history.credits_of(bob, 0), history.size() - 1, reason="unavailable")
    history.judge(2, ada)
    history.judge(2, laptop, Verdict.INCONCLUSIVE, reason="between_bounds")
    history.judge(2, ada, subject="reducing", chunk=3, why=Why.SAMPLED)
    history.publish_draw(0)
    history.publish_draw(2)
    history.now_s += 8 * 86_400
    history.finish(ada, history.credits_of(ada, 0))
    failed = history.judge(2, bob, Verdict.FAILED, reason="pooled_differs")
    history.reverse(bob, sorted(history.credits_of(bob, 2) + history.credits_of(laptop)), failed)
    history.block(bob)
    history.settle({ada: 4})
    return history


@pytest.fixture
def acted(audited: Any, crowd: Any, crowd_history: ModuleType) -> tuple[Any, dict[str, int]]:
    """A record with a leaf of every kind but restore."""
    made = act_in_every_way(crowd, crowd_history)
    audited.release()
    return audited, made


@pytest.fixture
def client(history: Any) -> Iterator[TestClient]:
    with TestClient(create_app(history.url)) as client:
        yield client


@pytest.fixture
def site(history: Any) -> Iterator[str]:
    """The site on a real port; connections queue from the moment it is bound."""
    server = uvicorn.Server(uvicorn.Config(create_app(history.url), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a module: Playwright's loop runs while it is open, in nobody else's way."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("there is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """``visit(expecting=("404",), **context options)``: a new page, in a context of its own.

    Complaints fail the test at its end, but for those that contain a text that is expected.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def new_page(expecting: tuple[str, ...] = (), **options: Any) -> Page:
        def complain(what: str) -> None:
            if not any(expected in what for expected in expecting):
                complaints.append(what)

        def watch(request: Request) -> None:
            where = urlsplit(request.url)
            is_ours = where.hostname in ("127.0.0.1", PLAIN_HTTP_HOST)
            if not is_ours and where.scheme not in ("data", "blob"):
                complain(f"asked another host: {request.url}")

        context = browser.new_context(**options)
        contexts.append(context)
        context.on("request", watch)
        page = context.new_page()
        page.on("console", lambda said: said.type != "log" and complain(f"console: {said.text}"))
        page.on("pageerror", lambda error: complain(f"script: {error}"))
        page.on("dialog", lambda dialog: complain(f"dialog: {dialog.message}"))
        return page

    yield new_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def crowded(audited: Any, crowd: Any, crowd_history: ModuleType) -> Any:
    """The audited record with a team, a pool, joined keys, pledges and donations of every kind.

    Ada gave up a key for another one; Cleo paid for the pool's device and chose a hostile name.
    """
    history = audited
    history.enrol("cleo", display_name=CROWDED_NAME)
    give_and_join(crowd, crowd_history)
    pool = history.enrol("pool", display_name="Rented")
    cleo = pool - 1
    history.settle({0: 4, cleo: 3, pool: 7})
    history.publish_draw(history.round - 2)
    history.publish_draw(history.round - 1)
    for worker in (0, cleo, pool):
        history.judge(history.round - 1, worker)
    history.judge(history.round - 2, 0)
    history.now_s += 30 * 86_400
    for worker in (cleo, pool):
        history.finish(worker, history.credits_of(worker))
    crowd.write_all([(crowd.key_change("ada", "ada-new"), "ada")])
    with Session(history.engine) as session, session.begin():
        session.merge(
            TeamProfile(
                team=TEAM,
                display_name="<&\"']]> team",
                url="https://example.org/?a=1&b=2",
                about="=1+1",
                updated_at_s=history.now_s,
            )
        )
        row = session.get_one(Profile, crowd_history.identity("cleo").peer_id)
        row.url, row.about, row.show_devices = "https://cleo.example/", "a\tb", True
        bob = crowd_history.identity("bob").peer_id
        session.merge(ErasedProfile(subject=bob, erased_at_s=history.now_s))
        session.delete(session.get_one(Profile, bob))
    return history
