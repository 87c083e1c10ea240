"""The documentation site: built once without warnings; pages open without errors, other hosts and findings."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.accessibility import record_visit, serious_findings
from support.browsing import DESKTOP, PHONE
from support.paths import ROOT

pytestmark = pytest.mark.browser

CHECKED = {"light": ("index.html", "troubleshooting.html", "quickstart.html"), "dark": ("index.html",)}
"""The pages that `make test` checks for accessibility. `make test-long` checks all, which takes minutes."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        """Print no line for a request."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the site. A warning of the build fails."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> list[str]:
    """The paths of all pages."""
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")


@pytest.fixture(scope="module")
def address(site) -> str:
    """The site on a server of this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def opened(browser):
    """`opened(**settings)` is a new tab and the record of its errors and requests, which must have no problem."""
    found = []

    def make(**settings):
        context = browser.new_context(**{**DESKTOP, **settings})
        found.append((context, record_visit(context)))
        return context.new_page()

    yield make
    for context, visit in found:
        context.close()
        assert visit.problems == []


def check_opens(tab, address, page):
    """The page has a heading, and all its images load."""
    tab.goto(f"{address}/{page}")
    assert tab.locator("h1").count() >= 1, page
    broken = tab.evaluate("[...document.images].filter(each => !each.naturalWidth).map(each => each.src)")
    assert broken == [], page


def test_pages_with_figures_tables_and_equations_open(address, pages, opened):
    tab = opened()
    assert len(pages) >= 40
    for page in (*CHECKED["light"], "concepts.html", "settings.html"):
        check_opens(tab, address, page)


@pytest.mark.long
def test_every_page_opens(address, pages, opened):
    tab = opened()
    for page in pages:
        check_opens(tab, address, page)


@pytest.mark.parametrize("scheme", CHECKED)
def test_texts_tables_code_and_figures_have_no_serious_findings(address, opened, scheme):
    tab = opened(color_scheme=scheme)
    for page in CHECKED[scheme]:
        tab.goto(f"{address}/{page}")
        assert serious_findings(tab) == [], page


@pytest.mark.long
@pytest.mark.parametrize("scheme", CHECKED)
def test_no_page_has_serious_findings(address, pages, opened, scheme):
    tab = opened(color_scheme=scheme)
    for page in pages:
        tab.goto(f"{address}/{page}")
        assert serious_findings(tab) == [], page


def test_a_page_fits_on_a_phone(address, opened):
    tab = opened(**PHONE)
    for page in ("index.html", "settings.html", "concepts.html"):
        tab.goto(f"{address}/{page}")
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"], page


@pytest.mark.parametrize("place", ["server", "files"])
def test_the_search_finds_a_setting_without_another_host(address, site, opened, place):
    tab = opened()
    tab.goto(f"{address}/index.html" if place == "server" else (site / "index.html").as_uri())
    tab.locator("[data-md-component=search-query]").click()
    tab.keyboard.type("beta_dpo")
    tab.locator(".md-search-result__link[href*='settings.html'][href$='#surrogatebeta_dpo']").first.wait_for()


def test_an_equation_is_drawn_and_leads_to_its_function(address, opened):
    tab = opened()
    tab.goto(f"{address}/concepts.html")
    boxes = [each.bounding_box() for each in tab.locator(".equation math").all()]
    assert len(boxes) >= 14
    assert all(box["height"] > 12 and box["width"] > 60 for box in boxes)
    tab.get_by_role("link", name="preference_weights").click()
    name = "tdmr1_core.algorithm.objectives.preference_weights"
    expect(tab).to_have_url(f"{address}/api/algorithm.html#{name}")
    expect(tab.locator(f"[id='{name}']")).to_be_visible()
