"""The site's looks in a real browser: for every eye and hand, light and heavy, seen and printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import looks_rig as rig
import pytest
from playwright.sync_api import Browser, BrowserContext, Page
from proof_rig import Visit
from starlette.testclient import TestClient

pytestmark = [pytest.mark.web, pytest.mark.timeout(240)]

_LIMIT_BYTES = 150_000
_POLL_MS = 15_000


@pytest.fixture
def busy(history: Any) -> Any:
    """The record after many rounds of many donors: as heavy as a page gets."""
    more = [history.enrol(f"w{n}", display_name=f"Worker number {n}") for n in range(24)]
    leaves = []
    for n in range(260):
        steps = {worker: 1 + (n + worker) % 5 for worker in more[n % 7 :: 3]}
        leaves += history.settled_leaves(steps, loss_nats=3 + 40 / (n + 9))
    history.write(leaves)
    history.release()
    return history


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page whose console must stay empty."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []


@pytest.mark.parametrize(
    ("width", "scheme", "scripts"),
    [(1280, "light", True), (360, "dark", True), (768, "dark", False)],
)
def test_axe_and_the_browser_find_nothing_wrong_with_any_page(
    hostile: tuple[str, ...],
    crowded: Any,
    client: TestClient,
    site: str,
    visit: Visit,
    width: int,
    scheme: Any,
    scripts: bool,
) -> None:
    page = visit(
        expecting=("404",) if scripts else ("404", "ERR_FAILED"),
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
    )
    if not scripts:  # axe itself is one: only those of the pages are kept out
        page.route("**/*.js", lambda route: route.abort())
    paths = rig.pages_of_every_kind(client) | {"not-found": "/round/99"}
    assert len(paths) >= 16
    found = {}
    for name, path in paths.items():
        page.goto(site + path)
        assert "owned" not in page.title(), path
        if scripts:
            rig.wait_for_charts(page)
        found[path] = rig.axe(page) if scripts or path in ("/", "/charts", "/donors") else []
        if scripts:
            rig.shoot(page, f"{name}-{width}-{scheme}")
        least = min(width, 320) if width < 768 else width
        page.set_viewport_size({"width": least, "height": 900})
        if page.evaluate("document.documentElement.scrollWidth") > least:
            found[path].append(f"wider than {least} pixels")
        page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{site}/donors")
    assert [page.get_by_text(one, exact=True).count() for one in hostile] == [1] * len(hostile)
    assert {path: problems for path, problems in found.items() if problems} == {}


def test_axe_would_find_something(site: str, page: Page) -> None:
    page.goto(site)
    page.evaluate(
        "document.querySelector('h1').style.color = '#eee';"
        "document.querySelector('.brand img').removeAttribute('alt');"
        "document.documentElement.removeAttribute('lang');"
    )
    found = {problem.partition(":")[0] for problem in rig.axe(page)}
    assert found == {"color-contrast", "image-alt", "html-has-lang"}


@pytest.mark.parametrize("path", ["/", "/charts", "/donors"])
def test_a_page_is_light_with_everything_that_it_loads(
    busy: Any, site: str, context: BrowserContext, page: Page, path: str
) -> None:
    packed: list[float] = []
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: packed.append(event["encodedDataLength"]))
    answers: list[Any] = []

    def take(answer: Any) -> None:
        answers.append(answer)

    page.on("response", take)
    page.goto(site + path)
    if path == "/":
        rig.wait_for_charts(page)
    page.wait_for_load_state("networkidle")
    assert {answer.request.url.startswith(site) for answer in answers} == {True}
    plain = sum(len(answer.body()) for answer in answers)
    print(f"{path}: {plain:,} bytes, {sum(packed):,.0f} packed, {len(answers)} files")
    assert len(packed) == len(answers)
    assert sum(packed) < _LIMIT_BYTES
    if path == "/":
        assert plain < _LIMIT_BYTES
        assert any("uPlot" in answer.url for answer in answers)
    assert context.cookies() == []
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def _hide(page: Page, hidden: bool) -> None:
    state = "hidden" if hidden else "visible"
    page.evaluate(
        "state => { Object.defineProperty(document, 'visibilityState',"
        " {configurable: true, get: () => state});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        state,
    )


def test_a_page_follows_the_record_only_while_somebody_looks(
    history: Any, site: str, page: Page
) -> None:
    page.clock.install()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(site)
    rig.wait_for_charts(page)
    tiles = page.locator("#live-tiles")
    assert "384" not in tiles.inner_text()
    join = page.locator(".join summary")
    join.focus()
    page.evaluate("scrollTo(0, 200)")
    asked.clear()
    with page.expect_response(f"{site}/"):
        page.clock.run_for(_POLL_MS)
    # Nothing changed, so no more was asked.
    assert asked == [f"{site}/static/vendor/htmx.min.js", f"{site}/"]
    assert page.locator("#live-status").inner_text() == ""

    asked.clear()
    _hide(page, True)
    history.settle({0: 8, 1: 8, 2: 8}, loss_nats=4.2)
    page.clock.run_for(10 * _POLL_MS)
    page.evaluate("fetch('/static/barn.svg')")  # whatever was sent before this has come
    assert [url for url in asked if not url.endswith("barn.svg")] == []
    assert "4.800" in tiles.inner_text()

    asked.clear()
    with page.expect_response("**/api/v1/series/loss"):
        _hide(page, False)
        page.clock.run_for(1)
    assert asked[0] == f"{site}/"
    assert "4.200" in tiles.inner_text()
    page.locator("#chart-loss .u-legend", has_text="4.2000").wait_for()
    said = page.locator("#live-status")
    assert "tokens trained in 3 rounds." in said.inner_text()
    assert said.get_attribute("aria-live") == "polite"
    assert page.evaluate("document.activeElement.textContent") == "The link alone"
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    assert page.evaluate("scrollY") == 200


def test_nothing_is_taken_away_that_a_person_is_at(history: Any, site: str, page: Page) -> None:
    page.clock.install()
    page.goto(site)
    link = page.locator("#live-top a").first
    link.focus()
    history.settle({1: 30, 0: 1}, loss_nats=4.1)
    with page.expect_response(f"{site}/"):
        page.clock.run_for(_POLL_MS)
    page.locator("#live-tiles", has_text="4.100").wait_for()
    assert page.evaluate("document.activeElement.closest('#live-top') !== null")
    assert link.inner_text() == "Ada"  # who was passed meanwhile
    page.locator(".brand").focus()
    with page.expect_response(f"{site}/"):
        page.clock.run_for(_POLL_MS)
    page.locator("#live-top li:first-child", has_text="Bob").wait_for()


def test_charts_are_read_and_zoomed_without_a_mouse(busy: Any, site: str, page: Page) -> None:
    page.goto(f"{site}/charts")
    rig.wait_for_charts(page)
    for name in ("loss", "compute", "members", "audits"):
        figure = page.locator(f"#chart-{name}")
        plot, spoken = figure.locator(".plot"), figure.locator("[aria-live]")
        plot.focus()
        plot.press("Home")
        first = spoken.inner_text()
        plot.press("ArrowRight")
        second = spoken.inner_text()
        plot.press("ArrowLeft")
        assert first
        assert second != first == spoken.inner_text()
        plot.press("End")
        assert figure.locator(".u-legend").inner_text().count("–") == 0
        before = page.screenshot(clip=plot.bounding_box())
        figure.get_by_role("button", name="Zoom in").press("Enter")
        page.evaluate("new Promise(requestAnimationFrame)")
        assert page.screenshot(clip=plot.bounding_box()) != before
        figure.get_by_role("button", name="Show all").press("Enter")
        figure.get_by_text("Numbers and files").press("Enter")
        assert figure.get_by_role("table").last.is_visible()


def test_keyboard_reaches_the_page_past_the_head(site: str, page: Page) -> None:
    page.goto(f"{site}/donors")
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert skip.evaluate("e => e === document.activeElement")
    box = skip.bounding_box()
    assert box is not None
    assert box["y"] >= 0  # seen while it has the focus
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")
    for _ in range(12):
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        page.keyboard.press("Tab")


def test_the_board_is_sorted_and_searched_without_scripts(
    hostile: tuple[str, ...], site: str, browser: Browser
) -> None:
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    page.goto(site)
    page.get_by_role("navigation", name="Site").get_by_role("link", name="Donors").click()
    page.get_by_role("link", name="Tokens").click()
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Tokens")
    page.get_by_label("Name or key").fill(hostile[0])
    page.get_by_role("button", name="Search").click()
    assert page.locator("tbody tr").count() == 1
    assert page.locator("tbody").get_by_text(hostile[0], exact=True).is_visible()
    page.goto(f"{site}/charts")
    pictures = page.locator("figure img").all()
    assert len(pictures) == 5
    for picture in pictures:
        picture.scroll_into_view_if_needed()
        page.wait_for_load_state("networkidle")
        box = picture.bounding_box()
        assert box is not None
        assert box["height"] > 80
    details = page.locator("#chart-compute details")
    details.locator("summary").click()
    assert details.get_by_role("cell").count() > 1
    context.close()


def test_who_wants_no_motion_gets_none_and_paper_gets_pictures(
    history: Any, site: str, browser: Browser
) -> None:
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(site)
    rig.wait_for_charts(page)
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].filter(e =>"
        " parseFloat(getComputedStyle(e).transitionDuration) > 0"
        " || getComputedStyle(e).animationName !== 'none').length"
    )
    assert moving == 0
    page.emulate_media(media="print")
    assert page.locator("figure picture img").first.is_visible()
    assert not page.locator(".plot").first.is_visible()
    assert not page.get_by_role("navigation", name="Site").is_visible()
    rig.shoot(page, "campaign-print")
    context.close()
