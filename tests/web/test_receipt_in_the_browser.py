"""A receipt on its way through a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.web


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
