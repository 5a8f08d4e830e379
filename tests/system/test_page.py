"""The page in a real browser: what a person sees of images, good and bad, in which words, and with which keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from pipeline.samples import draw_style, render_field
from serving.pages import words_of
from serving.settings import read_settings
from tests.bundles import make_familiar_bundle, make_mapped_bundle
from tests.images import encoded
from tests.live import live
from tests.pages import WAIT_MS, answered, card, give, open_card, opened

EN, DE = words_of("en"), words_of("de")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = make_mapped_bundle(
        tmp_path_factory.mktemp("model"), task="multiclass", synthetic=True, review_band=(0.4, 0.6)
    )
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
    page = opened(browser, url)
    yield page
    page.close()


def test_one_image_is_told_with_decision_probability_classes_and_model(page: Any, images: list[Path]) -> None:
    give(page, images[:1])
    said = page.inner_text(".card")
    assert any(EN[f"decision.{decision}"] in said for decision in ("positive", "negative", "review"))
    assert "probability of leukemia" in said and "threshold 50\u00a0%, review 40\u00a0% to 60\u00a0%" in said
    assert "320 × 240" in said and "JPEG" in said and "tiny-linear" in said
    assert page.locator(".card .classes dt").all_inner_texts() == ["Benign", "Early", "Pre", "Pro"]
    drawn = page.evaluate(
        "['fill', 'mark', 'band'].map((name) => { const at = document.querySelector('.meter .' + name).style;"
        " return [at.left, at.width]; })"
    )
    probability = float(drawn[0][1].removesuffix("%"))
    assert f"{probability:.1f}\u00a0%" in said
    assert drawn[1][0] == "50%" and drawn[2] == ["40%", "20%"]


def test_each_bad_file_has_its_error_and_what_to_do(page: Any, images: list[Path]) -> None:
    give(page, images)
    assert page.locator(".card.error").count() == 2
    truncated, no_image = open_card(page, "cut.png"), open_card(page, "<b>notes.jpg")
    assert EN["error.truncated"] in truncated.inner_text() and "truncated" in truncated.inner_text()
    assert EN["error.unsupported_format"] in no_image.inner_text(), "a file name is text, never markup"
    assert page.locator("#filters [data-kind=error]").inner_text() == "✕ no answer 2"


def test_formats_that_no_browser_shows_get_the_picture_of_the_service(page: Any, images: list[Path]) -> None:
    give(page, images[1:2])
    shown = open_card(page, "smear.tif")
    expect(shown.locator(".thumb")).to_have_text("no preview of TIFF")
    shown.get_by_role("button", name="Heat map").click()
    shown.locator("img.map.alone").wait_for()
    expect(shown.locator(".thumb img")).to_have_count(1)


def test_a_large_file_is_refused_without_being_sent(page: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.tif"
    large.write_bytes(bytes(2_000_001))
    give(page, [large])
    assert "The file is too large: 1.9\u00a0MiB, the limit is 1.9\u00a0MiB." in page.inner_text(".card.error")
    assert not any(address.endswith("/predict") for address in page.requested)


def test_a_heat_map_is_asked_for_only_by_the_reader_and_laid_over_by_a_slider(page: Any, images: list[Path]) -> None:
    give(page, images[:1])
    assert not any(address.endswith("/explain") for address in page.requested)
    page.locator(".card").get_by_role("button", name="Heat map").click()
    drawn = page.locator(".card img.map")
    drawn.wait_for()
    assert drawn.get_attribute("alt").startswith("Heat map of blast.jpg: where it speaks for")
    slider = page.get_by_label("Strength of the heat map")
    slider.fill("20")
    assert drawn.evaluate("(node) => getComputedStyle(node).opacity") == "0.2"
    frames = page.evaluate(
        "['own', 'map'].map((name) => document.querySelector('img.' + name).getBoundingClientRect())"
    )
    assert [frames[0][side] for side in ("x", "y", "width", "height")] == [
        frames[1][side] for side in ("x", "y", "width", "height")
    ]


def test_no_share_of_cells_is_told_by_a_model_of_whatever_images(page: Any, images: list[Path]) -> None:
    give(page, images[:1])
    page.click("#save-fhir")
    said = page.locator("#subject-said")
    expect(said).to_contain_text(EN["subject.no_cells"])  # drawn after the last answer
    expect(said).not_to_contain_text("positive (")


def test_an_image_comes_from_the_clipboard(page: Any, images: list[Path]) -> None:
    script = """async (bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "clip.jpg", { type: "image/jpeg" }));
        dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, list(images[0].read_bytes()))
    page.wait_for_selector(".card .meter", timeout=WAIT_MS)
    assert "clip.jpg" in page.inner_text(".card")


def test_an_image_comes_from_a_camera_of_this_machine_only(browser: Any, page: Any, url: str) -> None:
    page.get_by_role("button", name="Take a picture").click()
    expect(page.locator("#take")).to_be_enabled(timeout=WAIT_MS)
    page.click("#take")
    page.click("#camera-close")
    expect(page.locator(".card")).to_have_count(1)  # a canvas is encoded aside
    answered(page)
    assert "PNG" in page.inner_text(".card") and page.evaluate("document.getElementById('video').srcObject") is None
    far = opened(browser, url.replace("127.0.0.1", "lab.example"))
    far.get_by_role("button", name="Take a picture").click()
    assert far.inner_text("#camera-said") == EN["camera.insecure"]
    assert far.locator("#take").is_disabled()
    far.close()


def test_a_folder_gives_its_images_with_their_paths(page: Any, images: list[Path], tmp_path: Path) -> None:
    inner = tmp_path / "slides" / "P-07"
    inner.mkdir(parents=True)
    (inner / "cell.jpg").write_bytes(images[0].read_bytes())
    (inner / "notes.txt").write_text("no image")
    (inner / ".hidden.jpg").write_bytes(b"")
    page.set_input_files("#folders", str(tmp_path / "slides"))
    expect(page.locator(".card")).to_have_count(1)
    assert "slides/P-07/cell.jpg" in page.inner_text(".card")
    assert page.inner_text("#said") == EN["left_out.one"].format(n=1)
    page.click("#clear")
    where = page.locator("#drop").bounding_box()
    dragging = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(tmp_path / "slides")], "dragOperationsMask": 1}
        place = {"x": where["x"] + 20, "y": where["y"] + 20}
        dragging.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    expect(page.locator(".card")).to_have_count(1)
    assert "slides/P-07/cell.jpg" in page.inner_text(".card")


def test_of_a_foreign_image_it_is_said_before_the_answer_that_it_means_little(browser: Any, tmp_path: Path) -> None:
    def field(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        drawn = render_field(rng, draw_style(np.random.default_rng(0)), positive=seed % 2 == 0, width=160, height=120)
        return encoded(Image.fromarray(drawn), "PNG")

    bundle = make_familiar_bundle(tmp_path / "m", [field(seed) for seed in range(80)], threshold=0.3)
    own, strange = tmp_path / "own.png", tmp_path / "strange.png"
    own.write_bytes(field(1000))
    strange.write_bytes(encoded(Image.new("RGB", (160, 120), "black"), "PNG"))
    with live(read_settings({"model": bundle.uri})) as address:
        page = opened(browser, address)
        give(page, [own, strange])
        flagged = page.locator(".card.unlike")
        assert flagged.count() == 1
        text = flagged.inner_text()
        assert "strange.png" in text
        assert text.index(EN["unlike"]) < text.index("probability of leukemia"), "before the answer"
        assert page.inner_text("#filters [data-kind=unlike]") == "⚠ unlike training 1"
        page.get_by_role("button", name="unlike training").click()
        assert page.locator(".card").count() == 1 and "1 of 2 shown" in page.inner_text("#summary")
        page.close()


def test_it_says_everywhere_what_it_is_not(page: Any, images: list[Path]) -> None:
    give(page, images[:1])
    assert EN["synthetic"] in page.inner_text("main")
    page.mouse.wheel(0, 3000)
    notice = page.get_by_text(EN["notice"]).first
    assert notice.is_visible() and notice.bounding_box()["y"] >= 0
    page.emulate_media(media="print")
    assert notice.is_visible()
    said = page.evaluate("getComputedStyle(document.querySelector('.card'), '::after').content")
    assert said == f'"{EN["notice"]}"', "with each result on paper"
    assert not page.locator(".actions").is_visible()


def test_nothing_is_loaded_from_elsewhere_and_no_policy_broken(page: Any, url: str, images: list[Path]) -> None:
    give(page, images)
    open_card(page, "blast.jpg").get_by_role("button", name="Heat map").click()
    page.locator("img.map").wait_for()
    assert all(address.startswith((url, "blob:", "data:")) for address in page.requested), page.requested
    statuses = [text for text in page.problems if "status of 4" in text]  # the browser logs every 4xx it meets
    assert [text for text in page.problems if text not in statuses] == []


def test_german_is_spoken_to_who_reads_it_and_can_be_switched(browser: Any, url: str, images: list[Path]) -> None:
    page = opened(browser, url, locale="de-AT")
    give(page, images)
    assert page.evaluate("document.documentElement.lang") == "de"
    assert DE["notice"] in page.inner_text("body") and "Wahrscheinlichkeit einer Leukämie" in page.inner_text(
        "#results"
    )
    assert DE["error.truncated"] in open_card(page, "cut.png").inner_text()
    probability = open_card(page, "blast.jpg").locator(".verdict span").inner_text()
    assert "," in probability and "." not in probability
    page.click("#language")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert EN["error.truncated"] in card(page, "cut.png").inner_text()
    page.reload()
    page.wait_for_selector("#model b")
    assert page.inner_text("h1 small") == EN["subtitle"], "the address keeps the choice"
    page.close()


def test_everything_can_be_done_by_keys(page: Any, images: list[Path]) -> None:
    with page.expect_file_chooser():  # the watch starts first: after the key it may come too late
        page.focus("#choose")
        page.keyboard.press("Enter")
    give(page, images)
    names = page.locator(".card .name").all_inner_texts()
    focused = "document.activeElement.querySelector('.name')?.textContent"
    visited = []
    page.evaluate("document.activeElement.blur()")
    for key in ("j", "j", "ArrowDown", "k"):
        page.keyboard.press(key)
        visited.append(page.evaluate(focused))
    assert visited == [names[0], names[1], names[2], names[1]]
    page.keyboard.press("Home")
    page.keyboard.press("m")
    page.locator(".card img.map").wait_for()
    page.keyboard.press("Escape")
    assert page.locator(".card .body:visible").count() == 0
    page.keyboard.press("/")
    page.keyboard.type("cut")
    assert page.locator(".card").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.get_by_label("Keys that are letters").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert not page.locator("#help").is_visible(), "letters can be switched off (WCAG 2.1.4)"


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_nothing_is_wider_than_the_page(browser: Any, url: str, images: list[Path], width: int) -> None:
    page = opened(browser, url, width=width, height=800)
    give(page, images)
    open_card(page, "blast.jpg")
    page.locator("#subject summary").click()
    page.locator("#card summary").click()
    page.locator("#card-body dl").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize(
    ("locale", "scheme", "width"),
    [("en-US", "light", 1280), ("de-DE", "dark", 1280), ("de-DE", "light", 360), ("en-US", "dark", 360)],
)
def test_axe_finds_nothing_that_keeps_people_out(
    browser: Any, url: str, images: list[Path], locale: str, scheme: str, width: int
) -> None:
    page = opened(browser, url, width=width, height=4000, locale=locale, color_scheme=scheme)
    found = [Axe().run(page)]
    give(page, images)
    opened_card = open_card(page, "blast.jpg")
    opened_card.locator(".row button").click()
    opened_card.locator("img.map").wait_for()
    for name in ("cut.png", "smear.tif"):
        open_card(page, name)
    page.locator("#card summary").click()
    page.locator("#card-body dl").wait_for()
    page.locator("#subject summary").click()
    page.locator("#subject-form button").click()
    page.locator("#subject-report button").wait_for()
    found.append(Axe().run(page))
    page.keyboard.press("Escape")
    page.locator("#help-open").click()
    found.append(Axe().run(page))
    assert [result.generate_report() for result in found if result.violations_count] == []
    page.close()


def test_documentation_is_readable_without_a_network(page: Any, url: str) -> None:
    page.goto(url + "/docs")
    text = page.inner_text("body")
    assert "/predict" in text and "503" in text and "not a medical device" in text
    assert all(address.startswith((url, "data:")) for address in page.requested)
