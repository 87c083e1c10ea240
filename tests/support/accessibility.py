"""Checks of a page in a real browser: accessibility (axe), JavaScript errors, and requests to other machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page

SERIOUS = ("serious", "critical")
LOCAL_SCHEMES = ("file", "data", "blob", "about")
LOCAL_HOST = "127.0.0.1"


@dataclass
class Visit:
    """What the pages of a browser context did: errors (console and uncaught) and the URL of every request."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All errors, and all requests to another place than a file and 127.0.0.1."""
        return self.errors + [f"request to {url}" for url in self.requests if not is_local(url)]


def record_visit(context: BrowserContext) -> Visit:
    """Record the errors and requests of all pages of a context. Call it before the first page is opened."""
    visit = Visit()
    context.on("console", lambda line: visit.errors.append(line.text) if line.type == "error" else None)
    context.on("weberror", lambda found: visit.errors.append(str(found.error)))
    context.on("request", lambda request: visit.requests.append(request.url))
    return visit


def is_local(url: str) -> bool:
    """Whether a request for this URL stays in a file, in the page or on 127.0.0.1."""
    parts = urlsplit(url)
    return parts.scheme in LOCAL_SCHEMES or parts.hostname == LOCAL_HOST


def serious_findings(page: Page) -> list[str]:
    """The serious and critical findings of axe on a page, one line per element: rule, selector and advice."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in found
        if rule["impact"] in SERIOUS
        for node in rule["nodes"]
    ]
