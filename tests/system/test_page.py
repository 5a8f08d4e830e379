"""The page in a real browser: what a person sees after dropping images, good and bad."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from pipeline.samples import draw_style, render_field
from serving.settings import read_settings
from tests.bundles import make_bundle, make_familiar_bundle
from tests.images import encoded
from tests.live import live

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="the page in a browser: Chromium is missing; apt-get install chromium"
)
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("model")
    bundle = make_bundle(folder, task="multiclass", synthetic=True, review_band=(0.4, 0.6))
    with live(read_settings({"model": bundle.uri, "max_bytes": 2_000_000})) as address:
        yield address


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A synthetic JPEG, a TIFF (no browser shows it), a file that ends too early, and no image at all."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    field = Image.fromarray(render_field(rng, draw_style(rng), positive=True, width=320, height=240))
    paths = [folder / "blast.jpg", folder / "smear.tif", folder / "cut.png", folder / "<b>notes.jpg"]
    field.save(paths[0], quality=90)
    field.save(paths[1])
    field.save(folder / "whole.png")
    paths[2].write_bytes((folder / "whole.png").read_bytes()[:5000])
    paths[3].write_bytes(b"not an image")
    return paths


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(url)
    page.wait_for_selector("#model b")
    yield page
    page.close()


def drop(page: Any, images: list[Path]) -> None:
    page.set_input_files("#files", [str(path) for path in images])
    expect(page.locator(".card")).to_have_count(len(images))
    expect(page.locator(".card.waiting")).to_have_count(0, timeout=WAIT_MS)


def test_page_shows_decision_probability_and_model(page: Any, images: list[Path]) -> None:
    drop(page, images[:1])
    card = page.inner_text(".card")
    assert any(word in card for word in ("positive", "negative", "review"))
    assert "probability of leukemia" in card and "threshold 0.5" in card
    assert "320×240" in card and "JPEG" in card and "tiny-linear" in card
    assert page.locator(".card .classes dt").all_inner_texts() == ["Benign", "Early", "Pre", "Pro"]


def test_page_shows_the_exact_error_of_each_bad_file(page: Any, images: list[Path]) -> None:
    drop(page, images)
    errors = " ".join(page.locator(".card.error").all_inner_texts())
    assert page.locator(".card.error").count() == 2
    assert "truncated" in errors and "unsupported format" in errors
    assert "<b>notes.jpg" in errors, "a file name is text, never markup"
    assert "2 without answer" in page.inner_text("#summary")


def test_page_stands_in_for_formats_that_no_browser_shows(page: Any, images: list[Path]) -> None:
    drop(page, images[1:2])
    page.wait_for_selector(".thumb span")
    assert page.inner_text(".thumb") == "TIF"
    assert page.locator(".card.error").count() == 0


def test_page_refuses_a_large_file_without_sending_it(page: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.tif"
    large.write_bytes(bytes(2_000_001))
    drop(page, [large])
    assert "too large" in page.inner_text(".card.error")
    assert not any(address.endswith("/predict") for address in page.requested)


def test_page_takes_an_image_from_the_clipboard(page: Any, images: list[Path]) -> None:
    script = """async (bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "clip.jpg", { type: "image/jpeg" }));
        dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, list(images[0].read_bytes()))
    page.wait_for_selector(".card .meter", timeout=WAIT_MS)
    assert "clip.jpg" in page.inner_text(".card")


def test_page_says_of_a_foreign_image_that_its_answer_means_little(browser: Any, tmp_path: Path) -> None:
    def field(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        drawn = render_field(rng, draw_style(np.random.default_rng(0)), positive=seed % 2 == 0, width=160, height=120)
        return encoded(Image.fromarray(drawn), "PNG")

    bundle = make_familiar_bundle(tmp_path / "m", [field(seed) for seed in range(240)], threshold=0.3)
    own, strange = tmp_path / "own.png", tmp_path / "strange.png"
    own.write_bytes(field(1000))
    strange.write_bytes(encoded(Image.new("RGB", (160, 120), "black"), "PNG"))
    with live(read_settings({"model": bundle.uri})) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_selector("#model b")
        drop(page, [own, strange])
        flagged = page.locator(".card.unlike")
        assert flagged.count() == 1
        text = flagged.inner_text()
        assert "strange.png" in text and "Unlike the images this model learnt from" in text
        assert text.index("Unlike the images") < text.index("probability of leukemia"), "before the answer"
        assert "1 of these unlike the training images" in page.inner_text("#summary")
        page.close()


def test_page_says_what_it_is_not(page: Any) -> None:
    text = page.inner_text("main")
    assert "Research software, not a medical device." in text
    assert "synthetic images" in text


def test_page_loads_nothing_from_elsewhere_and_breaks_no_policy(page: Any, url: str, images: list[Path]) -> None:
    drop(page, images)
    assert all(address.startswith((url, "blob:", "data:")) for address in page.requested), page.requested
    statuses = [text for text in page.problems if "status of 4" in text]  # the browser logs every 4xx it meets
    assert [text for text in page.problems if text not in statuses] == []


def test_page_offers_to_save_and_clear_only_what_is_there(page: Any, images: list[Path]) -> None:
    buttons = page.locator("#actions")
    assert not buttons.is_visible()
    drop(page, images[:1])
    assert buttons.is_visible()
    page.get_by_role("button", name="Clear").click()
    assert not buttons.is_visible()


def test_page_can_be_worked_by_keyboard(page: Any) -> None:
    # The watch for a chooser starts first: switched on right before the key, it can come after the click it waits for.
    with page.expect_file_chooser():
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "files"
        page.keyboard.press("Space")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_never_scrolls_sideways(browser: Any, url: str, images: list[Path], width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(url)
    page.wait_for_selector("#model b")
    drop(page, images)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_results_are_saved_as_csv_that_spreadsheets_cannot_run(page: Any, images: list[Path], tmp_path: Path) -> None:
    formula = tmp_path / "=cmd.jpg"
    formula.write_bytes(images[0].read_bytes())
    drop(page, [formula, images[2]])
    with page.expect_download() as download:
        page.click("#save")
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith('"file","decision","probability"')
    assert lines[1].startswith('"\'=cmd.jpg","') and '"truncated"' in lines[2]


def test_documentation_is_readable_without_a_network(page: Any, url: str) -> None:
    page.goto(url + "/docs")
    text = page.inner_text("body")
    assert "/predict" in text and "503" in text and "not a medical device" in text
    assert all(address.startswith((url, "data:")) for address in page.requested)
