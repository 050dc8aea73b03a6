"""The leaderboard in a real browser: nothing refused, nothing hostile runs, nothing overflows."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.web


def test_pages_in_light_and_dark_wide_and_narrow(
    hostile: tuple[str, ...], audited: Any, site: str, browser: Browser
) -> None:
    complaints: list[str] = []
    for width, scheme, script in ((1280, "light", True), (360, "dark", False)):
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=scheme,
            java_script_enabled=script,
        )
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        for path in (
            "/",
            "/donors",
            "/rounds",
            "/round/2",
            "/audits",
            "/log",
            "/log/3",
            "/receipt",
        ):
            page.goto(site + path)
            assert "owned" not in page.title()
            box = page.locator("main").bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= width, path
        page.goto(f"{site}/donors")
        for name in hostile:
            assert page.get_by_text(name, exact=True).count() == 1
        context.close()
    assert complaints == []


def test_a_person_follows_a_receipt_from_the_board_to_its_check(
    site: str, browser: Browser, tmp_path: Any
) -> None:
    page = browser.new_page()
    page.goto(site)
    page.get_by_role("link", name="Ada").first.click()
    for name in ("leaf", "proof"):
        with page.expect_download() as download:
            page.get_by_role("link", name=name, exact=True).first.click()
        download.value.save_as(tmp_path / name)
    page.get_by_role("link", name="Check a receipt").click()
    page.set_input_files("#leaf_file", tmp_path / "leaf")
    page.set_input_files("#proof_file", tmp_path / "proof")
    page.get_by_role("button", name="Check").click()
    expect(page.locator(".outcome")).to_contain_text("Genuine")
