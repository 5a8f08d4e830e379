"""The report and the card as their readers get them: complete, self-contained, honest."""

import functools
import html
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.abstention import review_rule
from pipeline.evaluation.chance import METHODS
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.metrics import evaluate_binary, evaluate_multiclass
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.prevalence import predictive_values
from pipeline.evaluation.report import class_plots, plots, words
from pipeline.evaluation.report.card import render_card
from pipeline.evaluation.report.curves import binary_curves, multiclass_curves, net_benefit
from pipeline.evaluation.report.html import Kept, _grids, render_report
from pipeline.model.bundle import BundleInfo
from pipeline.model.chance import AgainstChance
from pipeline.model.overlay import WHAT_IT_IS

PROVENANCE = {"Model": "demo / v1", "Model SHA-256": "9f" * 32, "Split rule": "subject-disjoint, seed 0"}
HISTORY = [
    {"epoch": 1, "train_loss": 0.7, "val_loss": 0.6, "val_auc": 0.8, "learning_rate": 1e-3, "images_per_s": 200.0},
    {"epoch": 2, "train_loss": 0.5, "val_loss": 0.4, "val_auc": 0.9, "learning_rate": 1e-3, "images_per_s": 200.0},
    {"epoch": 3, "train_loss": 0.4, "val_loss": None, "val_auc": float("nan"), "learning_rate": 1e-3},
]
CLASSES = ["EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL"]


def binary(images: int = 300) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, images)
    probabilities = 1 / (1 + np.exp(-(3.0 * labels - 1.5 + rng.normal(0, 1, images))))
    return labels, probabilities, [f"s{k}" for k in rng.integers(0, 30, images)]


def binary_content(units: str = "subjects", **changes: Any) -> dict[str, Any]:
    labels, probabilities, subjects = binary()
    metrics = evaluate_binary(
        labels,
        probabilities,
        threshold=0.4,
        subjects=subjects,
        slices={"subject": subjects},
        units=units,
        review_band=(0.3, 0.6),
        resampling=Resampling(50),
    )
    thumbnail = np.full((48, 64, 3), 200, np.uint8)
    content = {
        "title": "demo, test split",
        "metrics": metrics,
        "curves": binary_curves(labels, probabilities),
        "history": HISTORY,
        "mistakes": [
            Mistake(
                thumbnail, "truly positive, p = 0.031", "image truly positive", thumbnail, "map of it: what speaks"
            ),
            Mistake(thumbnail, "<b>odd & name</b>.jpg", "image <b>", thumbnail, "map of it: <b>"),
        ],
        "provenance": PROVENANCE,
        "synthetic": True,
        "warnings": ["The background tells the class."],
    }
    return {**content, **changes}


@functools.cache
def binary_report() -> str:
    return render_report(**binary_content())


def multiclass_content() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    logits = rng.normal(size=(200, 4)) + 2 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return {
        "title": "cell types",
        "metrics": evaluate_multiclass(labels, probabilities, class_names=CLASSES, resampling=Resampling(50)),
        "curves": multiclass_curves(labels, probabilities, CLASSES),
        "provenance": PROVENANCE,
        "synthetic": False,
    }


def info(**changes: Any) -> BundleInfo:
    values = {
        "name": "demo",
        "version": "v1",
        "architecture": "cnn",
        "task": "binary",
        "classes": ("negative", "positive"),
        "positive_classes": ("positive",),
        "input_size": 64,
        "preprocessing_digest": "ab" * 32,
        "weights_sha256": "cd" * 32,
        "graph_sha256": "ef" * 32,
        "versions": {"torch": "2.x"},
        "split_rule": "subject-disjoint, seed 0",
    }
    return BundleInfo(**{**values, **changes})


class Outline(HTMLParser):
    """Tags, ids, and everything that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["style"], ["script"]):
            self.text += data


@pytest.mark.parametrize("content", [binary_content(), multiclass_content()], ids=["binary", "multiclass"])
def test_report_fetches_nothing(content: dict[str, Any]) -> None:
    text = render_report(**content)
    outline = Outline(text)
    assert all(link.startswith(("data:image/", "#")) for link in outline.links)
    assert not {"link", "iframe"} & set(outline.tags)
    assert outline.tags.count("script") == 1  # sorts tables: it has no address, and asks none
    assert not re.search(r"fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org)", text)
    assert not re.search(r"url\((?!#)|@import", text)


def test_figures_of_one_page_do_not_share_ids() -> None:
    outline = Outline(binary_report())
    assert outline.tags.count("figure") == 9  # seven plots and two mistakes
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)


def test_report_says_what_it_is_and_what_it_is_made_of() -> None:
    text = Outline(binary_report()).text
    for sentence in (words.NOT_A_DEVICE, words.SYNTHETIC, "The background tells the class.", "9f" * 32):
        assert sentence in text
    assert "synthetic" not in Outline(render_report(**binary_content(synthetic=False, title="demo"))).text.lower()


def test_report_names_the_epoch_that_the_model_has() -> None:
    assert "weights of epoch" not in binary_report()
    assert (
        "The weights of epoch 1, the best by ROC-AUC on validation"
        in Outline(render_report(**binary_content(kept=Kept(1)))).text
    )


def test_report_counts_blocks_as_blocks_and_claims_only_what_is_known() -> None:
    claim = Outline(render_report(**binary_content("blocks", basis="; nothing is known"))).text
    assert "of 30 blocks; nothing is known" in claim
    assert "Intervals: 95 %, Bayesian bootstrap over blocks, one adverse block added" in " ".join(claim.split())
    assert "took no part in training" not in claim


def test_blocks_are_not_called_subjects_anywhere() -> None:
    text = Outline(render_report(**binary_content(units="blocks"))).text
    assert "By block" in text and "By subject" not in text and "of other blocks like these" in text
    assert "subject" not in text.replace(PROVENANCE["Split rule"], "").lower()


@pytest.mark.parametrize(
    ("kept", "expected", "label"),
    [
        (Kept(1), "The weights of epoch 1, the best by ROC-AUC on validation, were kept.", "ROC-AUC"),
        (
            Kept(2, "val_balanced_accuracy"),
            "The weights of epoch 2, the best by Balanced accuracy on validation, were kept.",
            "Balanced accuracy",
        ),
        (Kept(2, is_last=True), "The weights of epoch 2, the last, were kept.", "ROC-AUC"),
    ],
)
def test_the_metric_that_chose_the_epoch_is_the_one_drawn(kept: Kept, expected: str, label: str) -> None:
    history = [row | {"val_balanced_accuracy": 0.6 + 0.1 * k} for k, row in enumerate(HISTORY)]
    page = render_report(**binary_content(history=history, kept=kept))
    assert expected in Outline(page).text
    learning = page[page.index('<svg class="plot learning"') :].partition("</svg>")[0]
    assert f"{label} on validation" in learning and f">{label}<" in learning


def test_no_line_runs_through_probabilities_that_no_image_has() -> None:
    scores = np.r_[np.linspace(0.01, 0.1, 50), np.linspace(0.9, 0.99, 50)]
    curves = binary_curves((scores > 0.5).astype(int), scores)
    for point in curves["reliability"]:
        assert point["lowest"] <= point["probability"] <= point["highest"] and point["highest"] - point["lowest"] < 0.1
    svg = plots.reliability(curves["reliability"], "Share")
    lines = [path for path in re.findall(r'<path d="([^"]+)"', svg) if "C" not in path and "z" not in path]
    assert len(curves["reliability"]) > 2 and lines and max(path.count("L") for path in lines) == 1


def test_a_page_of_many_classes_shows_each_and_names_them_once() -> None:
    """17 curves in one picture, with their names over them, tell nobody anything."""
    names = tuple(f"Kind_{chr(97 + k)}" for k in range(17))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 17, 400)
    logits = rng.normal(size=(400, 17)) + 2 * np.eye(17)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    content = multiclass_content() | {
        "metrics": evaluate_multiclass(labels, probabilities, class_names=names, resampling=Resampling(50)),
        "curves": multiclass_curves(labels, probabilities, names),
    }
    page = render_report(**content)
    rocs = page[page.index('<svg class="plot roc-many"') :].partition("</svg>")[0]
    assert all(rocs.count(f">Kind {name[-1]}<") == 1 for name in names) and "each class against the rest" not in rocs
    confusion = page[page.index('<svg class="plot confusion"') :].partition("</svg>")[0]
    matrix = np.array(content["metrics"]["confusion"])
    assert re.findall(r">(\d+)</text>", confusion) == [str(count) for count in matrix.ravel() if count]
    assert "%<" not in confusion and "darker the larger their share of the row" in page
    text = Outline(page).text
    assert ", 17 classes, which are counted below." in text and "24 Kind_a" not in text
    assert "truly diseased" not in text and "Of the images of a class, the share that is called by its name" in text


def test_no_level_and_no_circles_are_rounded_to_all_or_none() -> None:
    labels = np.r_[np.ones(500, np.int64), np.zeros(500, np.int64)]
    scores = np.where(labels == 1, 0.9, 0.1)
    scores[0], scores[500] = 0.2, 0.8
    metrics = evaluate_binary(labels, scores, threshold=0.5, resampling=Resampling(800, 0.995))
    said = " ".join(words.headline(metrics))
    assert said.count("(99.5 % CI ") == 2 and "100 % CI" not in said
    found, alarmed = _grids(metrics)
    assert (found["filled"], alarmed["filled"]) == (99, 1) and found["text"].startswith("99.8 of 100")
    content = binary_content()
    content["metrics"]["intervals"]["confidence"] = 0.995
    page = Outline(render_report(**content)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Intervals: 99.5 %" in page and "100 %" not in page.partition("Intervals: ")[2][:40]
    card = render_card(info(), metrics=metrics | {"warnings": []})
    assert "Intervals: 99.5 %" in card and "99.5 % CI" in card and "100 %" not in card


def test_headline_says_when_nothing_is_shown_to_be_better_than_chance() -> None:
    content = multiclass_content()
    judged = AgainstChance(
        metric="balanced_accuracy", value=0.3, chance=0.25, low=0.2, high=0.4, confidence=0.95, unit="image", units=200
    )
    method = METHODS["balanced_accuracy"].format(called="images")
    content["metrics"]["against_chance"] = judged.model_dump() | {"method": method}
    content["metrics"]["metrics"]["balanced_accuracy"] = {"value": 0.3, "low": 0.22, "high": 0.38}
    sentence = "Not shown to be better than chance on these images: Balanced accuracy 0.300 (0.220 – 0.380), guessing"
    assert sentence in Outline(render_report(**content)).text
    shown = judged.model_copy(update={"low": 0.26}).model_dump() | {"method": method}
    assert words.headline(content["metrics"] | {"against_chance": shown})[-1] == (
        f"Better than chance on these images (0.260 – 0.400 by {method}), though the interval of the tables, wider by "
        "one adverse image, holds guessing too: Balanced accuracy 0.300 (0.220 – 0.380), guessing gives 0.25."
    )
    narrow = content["metrics"]["metrics"] | {"balanced_accuracy": {"value": 0.3, "low": 0.27, "high": 0.33}}
    assert words.headline(content["metrics"] | {"metrics": narrow})[-1].endswith(f" (0.200 – 0.400 by {method}).")
    both = content["metrics"] | {"metrics": narrow, "against_chance": shown}
    assert "better than chance" not in " ".join(words.headline(both)).lower()
    assert ", of" not in words.headline(both)[-1]
    other = content["metrics"] | {"intervals": content["metrics"]["intervals"] | {"confidence": 0.99}}
    assert f"(0.260 – 0.400, of 95 %, by {method})" in words.headline(other | {"against_chance": shown})[-1]
    untold = judged.model_copy(update={"low": None, "high": None, "untold": "too few"}).model_dump() | {"method": ""}
    assert words.headline(content["metrics"] | {"against_chance": untold})[-1].endswith("gives 0.25 (too few).")


def test_report_gives_predictive_values_where_disease_is_rarer() -> None:
    content = binary_content()
    sides = content["metrics"]["metrics"]
    rows = predictive_values(sides["sensitivity"], sides["specificity"], [0.005, 0.5])
    content["metrics"]["predictive_values"] = rows
    text = " ".join(Outline(render_report(**content)).text.split())
    assert "What an answer means elsewhere" in text and "0.5 of 100" in text
    for metric in (rows[0]["ppv"], rows[1]["npv"]):
        assert words.number(metric["value"]) + words.interval(metric) in text


def test_report_tells_what_colour_reaches_or_why_that_is_not_known() -> None:
    found = {"value": 0.91, "low": 0.85, "high": 0.96}
    shortcut = {
        "why_not": None, "train_images": 1000, "train_images_of": 1578, "chance": 0.5, "few": ["rare"],
        "border": found, "whole": found | {"value": 0.95}, "model": found | {"value": 0.88},
    }  # fmt: skip
    text = " ".join(Outline(render_report(**binary_content(records={"shortcut": shortcut}))).text.split())
    assert "It learnt from 1,000 of the 1,578 training images" in text and "0.9100.850 – 0.960" in text
    assert "Of rare fewer than 10 images were learnt from: colours may tell more than this." in text
    unchecked = Outline(
        render_report(**binary_content(records={"shortcut": {"why_not": "there is no train split"}}))
    ).text
    assert "Not checked: there is no train split." in unchecked


def test_each_table_with_intervals_names_their_method() -> None:
    """And the explanation holds for what the intervals are over."""
    found = {"value": 0.91, "low": 0.85, "high": 0.96}
    shortcut = {
        "why_not": None, "train_images": 1000, "train_images_of": 1578, "chance": 0.5, "border": found, "few": [],
        "whole": found, "model": found,
    }  # fmt: skip
    content = binary_content(records={"shortcut": shortcut})
    sides = content["metrics"]["metrics"]
    content["metrics"]["predictive_values"] = predictive_values(sides["sensitivity"], sides["specificity"], [0.1])
    ours = "Bayesian bootstrap over subjects, one adverse subject added"
    page = " ".join(Outline(render_report(**content)).text.replace("\N{NO-BREAK SPACE}", " ").split())
    sections = ("All metrics", "Class by class", "What colour alone tells", "By subject", "What an answer means")
    at = {name: page.index(name) for name in sections}
    for name in ("All metrics", "Class by class", "What colour alone tells"):
        assert ours in page[at[name] : at[name] + 600], name
    assert "Clopper and Pearson, over the images of each group" in page[at["By subject"] :]
    assert "those of sensitivity and specificity above" in page[at["What an answer means"] :]
    assert f"upright, the 95 % interval, {ours}." in page
    assert "Of 100 test sets of other subjects like these" in page and "Wilson" not in page and "Newcombe" not in page
    assert "sets of other images like these" in Outline(render_report(**multiclass_content())).text


def test_headline_tells_what_goes_to_a_person() -> None:
    metrics = binary_content()["metrics"]
    share = 100 * metrics["review"]["images"] / metrics["images"]
    *_, reviewed, passed = words.headline(metrics)
    assert f"Of 100 images, {share:.0f} fall into the review band and go to a person." == reviewed
    missed, alarmed = (words.per_hundred(metrics["review"][key]["value"]) for key in ("missed", "alarmed"))
    assert passed.startswith(f"Without a person, of 100 diseased images {missed} are called healthy (95 % CI ")
    assert f"of 100 healthy images {alarmed} are called diseased" in passed


def test_report_shows_work_against_error_and_what_was_promised() -> None:
    labels, probabilities, subjects = binary()
    rule = review_rule(labels, probabilities, subjects, 0.05)
    metrics = evaluate_binary(
        labels, probabilities, threshold=0.4, subjects=subjects, review_band=rule.band(0.4), review=rule,
        resampling=Resampling(50),
    )  # fmt: skip
    curves = binary_curves(labels, probabilities, subjects, threshold=0.4)
    page = Outline(render_report(**binary_content(metrics=metrics, curves=curves))).text
    assert "Work against error" in page and "Left to a person" in page
    assert f"Promised: {rule}." in page and "≤ 0.05" in page
    assert "Promised on average over new subjects of the laboratory that the model comes from: at most 5 of" in page


def test_report_escapes_names_from_outside() -> None:
    text = binary_report()
    assert "<b>odd" not in text and "&lt;b&gt;odd &amp; name" in text


def test_same_result_gives_the_same_report() -> None:
    assert binary_report() == render_report(**binary_content())


def test_one_class_reports_what_can_be_said_and_no_more() -> None:
    labels, probabilities = [1] * 48, np.linspace(0.1, 0.9, 48)
    metrics = evaluate_binary(labels, probabilities, threshold=0.5, resampling=Resampling(50))
    content = binary_content(metrics=metrics, curves=binary_curves(labels, probabilities), history=[])
    text = Outline(render_report(**content)).text
    assert "Of 100 diseased cell images, 50 are found" in text
    assert "no healthy image, so nothing can be said about false alarms" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_multiclass_report_may_carry_the_disease_view() -> None:
    content = multiclass_content()
    labels, probabilities, subjects = binary()
    content["metrics"]["disease"] = evaluate_binary(
        labels, probabilities, threshold=0.5, subjects=subjects, resampling=Resampling(50)
    )
    content["curves"]["disease"] = binary_curves(labels, probabilities)
    text = Outline(render_report(**content)).text
    assert "the right one of 4 classes" in text and "diseased cell images" in text and "ROC of disease" in text


def test_long_slice_tables_show_the_hardest_groups() -> None:
    rows = binary_content()["metrics"]["slices"]["subject"]
    hardest = min(rows, key=lambda row: row["accuracy"]["value"])["value"]
    text = Outline(binary_report()).text
    assert f"the 15 with the lowest of {len(rows)}" in text and hardest in text


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "expected"),
    [
        ((0.94, 0.90, 0.97), (0.93, 0.90, 0.96), ["94 are found (95 % CI 90–97)", "7 raise a false alarm"]),
        ((1.0, 0.93, 1.0), (1.0, 0.91, 1.0), ["100 are found (95 % CI 93–100)", "none raises a false alarm (95 %"]),
        (
            (0.998, 0.99, 1.0),
            (0.99, None, None),
            ["99.8 are found", "1 raises a false alarm (no interval: too few subjects)."],
        ),
    ],
)
def test_headline_speaks_in_natural_frequencies(sensitivity: Any, specificity: Any, expected: list[str]) -> None:
    keys = ("value", "low", "high")
    metrics = {
        "task": "binary",
        "class_names": ["negative", "positive"],
        "intervals": {"confidence": 0.95, "unit": "subject", "called": "subjects"},
        "metrics": {
            "sensitivity": dict(zip(keys, sensitivity, strict=True)),
            "specificity": dict(zip(keys, specificity, strict=True)),
        },
    }
    for part, sentence in zip(expected, words.headline(metrics), strict=True):
        assert part in sentence.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(("share", "text"), [(0.00015, "< 0.1"), (0.9997, "> 99.9"), (0.997, "99.7"), (1.0, "100")])
def test_shares_are_never_rounded_to_none_or_all(share: float, text: str) -> None:
    assert words.per_hundred(share) == text


def test_numbers_are_never_rounded_to_certainty() -> None:
    assert words.number(0.99996) == "> 0.999" and words.number(1.0) == "1.000"
    assert words.number(0.00001) == "< 0.001" and words.number(None) == words.DASH


def test_card_has_the_sections_of_the_paper_and_its_metrics() -> None:
    metrics = binary_content()["metrics"]
    text = render_card(info(synthetic=True), metrics=metrics, data={"Source": "a|b"})
    for heading in ("Model details", "Intended use", "Factors", "Training data", "Metrics", "Limits", "Ethical"):
        assert f"## {heading}" in text
    assert words.NOT_A_DEVICE in text and words.SYNTHETIC in text and "a\\|b" in text
    assert f"| ROC-AUC | {metrics['metrics']['roc_auc']['value']:.3f} |" in text
    assert info(synthetic=True).identity() in text


def test_a_class_name_brings_no_html_into_the_card_and_stays_as_it_is_in_its_head() -> None:
    name = "<img src=x onerror=alert(1)>"
    odd = info(classes=("negative", name), positive_classes=(name,))
    head, _, text = render_card(odd, data={"Source": "</td><b>"}).partition("# Model card")
    assert "&lt;img src=x onerror=alert(1)>" in text and "&lt;/td>&lt;b>" in text
    assert "<img" not in text and "<b>" not in text and "&lt;" not in head


@pytest.mark.parametrize(("text", "told"), [("< 0.001", "< 0.001"), ("a <5", "a <5"), ("<!-- x", "&lt;!-- x")])
def test_only_what_opens_a_tag_is_changed_for_markdown(text: str, told: str) -> None:
    assert words.unmarked(text) == told


def test_card_tables_are_not_broken_by_blank_lines() -> None:
    lines = render_card(info(), metrics=binary_content()["metrics"], data={"Source": "x"}).splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("|---")]
    assert len(rules) >= 2
    for number in rules:
        assert lines[number - 1].startswith("|") and lines[number + 1].startswith("|")


def test_card_says_at_its_top_that_a_model_was_not_shown_to_be_better_than_chance() -> None:
    judged = AgainstChance(
        metric="roc_auc", value=0.6, chance=0.5, low=0.4, high=0.8, confidence=0.95, unit="subject", units=9
    )
    top, _, details = render_card(info(against_chance=judged)).partition("## Model details")
    assert "**Not shown to be better than chance (0.5): validation roc_auc 0.600, 95 % interval 0.400 to 0.800" in top
    assert "| Against chance | not shown" in details
    shown = render_card(info(against_chance=judged.model_copy(update={"low": 0.55})))
    assert "| Against chance | better than chance (0.5)" in shown and "not shown" not in shown.lower()


@pytest.mark.parametrize(
    ("units", "told"), [(20, "; threshold 0.350 to 0.850 over 20 blocks (95 %, percentile bootstrap)"), (19, "")]
)
def test_card_tells_limits_of_the_threshold_from_as_many_subjects_as_tell_them(units: int, told: str) -> None:
    calibration = {
        "images": 332, "units": units, "unit": "subject", "called": "blocks", "confidence": 0.95,
        "temperature": {"value": 1.05, "low": 0.7, "high": 1.4},
        "threshold": {"value": 0.6, "low": 0.35, "high": 0.85},
    }  # fmt: skip
    line = next(line for line in render_card(info(calibration=calibration)).splitlines() if "Calibrated on" in line)
    assert line == f"| Calibrated on | validation images (332){told} |"


def test_card_before_evaluation_says_so() -> None:
    assert "Not evaluated on a test split yet" in render_card(info())


def test_net_benefit_weighs_false_alarms_by_the_threshold() -> None:
    truth = np.array([1, 1, 0, 0, 0])
    curve = net_benefit(truth == 1, np.array([0.9, 0.4, 0.6, 0.1, 0.1]))
    assert curve is not None
    at = dict(zip((round(value, 2) for value in curve["threshold"]), curve["model"], strict=True))
    assert at[0.5] == pytest.approx(1 / 5 - 1 / 5 * 1.0)
    assert at[0.2] == pytest.approx(2 / 5 - 1 / 5 * 0.25)
    assert at[0.95] == 0.0
    alls = dict(zip((round(value, 2) for value in curve["threshold"]), curve["all"], strict=True))
    assert alls[0.4] == pytest.approx(0.0)  # as common as the disease
    assert net_benefit(truth > 1, np.zeros(5)) is None


def test_pictures_and_columns_are_named_for_those_who_do_not_see_them() -> None:
    text = binary_report()
    assert text.count('role="img" aria-label="Decision curve. What acting') == 1
    assert text.count("<h3>") == text.count('<div role="img" aria-label=') + text.count("<h3 style")


def test_a_mistake_stands_beside_its_map_and_both_are_told_to_who_does_not_see() -> None:
    text = binary_report()
    assert 'alt="image truly positive"' in text and 'alt="map of it: what speaks"' in text
    assert "map of it: &lt;b&gt;" in text and WHAT_IT_IS.replace("'", "&#39;") in text
    assert "of the class positive, also where the model does not call it so" in " ".join(text.split())


def test_a_gallery_without_maps_says_why() -> None:
    plain = [Mistake(np.full((8, 8, 3), 9, np.uint8), "a caption", "image")]
    text = render_report(**binary_content(mistakes=plain, no_map="no map is known of its network (x)"))
    assert "Without maps: no map is known of its network (x)." in text and "class-activation" not in text


def test_a_number_is_never_rounded_to_nothing_or_to_all() -> None:
    assert [words.number(value) for value in (0.0, 0.0004, -0.0004, -0.02, 0.9996, 1.0, None)] == [
        "0.000", "< 0.001", "> -0.001", "-0.020", "> 0.999", "1.000", "–",
    ]  # fmt: skip


def test_names_are_no_formulas_and_none_is_left_out_of_a_picture() -> None:
    names = ["$x_$", "_hidden", r"a$\frac{1}$b"]
    curve = {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0], "auc": 0.5}
    rows = [{"name": name, "value": 0.5, "low": 0.1, "high": 0.9, "true": 0.5, "called": 0.5} for name in names]
    drawn = [
        class_plots.roc_by_class(dict.fromkeys(names, curve)),
        class_plots.roc_by_class({f"{names[0]}{k}": curve for k in range(class_plots.MANY + 1)}),
        class_plots.confusion([[1, 0, 0]] * 3, names),
        plots.forest(rows, "Share $ a $", is_corrected=True),
    ]
    for svg in drawn:
        assert svg.count("$") >= 2
    assert all(f"{name}  0.500" in html.unescape(drawn[0]) for name in names)
