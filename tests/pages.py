"""The page as tests use it: opened, given files, waited for."""

from pathlib import Path
from typing import Any

from playwright.sync_api import expect

WAIT_MS = 30_000


def opened(browser: Any, url: str, *, width: int = 1280, height: int = 900, **options: Any) -> Any:
    """A page of the service whose model is known; it collects what it asks for and what its console says."""
    page = browser.new_page(viewport={"width": width, "height": height}, **{"locale": "en-US", **options})
    page.problems, page.requested = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(url)
    page.wait_for_selector("#model b")
    return page


def give(page: Any, files: list[Path]) -> None:
    """Choose files; returns when each has its answer."""
    before = page.locator(".card").count()
    page.set_input_files("#files", [str(path) for path in files])
    expect(page.locator(".card")).to_have_count(before + len(files))
    answered(page)


def answered(page: Any) -> None:
    expect(page.locator(".card.waiting, .card.working")).to_have_count(0, timeout=WAIT_MS)
    expect(page.locator("#progress")).to_be_hidden()


def card(page: Any, name: str) -> Any:
    return page.locator(".card", has_text=name)


def open_card(page: Any, name: str) -> Any:
    """The card of that name, opened."""
    found = card(page, name)
    if found.locator(".head").get_attribute("aria-expanded") == "false":
        found.locator(".head").click()
    return found
