"""A real Chromium, one for each module that looks at pages."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture, and is allowed
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP lab.example 127.0.0.1",  # another machine's name, which is no secure origin
]


@pytest.fixture(scope="module")  # of a session it would keep an event loop running, also for tests without a page
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip("pages in a browser: Chromium is missing; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
