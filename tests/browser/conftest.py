"""A headless Chromium for the labelling page. Without one, the tests fail with a message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from support.browsing import DESKTOP, open_tab
from support.feedback_server import Label, draw_folder

CHROMIUM = Path(os.environ.get("TDMR1_CHROMIUM") or "/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=20_000)


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM.is_file():
        pytest.fail(
            f"there is no Chromium at {CHROMIUM}: `apt-get install chromium`, or set TDMR1_CHROMIUM to one",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser):
    """`visit(url, **settings)` opens the page in a new browser context. JavaScript errors fail the test."""
    contexts, failures = [], []

    def opened(url, **settings):
        context = browser.new_context(**{**DESKTOP, **settings})
        contexts.append(context)
        return open_tab(context, url, failures)

    yield opened
    for context in contexts:
        context.close()
    assert failures == []


@pytest.fixture
def label(tmp_path):
    """`label(images, *options)` starts `tdmr1 label` on this number of new images."""
    running = []

    def started(images, *options):
        folder = draw_folder(tmp_path / "images", images)
        running.append(Label(folder, *options))
        running[-1].folder = folder
        return running[-1]

    yield started
    for each in running:
        if each.process.poll() is None:
            each.kill()
