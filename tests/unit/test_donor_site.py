"""What a donor's commands ask the public site, which may say anything."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from protocol.errors import NotFound, TransientError, UsageError
from worker.donor import site as site_of_run
from worker.donor.campaigns import default_campaign, reference_device
from worker.donor.site import fetch, fetch_json

CAMPAIGN = bytes(range(16))


class Site:
    """Pages by path, served on loopback."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, bytes]] = {}
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = pages.get(self.path, (404, b""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def show(self, campaign: object) -> None:
        path = f"/api/v1/campaigns/{CAMPAIGN.hex()}"
        self.pages[path] = (200, json.dumps({"campaign": campaign}).encode())


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


async def test_gpu_hours_are_of_the_device_that_the_campaign_names(site: Site) -> None:
    site.show({"reference_device": "A100", "reference_microcredits_per_hour": 561_600_000_000})
    device = await reference_device(f"{site.url}/", CAMPAIGN)
    assert (device.name, device.microcredits_per_hour) == ("A100", 561_600_000_000)


@pytest.mark.parametrize(
    "campaign",
    [
        None,
        [],
        {"reference_device": None, "reference_microcredits_per_hour": None},
        {"reference_device": "A100", "reference_microcredits_per_hour": None},
        {"reference_device": "A100", "reference_microcredits_per_hour": 0},
        {"reference_device": "A100", "reference_microcredits_per_hour": -5},
        {"reference_device": "A100", "reference_microcredits_per_hour": 1.5},
        {"reference_device": "A100", "reference_microcredits_per_hour": 10**30},
        {"reference_device": "A\x1b[2J", "reference_microcredits_per_hour": 5},
        {"reference_device": 7, "reference_microcredits_per_hour": 5},
    ],
)
async def test_what_makes_no_sense_is_not_pledged_by(site: Site, campaign: object) -> None:
    site.show(campaign)
    with pytest.raises(UsageError, match="pledge in credits instead"):
        await reference_device(site.url, CAMPAIGN)


async def test_a_campaign_that_nobody_knows_is_said_so(site: Site) -> None:
    with pytest.raises(UsageError, match="see the run's campaigns"):
        await reference_device(site.url, CAMPAIGN)
    with pytest.raises(UsageError, match="no public site"):
        await reference_device("", CAMPAIGN)


def test_answers_are_bounded_and_from_the_web(site: Site) -> None:
    site.pages |= {
        "/large": (200, b"x" * 100),
        "/text": (200, b"<html>"),
        "/broken": (500, b""),
    }
    assert fetch(site.url, "large", most_bytes=100) == b"x" * 100
    with pytest.raises(UsageError, match="larger than 99"):
        fetch(site.url, "large", most_bytes=99)
    with pytest.raises(UsageError, match="not JSON"):
        fetch_json(site.url, "text")
    with pytest.raises(TransientError, match="answers 500"):
        fetch(site.url, "broken")
    with pytest.raises(NotFound):
        fetch(site.url, "nothing")
    with pytest.raises(UsageError, match="not on the web"):
        fetch("file:///etc", "passwd")


def test_a_site_that_is_away_is_passing() -> None:
    with pytest.raises(TransientError, match="does not answer"):
        fetch("http://127.0.0.1:9", "api")


def test_the_runs_own_campaign_has_the_beginning_of_its_id() -> None:
    assert default_campaign(bytes(range(32))) == CAMPAIGN


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: /else\r\n\r\n"],
    ids=["body", "redirect"],
)
def test_an_answer_without_end_keeps_nobody(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(head)
            try:
                while not ended.wait(0.02):
                    connection.sendall(b"x")
            except OSError:
                pass  # they have hung up

    monkeypatch.setattr(site_of_run, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(site_of_run, "_MOST_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with pytest.raises(TransientError, match="does not answer"):
                fetch(f"http://127.0.0.1:{listener.getsockname()[1]}", "api/v1/campaign")
        finally:
            ended.set()
            thread.join()
