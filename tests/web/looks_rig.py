"""What the tests of looks share: pages of every kind, pictures of them, and axe-core."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from playwright.sync_api import Page
from starlette.testclient import TestClient

_AXE = Path(__file__).parent / "vendor/axe.min.js"
_ARTIFACTS = Path(os.environ.get("BARNRAISE_ARTIFACTS") or Path(__file__).parents[2] / "artifacts")
_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_NAME = re.compile(r"[0-9]+(?=/|\?|$)|[0-9a-f]{32}|12D3Koo[0-9A-Za-z]+")


class _Links(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs).get("href") or ""
        if tag == "a" and link.startswith("/"):
            self.found.append(link)


def pages_of_every_kind(client: TestClient) -> dict[str, str]:
    """Follows links from the first page: one path for each kind of page, by a name for it."""
    found: dict[str, str] = {}
    waiting = ["/"]
    while waiting:
        path = waiting.pop(0)
        kind = _NAME.sub("one", path.partition("#")[0].partition("?")[0])
        if kind in found or kind.startswith(("/api/", "/pictures/", "/tile/", "/receipts/")):
            continue
        answer = client.get(path)
        assert answer.status_code == 200, path
        if answer.headers["content-type"].startswith("text/html"):
            found[kind] = path
            waiting += _Links(answer.text).found
    return {kind.strip("/").replace("/", "-") or "campaign": path for kind, path in found.items()}


def wait_for_charts(page: Page) -> None:
    """Scroll past every chart, until each is drawn."""
    for figure in page.locator("figure[data-series]:not([data-kind=progress])").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".plot canvas").wait_for()
    page.evaluate("scrollTo(0, 0)")


def shoot(page: Page, name: str) -> None:
    """Keep a picture of a page for whoever looks at the tests."""
    folder = _ARTIFACTS / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def axe(page: Page) -> list[str]:
    """What axe-core finds wrong with a page, a line each."""
    page.evaluate(_AXE.read_text())
    result: dict[str, Any] = page.evaluate(
        "tags => axe.run(document, {runOnly: tags, resultTypes: ['violations'],"
        " rules: {'target-size': {enabled: true}}})",
        _TAGS,
    )
    return [
        f"{problem['id']}: {problem['help']}: {node['html'][:160]} ({node['failureSummary']})"
        for problem in result["violations"]
        for node in problem["nodes"]
    ]
