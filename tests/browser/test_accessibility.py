"""The checks of tests/support/accessibility.py find problems, and the labelling page has none."""

import pytest
from playwright.sync_api import expect
from support.accessibility import is_local, record_visit, serious_findings
from support.browsing import DESKTOP, PHONE

pytestmark = pytest.mark.browser

BAD_PAGE = """<!doctype html><title>t</title><html><body><main><h1>A page</h1><img src="data:,">
<p style="color: #ccc; background: #fff">pale</p></main></body></html>"""


def test_the_checks_find_problems(browser):
    context = browser.new_context(**DESKTOP)
    visit = record_visit(context)
    context.route("**/*", lambda route: route.abort())
    page = context.new_page()
    page.set_content(BAD_PAGE)
    page.evaluate("() => { console.error('broken'); setTimeout(() => { throw new Error('uncaught') }) }")
    page.evaluate("() => fetch('http://other.invalid/x').catch(() => null)")
    rules = {finding.split(" ")[0] for finding in serious_findings(page)}
    assert rules == {"image-alt", "color-contrast", "html-has-lang"}
    assert "broken" in visit.errors
    assert any("uncaught" in error for error in visit.errors)
    assert "request to http://other.invalid/x" in visit.problems
    context.close()


def test_requests_to_a_file_and_to_this_computer_are_local():
    assert all(map(is_local, ("file:///a/b.html", "data:image/png;base64,xx", "http://127.0.0.1:80/x", "blob:x")))
    assert not any(map(is_local, ("http://localhost:80/x", "https://example.org/127.0.0.1", "//x")))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_labelling_page_has_no_serious_finding(browser, label, screen, scheme):
    running = label(2)
    context = browser.new_context(**screen, color_scheme=scheme)
    visit = record_visit(context)
    page = context.new_page()
    page.goto(running.url)
    expect(page.locator("#like")).to_be_enabled(timeout=20_000)
    page.wait_for_function("() => !document.getAnimations().length")
    assert serious_findings(page) == []
    assert visit.problems == []
    context.close()
