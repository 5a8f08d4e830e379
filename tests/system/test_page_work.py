"""The page at work on many images: few requests at a time, a service that is busy or gone, sums, and what is saved."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from pipeline.base.csv_text import unguarded
from serving.pages import words_of
from serving.settings import read_settings
from tests.bundles import make_mapped_bundle
from tests.clinical import by_code, checked, findings, parts
from tests.live import live
from tests.pages import WAIT_MS, answered, card, give, open_card, opened

EN = words_of("en")
KEY = "opensesame"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of single cells, blasts against others by name, that asks for a key."""
    folder = tmp_path_factory.mktemp("model")
    bundle = make_mapped_bundle(folder, classes=("Lymphocyte", "Blast"), unit="cell")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKORAY_API_KEYS", KEY)
        settings = read_settings({"model": bundle.uri, "max_files": 8})
    with live(settings) as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    page = opened(browser, url)
    page.fill("#key", KEY)
    yield page
    page.close()


def cells(folder: Path, names: list[str], *, red: bool) -> list[Path]:
    """Red ones are blasts to the model, blue ones are not; each has bytes of its own."""
    folder.mkdir(exist_ok=True)
    paths = []
    for place, name in enumerate(names):
        pixels = np.full((64, 64, 3), 128, np.uint8)
        pixels[8:32, 8:32] = (255, 30, place) if red else (place, 30, 255)
        paths.append(folder / name)
        Image.fromarray(pixels).save(paths[-1], "PNG")
    return paths


def test_a_key_is_asked_for_and_kept_in_the_tab_only(browser: Any, url: str, tmp_path: Path) -> None:
    page = opened(browser, url)
    assert page.get_by_label(EN["key"]).is_visible()
    (image,) = cells(tmp_path, ["a.png"], red=True)
    give(page, [image])
    assert EN["error.key_missing"] in page.inner_text(".card.error")
    page.fill("#key", "wrong")
    page.get_by_role("button", name="Try 1 again").click()
    expect(page.locator(".card.error")).to_contain_text(EN["error.key_refused"])
    page.fill("#key", "schlüssel")
    page.get_by_role("button", name="Try 1 again").click()
    expect(page.locator(".card.error")).to_contain_text(EN["error.key_not_ascii"])
    page.fill("#key", KEY)
    page.get_by_role("button", name="Try 1 again").click()
    expect(page.locator(".card.positive")).to_have_count(1)
    kept = "[document.cookie, localStorage.length, sessionStorage.length, location.href]"
    assert page.evaluate(kept) == ["", 0, 0, url + "/"]
    page.close()


def test_many_images_are_sent_a_few_at_a_time_and_let_go_of(browser: Any, url: str, tmp_path: Path) -> None:
    page = browser.new_page()
    page.add_init_script(
        "window.held = 0; const make = URL.createObjectURL, drop = URL.revokeObjectURL;"
        "URL.createObjectURL = (blob) => { held += 1; return make.call(URL, blob); };"
        "URL.revokeObjectURL = (url) => { held -= 1; return drop.call(URL, url); };"
    )
    page.goto(url)
    page.wait_for_selector("#model b")
    page.fill("#key", KEY)
    now = most = 0

    def begins(request: Any) -> None:
        nonlocal now, most
        now += request.method == "POST"
        most = max(most, now)

    def ends(request: Any) -> None:
        nonlocal now
        now -= request.method == "POST"

    page.on("request", begins)
    page.on("requestfinished", ends)
    give(page, cells(tmp_path, [f"{place}.png" for place in range(60)], red=False))
    assert 1 < most <= 4 and page.locator(".card.negative").count() == 60
    expect(page.locator(".thumb img")).to_have_count(60)
    opened_card = open_card(page, "59.png")
    opened_card.get_by_role("button", name=EN["map"]).click()
    opened_card.locator("img.map").wait_for()
    assert page.evaluate("held") == 62  # small copies, the opened image and its map
    opened_card.locator(".head").click()
    assert page.evaluate("held") == 60
    page.click("#clear")
    assert page.evaluate("held") == 0 and page.locator("#found").is_hidden()
    page.close()


@pytest.mark.parametrize("status", [408, 429, 503])
def test_a_busy_service_is_asked_again_when_it_said(page: Any, tmp_path: Path, status: int) -> None:
    asked: list[float] = []

    def busy(route: Any) -> None:
        asked.append(page.evaluate("performance.now()"))
        if len(asked) == 1:
            error = {"error": {"code": "overloaded", "message": "full", "request_id": "x"}}
            route.fulfill(status=status, headers={"Retry-After": "1"}, json=error)
        else:
            route.continue_()

    page.route("**/predict", busy)
    give(page, cells(tmp_path, ["a.png"], red=True))
    assert page.locator(".card.positive").count() == 1
    assert len(asked) == 2 and asked[1] - asked[0] >= 1000


def test_a_wait_too_long_to_sit_through_is_told(page: Any, tmp_path: Path) -> None:
    error = {"error": {"code": "quota_spent", "message": "", "request_id": "x"}}
    page.route("**/predict", lambda route: route.fulfill(status=429, headers={"Retry-After": "1800"}, json=error))
    give(page, cells(tmp_path, ["a.png"], red=True))
    said = page.inner_text(".card.error")
    assert EN["error.quota_spent"] in said and EN["error.wait"].format(minutes=30) in said


def test_no_image_is_lost_while_the_service_is_gone(page: Any, tmp_path: Path) -> None:
    page.route("**/predict", lambda route: route.abort("connectionrefused"))
    page.route("**/readyz", lambda route: route.abort("connectionrefused"))
    page.set_input_files("#files", cells(tmp_path, [f"{place}.png" for place in range(6)], red=True))
    expect(page.locator("#lost")).to_have_text(EN["lost"])
    assert page.locator(".card.error").count() == 0
    page.unroute("**/predict")
    page.unroute("**/readyz")
    answered(page)
    assert page.locator(".card.positive").count() == 6 and page.locator("#lost").is_hidden()


def test_cancelled_images_can_be_sent_after_all(page: Any, tmp_path: Path) -> None:
    page.route("**/predict", lambda route: None)  # never answered
    page.set_input_files("#files", cells(tmp_path, [f"{place}.png" for place in range(6)], red=True))
    expect(page.locator(".card.working")).to_have_count(4)
    page.click("#cancel")
    expect(page.locator(".card.error")).to_have_count(6)
    assert EN["error.cancelled"] in page.locator(".card").first.text_content()
    page.unroute("**/predict")
    page.get_by_role("button", name="Try 6 again").click()
    answered(page)
    assert page.locator(".card.positive").count() == 6


def test_a_file_that_is_gone_is_told_from_a_service_that_is_gone(page: Any, tmp_path: Path) -> None:
    (image,) = cells(tmp_path, ["a.png"], red=True)
    give(page, [image])
    image.unlink()
    page.locator(".card .row button").click()  # the heat map
    expect(page.locator(".card .picture")).to_contain_text(EN["error.not_readable"])


def test_results_are_sorted_filtered_and_found(page: Any, tmp_path: Path) -> None:
    give(page, [*cells(tmp_path / "a", ["b10.png", "b2.png"], red=True), *cells(tmp_path / "b", ["n1.png"], red=False)])
    names = page.locator(".card .name")
    page.select_option("#sort", "name")
    assert names.all_text_contents() == ["b2.png", "b10.png", "n1.png"]
    page.select_option("#sort", "low")
    assert names.all_text_contents()[0] == "n1.png"
    page.locator("#filters [data-kind=negative]").click()
    assert names.all_text_contents() == ["n1.png"]
    assert page.evaluate("document.activeElement.dataset.kind") == "negative", "the focus stays"
    page.locator("#filters [data-kind=all]").click()
    page.fill("#search", "B10")
    assert names.all_text_contents() == ["b10.png"] and "1 of 3 shown" in page.inner_text("#summary")
    page.fill("#search", "nowhere")
    assert page.get_by_text(EN["none_shown"]).is_visible()


def test_the_smallest_share_that_is_seen_is_the_one_of_the_services_report(page: Any, tmp_path: Path) -> None:
    blue = cells(tmp_path / "b", [f"{place}.png" for place in range(8)], red=False)
    give(page, blue)
    page.locator("#subject summary").click()
    said = page.locator("#subject-said")
    limit = f"{100 * (1 - 0.05 ** (1 / 8)):.1f}\u00a0%"
    expect(said).to_contain_text("8 of 8 counted; not counted: none.")
    expect(said).to_contain_text("0 of 8 leukocytes positive (0.0\u00a0%).")
    expect(said).to_contain_text(f"a share of {limit} were positive")
    page.fill("#subject-id", "P 7")
    page.click("#subject-form button")
    assert page.inner_text("#subject-report") == EN["subject.bad_id"]
    page.fill("#subject-id", "P-7")
    page.click("#subject-form button")
    report = page.locator("#subject-report")
    expect(report).to_contain_text(f"up to a share of {limit.replace(chr(160), ' ')}", timeout=WAIT_MS)
    with page.expect_download() as download:
        report.get_by_role("button").click()
    bundle = json.loads(Path(download.value.path()).read_text())
    texts = json.dumps(bundle)
    assert bundle["resourceType"] == "Bundle" and '"P-7"' in texts and "Research use only" in texts

    give(page, cells(tmp_path / "r", ["red.png"], red=True))
    expect(said).to_contain_text("1 of 9 leukocytes positive")
    expect(said).to_contain_text(f"only from about {100 * (1 - 0.05 ** (1 / 9)):.1f}\u00a0% on")
    assert page.locator("#subject-form button").is_disabled()
    expect(report).to_contain_text("a report of at most 8 images")
    page.fill("#search", "red")
    expect(said).to_contain_text("1 of 1 counted")


def test_a_report_is_saved_as_fhir_by_the_button_for_it(page: Any, tmp_path: Path) -> None:
    """As a FHIR server takes it, of the images shown and no other, under the id that stands there."""
    give(page, cells(tmp_path / "b", ["b1.png", "b2.png", "b3.png"], red=False))
    give(page, cells(tmp_path / "o", ["r.png", "other.png"], red=True))
    page.locator("#filters [data-kind=all]").click()
    page.click("#save-fhir")
    expect(page.locator("#subject-id")).to_be_focused()
    page.keyboard.type("S-16")
    page.keyboard.press("Enter")
    save = page.locator("#subject-report").get_by_role("button", name=EN["subject.save"])
    expect(save).to_have_count(1, timeout=WAIT_MS)
    page.locator("#subject-id").press_sequentially("7")
    expect(save).to_have_count(0)  # it was of another subject
    page.fill("#subject-id", "S-17")
    page.fill("#search", "b")
    page.locator("#subject-form button").click()
    with page.expect_download() as download:
        save.click(timeout=WAIT_MS)
    assert download.value.suggested_filename == "leukoray.fhir.json"
    saved = Path(download.value.path()).read_text()
    found = checked(json.loads(saved))
    [report] = found["DiagnosticReport"]
    assert {each["subject"]["identifier"]["value"] for each in (report, *found["Observation"])} == {"S-17"}
    assert (report["status"], len(findings(found))) == ("preliminary", 3)
    assert parts(by_code(found)["images-counted"])["leukocytes"] == 3
    assert not any(name in saved for name in ("b1.png", "S-16"))


def test_the_same_bytes_again_and_images_left_out_tell_of_no_smallest_share(page: Any, tmp_path: Path) -> None:
    blue = cells(tmp_path / "b", ["a.png", "b.png"], red=False)
    (tmp_path / "copy.png").write_bytes(blue[0].read_bytes())
    give(page, [*blue, tmp_path / "copy.png"])
    page.locator("#subject summary").click()
    said = page.locator("#subject-said")
    expect(said).to_contain_text(EN["subject.no_limit.again.one"].format(n=1))
    (tmp_path / "notes.png").write_text("no image")
    give(page, [tmp_path / "notes.png"])
    expect(said).to_contain_text("3 of 4 counted; not counted: 1 without an answer.")
    expect(said).to_contain_text(EN["subject.no_limit.left"])


def test_saved_tables_hold_nothing_that_a_spreadsheet_runs(page: Any, tmp_path: Path) -> None:
    names = ["=cmd.png", "-1", "+1_000", "-inf", "'@x.png", "'plain.png", 'say "a, b".png', "-", "+49 30.png"]
    (tmp_path / "cut.png").write_bytes(cells(tmp_path / "r", names, red=True)[0].read_bytes()[:100])
    give(page, [*(tmp_path / "r" / name for name in names), tmp_path / "cut.png"])
    with page.expect_download() as download:
        page.click("#save-csv")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert len(rows) == 10
    raw = [row["file"] for row in rows]
    assert raw[:5] == ["'=cmd.png", "-1", "+1_000", "-inf", "''@x.png"]
    assert [unguarded(name) for name in raw] == [*names, "cut.png"]
    assert rows[0]["decision"] == "positive" and float(rows[0]["probability"]) > 0.5
    assert rows[-1]["error_code"] == "truncated" and rows[-1]["probability"] == ""
    assert {row["notice"] for row in rows} == {EN["notice"]}
    page.fill("#search", "cut")
    with page.expect_download() as download:
        page.click("#save-json")
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["notice"] == EN["notice"]
    assert [(result["file"], result["error"]["code"]) for result in saved["results"]] == [("cut.png", "truncated")]


def test_the_model_card_is_told(page: Any) -> None:
    page.locator("#card summary").click()
    text = page.locator("#card-body")
    expect(text).to_contain_text("Lymphocyte, Blast")
    expect(text).to_contain_text("A linear model for tests. Not a medical device.")
    assert card(page, "x").count() == 0
