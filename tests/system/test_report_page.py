"""The evaluation report in a real browser: at three widths, in the dark, and sorted by a click."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.metrics import evaluate_binary, evaluate_multiclass
from pipeline.evaluation.report.curves import binary_curves, multiclass_curves
from pipeline.evaluation.report.html import render_report

QUICK = Resampling(100)


def report(classes: int, subjects: int) -> str:
    """Of six images a subject."""
    rng = np.random.default_rng(classes)
    of_subject = np.arange(subjects) % classes
    truth = np.repeat(of_subject, 6)
    names = [f"subject {number}" for number in np.repeat(np.arange(subjects), 6)]
    logits = rng.normal(size=(len(truth), classes)) + 2.0 * np.eye(classes)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    options: dict[str, Any] = {"subjects": names, "slices": {"subject": names}, "resampling": QUICK}
    if classes == 2:
        metrics = evaluate_binary(truth, scores[:, 1], threshold=0.5, **options)
        curves = binary_curves(truth, scores[:, 1], names, QUICK)
    else:
        kinds = [f"class of a long name {number}" for number in range(classes)]
        metrics = evaluate_multiclass(truth, scores, class_names=kinds, **options)
        curves = multiclass_curves(truth, scores, kinds, names, QUICK)
    return render_report(title="a model", metrics=metrics, curves=curves, provenance={"Model": "x"}, synthetic=True)


@pytest.mark.parametrize(("classes", "subjects"), [(2, 4), (2, 300), (4, 40), (21, 63)])
def test_nothing_is_wider_than_the_page(browser: Any, classes: int, subjects: int, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report(classes, subjects))
    for width in (360, 768, 1400):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


def test_a_click_on_a_column_sorts_its_rows_by_their_numbers(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report(2, 12))
    page = browser.new_page()
    page.goto(path.as_uri())
    section = page.locator("section", has=page.locator("h2", has_text="By subject"))
    column = [cell.inner_text() for cell in section.locator("th").all()].index("Accuracy")

    def accuracies() -> list[float]:
        cells = [row.locator("td").nth(column).inner_text() for row in section.locator("tbody tr").all()]
        return [float(text.lstrip("<> ")) for text in cells]

    before = accuracies()
    assert len(before) == 12 and before != sorted(before)
    section.get_by_role("button", name="Accuracy").click()
    assert accuracies() == sorted(before)
    assert section.locator("th[aria-sort=ascending]").count() == 1
    section.get_by_role("button", name="Accuracy").click()
    assert accuracies() == sorted(before, reverse=True)


def test_in_the_dark_the_page_is_dark_and_on_paper_it_is_white(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report(2, 12))
    page = browser.new_page(color_scheme="dark")
    page.goto(path.as_uri())
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)" != dark
