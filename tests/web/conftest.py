"""The leaderboard under test, on a record whose donors have hostile names, and a real browser."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, sync_playwright
from starlette.testclient import TestClient

from ledger.leaderboard.app import create_app
from protocol.audit_policy import Verdict, Why

HOSTILE_NAMES = (
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=document.title='owned'>",
    "{{ 7 * 7 }}{% raw %}",
    "' onmouseover='document.title=1",
)


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


_CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of a module; each opens a context of its own."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("these tests open the pages in Chromium: `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()
