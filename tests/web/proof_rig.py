"""The panel that checks a page, as a reader uses it; and a server in between that lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route, expect

CHECK_MS = 60_000  # a busy machine
PLAIN_HTTP_HOST = "record.test"  # this machine, by a name that a browser does not trust
MODULES = "/static/proof/"

Change = Callable[[bytearray], Any]
Visit = Callable[..., Page]


def start(page: Page, root: str = "", *, saved: str | Path = "") -> None:
    """Fill the panel in and press its button."""
    if root:
        page.get_by_label("Root fingerprint or join link").fill(root)
    if saved:
        page.get_by_text("Compare with a head that you saved").click()
        if isinstance(saved, Path):
            page.get_by_label("The file").set_input_files(saved)
        else:
            page.get_by_label("or paste it").fill(saved)
    page.get_by_role("button", name="Check").click()


def outcome(page: Page) -> tuple[str, dict[str, str]]:
    """How the check ended, and each step that did not hold: its title and what is said of it."""
    result = page.locator(".outcome[data-state]")
    expect(result).to_be_attached(timeout=CHECK_MS)
    state = result.get_attribute("data-state")
    assert state is not None
    wrong = page.locator('.steps li:not([data-state="holds"])').all()
    return state, {
        one.locator(".title").inner_text(): f"{one.locator('.state').inner_text()}: "
        f"{one.locator('.detail').inner_text()}"
        for one in wrong
    }


def check(page: Page, root: str = "", *, saved: str | Path = "") -> tuple[str, dict[str, str]]:
    start(page, root, saved=saved)
    return outcome(page)


def tamper(page: Page, pattern: str, change: Change) -> None:
    """Change what the site serves at a pattern of addresses, on its way to the browser."""

    def serve(route: Route) -> None:
        response = route.fetch()
        body = bytearray(response.body())
        body = change(body) or body
        route.fulfill(
            status=response.status,
            content_type=response.headers["content-type"],
            body=bytes(body),
        )

    page.route(pattern, serve)


def flip(position: int) -> Change:
    """Change one bit of one byte."""

    def change(body: bytearray) -> None:
        body[position] ^= 1

    return change


def swap(old: str, new: str) -> Change:
    """Change one text into another, which must be there."""

    def change(body: bytearray) -> bytearray:
        assert old.encode() in body
        return body.replace(old.encode(), new.encode(), 1)

    return change


def call(page: Page, module: str, function: str, *arguments: Any) -> Any:
    """Call a function of one of the page's modules in the browser; it gives what JSON can say.

    Bytes go in and come out as hex, marked: ``{"hex": ...}``.
    """
    return page.evaluate(
        """async ([module, name, given]) => {
          const { fromHex, hex } = await import("/static/proof/bytes.js");
          const into = (value) => Array.isArray(value) ? value.map(into)
            : value?.hex !== undefined ? fromHex(value.hex) : value;
          const out = (value) => value instanceof Uint8Array ? { hex: hex(value) }
            : Array.isArray(value) ? value.map(out) : value;
          const loaded = await import(module);
          return out(await loaded[name](...given.map(into)));
        }""",
        [MODULES + module, function, list(arguments)],
    )


def raw(data: bytes) -> dict[str, str]:
    """Bytes, for :func:`call`."""
    return {"hex": data.hex()}
