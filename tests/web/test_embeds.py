"""Badges, cards and certificates over HTTP: well-formed whatever a name is, and true."""

from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from crowd_rig import TEAM
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from ledger.cli import cli
from ledger.exports.badge import badge
from ledger.exports.card import HEIGHT, WIDTH, Figure, Segment, card
from ledger.exports.certificate import check_certificate
from ledger.leaderboard.workshop import Workshop

SVG = "{http://www.w3.org/2000/svg}"


class Metas(HTMLParser):
    """The meta tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and "property" in values:
            self.found[str(values["property"])] = str(values["content"])


def _safe(svg: bytes | str) -> Any:
    """The picture, having insisted that it loads and runs nothing."""
    tree = etree.fromstring(svg.encode() if isinstance(svg, str) else svg)
    for element in tree.iter():
        assert element.tag.removeprefix(SVG) in {"svg", "title", "rect", "path", "g", "text"}
        assert not [name for name in element.attrib if name.startswith("on") or "href" in name]
        assert "url(" not in str(dict(element.attrib))
    assert tree.get("role") == "img"
    assert tree.findtext(f"{SVG}title")
    return tree


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_pictures_are_well_formed_whatever_a_name_is(name: str) -> None:
    for drawn in (
        badge(name, "1.5 credits"),
        card(name, name, [Figure(name, name)] * 4, [Segment("final", 0, 500)]),
    ):
        tree = _safe(drawn)
        assert len(drawn) < 8_000
        assert float(tree.get("width")) <= WIDTH
    shown = _safe(badge(name, "1.5 credits")).findtext(f"{SVG}title")
    assert "1.5 credits" in shown


def test_badges_are_of_donors_and_teams_and_embeddable(
    crowded: Any, client: TestClient, ledger_history: ModuleType
) -> None:
    cleo = ledger_history.identity("cleo").peer_id
    old = ledger_history.identity("ada").peer_id
    for name, shown in ((cleo, "=HYPERLINK"), (old, "…"), (TEAM, "<&\"']]> team")):
        answer = client.get(f"/badge/{name}.svg")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/svg+xml"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "max-age" in answer.headers["cache-control"]
        assert shown in _safe(answer.content).findtext(f"{SVG}title")
        tag = {"If-None-Match": answer.headers["etag"]}
        assert client.get(f"/badge/{name}.svg", headers=tag).status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "/badge/nobody.svg",
        "/badge/%00.svg",
        "/badge/%F0%9F.svg",
        f"/badge/{'0' * 32}.svg",
        "/card/nobody.png",
        "/card/x.gif",
        "/certificate/nobody",
        "/certificate/nobody.json",
    ],
)
def test_of_nobody_there_is_nothing(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 422)


def test_cards_are_drawn_as_svg_and_png(
    crowded: Any, client: TestClient, ledger_history: ModuleType
) -> None:
    for name in ("campaign", TEAM, ledger_history.identity("cleo").peer_id):
        _safe(client.get(f"/card/{name}.svg").content)
        png = client.get(f"/card/{name}.png")
        assert png.headers["content-type"] == "image/png"
        assert png.content.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", png.content[16:24]) == (WIDTH, HEIGHT)


def test_pages_tell_other_sites_what_to_show(
    crowded: Any, client: TestClient, ledger_history: ModuleType
) -> None:
    cleo = ledger_history.identity("cleo").peer_id
    for path, card_of in (("/", "campaign"), (f"/donor/{cleo}", cleo), (f"/team/{TEAM}", TEAM)):
        metas = Metas(client.get(path).text).found
        assert metas["og:image"] == f"http://testserver/card/{card_of}.png"
        assert metas["og:url"] == f"http://testserver{path}"
        assert client.get(metas["og:image"]).status_code == 200
        assert metas["og:description"]
    assert "=HYPERLINK" in Metas(client.get(f"/donor/{cleo}").text).found["og:title"]


def test_a_certificate_from_the_site_verifies_offline(
    crowded: Any, client: TestClient, ledger_history: ModuleType, tmp_path: Path
) -> None:
    """Ada's: of two keys, joined by a rotation."""
    new = ledger_history.identity("ada-new").peer_id
    old = ledger_history.identity("ada").peer_id
    root = crowded.manifest.root
    for name in (new, old):
        answer = client.get(f"/certificate/{name}.json")
        assert answer.headers["content-disposition"].startswith("attachment")
        proven = check_certificate(answer.content, root)
        assert proven.subject == new
        assert proven.keys == {new, old}
    shown = client.get(f"/api/v1/donors/{new}").json()["donor"]
    for status in ("final", "pending", "forfeited"):
        name = f"{status}_microcredits"
        assert proven.totals[name] == shown[name]
    assert client.get(f"/certificate/{new}.json?part=2").status_code == 404
    page = client.get(f"/certificate/{old}")
    assert page.url.path == f"/certificate/{new}"
    assert f"--root {root}" in page.text
    file = tmp_path / "certificate.json"
    file.write_bytes(answer.content)
    result = CliRunner().invoke(cli, ["certificate", "check", str(file), "--root", root])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("genuine:")


def test_sponsored_credit_is_only_claimed(
    crowded: Any, client: TestClient, ledger_history: ModuleType
) -> None:
    cleo = ledger_history.identity("cleo").peer_id
    proven = check_certificate(
        client.get(f"/certificate/{cleo}.json").content, crowded.manifest.root
    )
    shown = client.get(f"/api/v1/donors/{cleo}").json()["donor"]
    assert proven.claims == {"sponsored_microcredits": shown["sponsored_microcredits"]}
    own = proven.totals["final_microcredits"] + proven.totals["pending_microcredits"]
    total = shown["final_microcredits"] + shown["pending_microcredits"]
    assert own + shown["sponsored_microcredits"] == total


def test_what_is_dear_is_made_once_and_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.leaderboard.workshop._MOST_WAIT_S", 0.01)
    workshop, begun, go_on = Workshop(), threading.Event(), threading.Event()

    def make() -> bytes:
        begun.set()
        go_on.wait()
        return b"made"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(workshop.get, "key", make)
        begun.wait()
        with pytest.raises(HTTPException) as refused:
            workshop.get("other", make)
        assert refused.value.status_code == 503
        go_on.set()
        assert first.result() == b"made"
    assert workshop.get("key", lambda: b"again") == b"made"


def test_the_workshop_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.leaderboard.workshop._MOST_BYTES", 10)
    workshop = Workshop()
    for key in range(4):
        workshop.get(key, lambda: b"12345")
    assert workshop.get(3, lambda: b"new") == b"12345"
    assert workshop.get(0, lambda: b"new") == b"new"
