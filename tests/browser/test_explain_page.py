"""The page of `tdmr1 explain` in a real browser: offline, accessible, on a desktop and a phone, light and dark."""

import pytest
from playwright.sync_api import expect
from support.accessibility import record_visit, serious_findings
from support.browsing import DESKTOP, PHONE
from support.explanations import made_up

from tdmr1_core.runs.looking.explain_page import explain_page

pytestmark = pytest.mark.browser


@pytest.fixture
def address(tmp_path):
    """The address of the page."""
    file = tmp_path / "explain.html"
    file.write_text(explain_page(made_up(), "first-run"))
    return file.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_works_without_a_network_and_has_no_serious_finding(browser, address, screen, scheme):
    context = browser.new_context(**screen, color_scheme=scheme, offline=True)
    visit = record_visit(context)
    page = context.new_page()
    page.goto(address)
    expect(page.locator("h1")).to_have_text("What the surrogate rewards: “two <b>red</b> circles”")
    images = page.locator("img")
    assert images.evaluate_all("images => images.every(image => image.complete && image.naturalWidth === 24)")
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), "it is too wide"
    assert serious_findings(page) == []
    assert visit.problems == []
    context.close()


def test_the_checkbox_replaces_the_images_by_maps(visit, address):
    page = visit(address)
    first = page.locator(".all figure").first
    expect(first.get_by_alt_text("predicted image")).to_be_visible()
    expect(first.get_by_alt_text("where the surrogate points")).to_be_hidden()
    page.get_by_label("Show where the surrogate points").check()
    expect(first.get_by_alt_text("predicted image")).to_be_hidden()
    expect(first.get_by_alt_text("where the surrogate points")).to_be_visible()
