"""Metrics against scikit-learn, known numbers and their own definitions."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from pipeline.evaluation.definitions import binary_metrics, multiclass_metrics, weighted_binary, weighted_multiclass
from pipeline.evaluation.intervals import Resampling, exact_interval, subject_codes, wilson_interval
from pipeline.evaluation.metrics import (
    evaluate_binary,
    evaluate_multiclass,
)
from pipeline.evaluation.slices import MOST_VALUES, worth_a_table
from tests.searches import search


def cells(images: int = 600, subjects: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, probabilities with ties, and subjects whose images share an offset."""
    rng = np.random.default_rng(seed)
    subject = rng.integers(0, subjects, images)
    labels = rng.integers(0, 2, images)
    scores = 2.0 * labels - 1 + rng.normal(0, 1, subjects)[subject] + rng.normal(0, 1, images)
    return labels, np.round(1 / (1 + np.exp(-scores)), 2), [f"s{k}" for k in subject]


def reference(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """The metrics by scikit-learn, which knows no weights of 0 and warns where we say NaN."""
    called, sick = probabilities >= threshold, labels == 1
    found = {
        "accuracy": sk.accuracy_score(labels, called),
        "precision": sk.precision_score(labels, called, zero_division=np.nan),
        "sensitivity": sk.recall_score(labels, called, zero_division=np.nan),
        "specificity": sk.recall_score(labels, called, pos_label=0, zero_division=np.nan),
        "f1": sk.f1_score(labels, called, zero_division=np.nan) if sick.any() else math.nan,
        "roc_auc": sk.roc_auc_score(labels, probabilities) if 0 < sick.sum() < len(sick) else math.nan,
        "pr_auc": sk.average_precision_score(labels, probabilities) if 0 < sick.sum() < len(sick) else math.nan,
        "brier": sk.brier_score_loss(labels, probabilities, pos_label=1),
    }
    return {**found, "balanced_accuracy": (found["sensitivity"] + found["specificity"]) / 2}


def test_point_metrics_are_those_of_scikit_learn() -> None:
    labels, probabilities, _ = cells()
    points = binary_metrics(labels, probabilities, 0.4)
    assert {**points, **reference(labels, probabilities, 0.4)} == pytest.approx(points)


def test_point_metrics_of_many_classes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 3, 300), rng.dirichlet(np.ones(3), 300)
    points, called = multiclass_metrics(labels, probabilities), probabilities.argmax(axis=1)
    assert points["accuracy"] == pytest.approx(sk.accuracy_score(labels, called))
    assert points["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, called))
    assert points["f1_macro"] == pytest.approx(sk.f1_score(labels, called, average="macro"))
    assert points["roc_auc_macro"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_metrics_of_a_resampled_set_are_those_of_the_set_with_its_images_repeated() -> None:
    labels, probabilities, subjects = cells(200, 12)
    codes, _ = subject_codes(subjects, 200)
    weights = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=5)[:, codes].astype(float)
    fast = weighted_binary(labels, probabilities, 0.5)(weights)
    for row, weight in enumerate(weights.astype(int)):
        for name, value in reference(np.repeat(labels, weight), np.repeat(probabilities, weight), 0.5).items():
            assert fast[name][row] == pytest.approx(value), name


@search(60)
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.5001, 1.0])), min_size=1, max_size=40))
def test_metrics_are_those_of_scikit_learn_on_any_data(rows: list[tuple[int, float]]) -> None:
    labels, probabilities = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    points = binary_metrics(labels, probabilities, 0.5)
    for name, value in reference(labels, probabilities, 0.5).items():
        assert points[name] == pytest.approx(value, nan_ok=True), name


def test_one_class_leaves_undefined_metrics_undefined() -> None:
    points = binary_metrics([1, 1, 1], [0.2, 0.7, 0.9], 0.5)
    assert math.isnan(points["specificity"]) and math.isnan(points["roc_auc"])
    assert points["sensitivity"] == pytest.approx(2 / 3)
    report = evaluate_binary([1, 1, 1], [0.2, 0.7, 0.9], threshold=0.5, resampling=Resampling(50))
    assert report["metrics"]["roc_auc"] == {"value": None, "low": None, "high": None, "unit": "image"}
    assert any("No image of class negative" in warning for warning in report["warnings"])


def test_precision_is_undefined_when_nothing_is_called() -> None:
    points = binary_metrics([0, 1], [0.1, 0.2], 0.9)
    assert math.isnan(points["precision"]) and points["f1"] == 0.0


def test_images_without_a_subject_among_known_subjects_stand_for_themselves() -> None:
    codes, unit = subject_codes(["a", None, "a", None], 4)
    assert unit == "subject" and codes.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(("name", "side"), [("sensitivity", 1), ("specificity", 0), ("roc_auc", 0), ("f1", 1)])
def test_a_side_with_one_subject_gives_no_interval(name: str, side: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    subjects = [f"s{k % 6}" if label != side else "only" for k, label in enumerate(labels)]
    scores = rng.normal(labels * 1.0, 1)
    report = evaluate_binary(
        labels, 1 / (1 + np.exp(-scores)), threshold=0.6, subjects=subjects, resampling=Resampling(100)
    )
    assert report["metrics"][name]["value"] is not None and report["metrics"][name]["low"] is None
    assert report["metrics"]["accuracy"]["low"] is not None
    assert any("come from one of the subjects" in warning for warning in report["warnings"])


def test_wilson_interval_of_known_counts() -> None:
    interval = wilson_interval(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson_interval(0, 20).low == 0.0 and math.isnan(wilson_interval(0, 0).value)


def test_exact_interval_of_known_counts() -> None:
    interval = exact_interval(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2527, 0.3676), abs=1e-4)  # Newcombe 1998, table I
    assert exact_interval(3, 3).low == pytest.approx(0.025 ** (1 / 3)) and exact_interval(3, 3).high == 1.0
    assert math.isnan(exact_interval(0, 0).value)


def test_calibration_error_is_near_zero_for_honest_probabilities_and_large_for_overconfident_ones() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(20_000)
    labels = rng.random(20_000) < probabilities
    assert binary_metrics(labels, probabilities, 0.5)["ece"] < 0.02
    assert binary_metrics(labels, (probabilities > 0.5) * 0.98 + 0.01, 0.5)["ece"] > 0.2


def test_binary_evaluation_counts_everything_once() -> None:
    labels, probabilities, subjects = cells()
    result = evaluate_binary(
        labels,
        probabilities,
        threshold=0.5,
        subjects=subjects,
        slices={"subject": subjects},
        review_band=(0.4, 0.6),
        resampling=Resampling(50),
    )
    assert np.sum(result["confusion"]) == result["images"] == 600
    assert result["subjects"] == 30 == len(result["slices"]["subject"])
    assert sum(row["images"] for row in result["slices"]["subject"]) == 600
    assert sum(row["support"] for row in result["per_class"]) == 600
    assert result["review"]["images"] == ((probabilities >= 0.4) & (probabilities < 0.6)).sum()
    assert result["metrics"]["roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(labels, probabilities))


def test_a_group_of_many_classes_has_its_accuracy_over_subjects() -> None:
    labels, probabilities, subjects = cells()
    three = np.column_stack([probabilities, (1 - probabilities) / 2, (1 - probabilities) / 2])
    options = {"class_names": ["a", "b", "c"], "subjects": subjects, "resampling": Resampling(50)}
    result = evaluate_multiclass(1 - labels, three, slices={"all": ["x"] * len(labels)}, **options)
    [row] = result["slices"]["all"]
    assert row["accuracy"] == result["metrics"]["accuracy"] and "intervals" not in row


def test_columns_of_few_values_are_worth_a_table() -> None:
    columns = {
        "sex": ["m", "f", None], "fresh": [True, False, True], "age": [1, 2, 3], "one": ["x", "x", "x"],
        "gaps": ["x", None, "x"], "none": [None] * 3,
    }  # fmt: skip
    found = worth_a_table(columns)
    assert found == {
        "sex": ["m", "f", None], "fresh": ["true", "false", "true"], "age": ["1", "2", "3"], "gaps": ["x", None, "x"],
    }  # fmt: skip
    assert worth_a_table({"name": [f"p{k}" for k in range(MOST_VALUES + 1)]}) == {}


def test_tables_of_a_binary_evaluation_are_those_of_scikit_learn() -> None:
    labels, probabilities, subjects = cells()
    assert (probabilities == 0.5).any(), "an image on the threshold is called positive"
    result = evaluate_binary(
        labels, probabilities, threshold=0.5, slices={"subject": subjects}, resampling=Resampling(50)
    )
    called = (probabilities >= 0.5).astype(int)
    assert result["confusion"] == sk.confusion_matrix(labels, called).tolist()
    names = ("precision", "recall", "f1", "support")
    for name, expected in zip(names, sk.precision_recall_fscore_support(labels, called), strict=True):
        found = [row[name] if name == "support" else row[name]["value"] for row in result["per_class"]]
        assert found == pytest.approx(expected)
    assert [row["roc_auc"]["value"] for row in result["per_class"]] == pytest.approx(
        [sk.roc_auc_score(labels, probabilities)] * 2
    )
    for row in result["slices"]["subject"]:
        of_subject = np.array(subjects) == row["value"]
        plain = reference(labels[of_subject], probabilities[of_subject], 0.5)
        assert row["positives"] == labels[of_subject].sum()
        assert row["accuracy"]["value"] == pytest.approx(plain["accuracy"])
        for name in ("sensitivity", "specificity", "roc_auc"):
            assert row[name] == (None if math.isnan(plain[name]) else pytest.approx(plain[name]))


def test_multiclass_evaluation_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    logits = rng.normal(size=(400, 4)) + 1.5 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    result = evaluate_multiclass(labels, probabilities, class_names=list("abcd"), resampling=Resampling(50))
    called = probabilities.argmax(axis=1)
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(labels, called))
    assert values["f1_macro"] == pytest.approx(sk.f1_score(labels, called, average="macro"))
    assert values["roc_auc_macro"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert [row["recall"]["value"] for row in result["per_class"]] == pytest.approx(
        sk.recall_score(labels, called, average=None)
    )
    assert [row["precision"]["value"] for row in result["per_class"]] == pytest.approx(
        sk.precision_score(labels, called, average=None)
    )
    assert [row["support"] for row in result["per_class"]] == np.bincount(labels).tolist()
    assert result["confusion"] == sk.confusion_matrix(labels, called).tolist()


def drawn_by(prior: np.ndarray, believed: np.ndarray, seed: int, units: int) -> tuple[Any, Any, list[str]]:
    """Labels as frequent as `prior`, and what a model says that believes them as frequent as `believed`."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(prior), 600, p=prior)
    seen = np.eye(len(prior))[labels] * 1.5 + rng.normal(size=(600, len(prior)))
    odds = np.exp(1.5 * seen) * believed  # Bayes' rule for unit variance
    return labels, odds / odds.sum(axis=1, keepdims=True), [f"s{k % units}" for k in range(600)]


def test_probabilities_that_do_not_tell_shares_are_said_not_to() -> None:
    prior, alike = np.array([0.8, 0.15, 0.05]), np.ones(3) / 3
    labels, said, subjects = drawn_by(prior, alike, 0, 30)
    options: dict[str, Any] = {"class_names": ["many", "some", "few"], "resampling": Resampling(50)}
    found = evaluate_multiclass(labels, said, subjects=subjects, **options)
    assert found["shares"]["told"] == pytest.approx(said.mean(axis=0))
    assert found["shares"]["true"] == pytest.approx(np.bincount(labels) / 600)
    apart = np.abs(said.mean(axis=0) - np.bincount(labels) / 600).sum() / 2
    assert found["shares"]["apart"] == pytest.approx(apart) and apart > 0.1
    [note] = [note for note in found["warnings"] if "rather than tell shares" in note]
    assert f"many {100 * said[:, 0].mean():.1f} % where {100 * (labels == 0).mean():.1f} % are" in note
    for seed in range(10):  # a model that knows how frequent the classes are says nothing wrong
        labels, said, subjects = drawn_by(prior, prior, seed, 30)
        assert "tell shares" not in str(evaluate_multiclass(labels, said, subjects=subjects, **options)["warnings"])
    labels, said, subjects = drawn_by(prior, alike, 0, 5)  # of which nothing tells what is chance
    assert "tell shares" not in str(evaluate_multiclass(labels, said, subjects=subjects, **options)["warnings"])


def test_multiclass_evaluation_survives_a_missing_class() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    result = evaluate_multiclass([0, 1, 1], probabilities, class_names=["a", "b", "c"], resampling=Resampling(50))
    assert result["per_class"][2]["recall"]["value"] is None
    assert result["metrics"]["balanced_accuracy"]["value"] == pytest.approx(0.75)


@pytest.mark.parametrize("labels, probabilities", [([0, 1], [0.1]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, np.nan])])
def test_malformed_arrays_are_refused(labels: list[int], probabilities: list[float]) -> None:
    with pytest.raises(ValueError):
        binary_metrics(labels, probabilities, 0.5)


@given(seed=st.integers(0, 1000), classes=st.integers(2, 20))
def test_weights_count_each_cell_of_the_confusion_as_its_images(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels, said = rng.integers(0, classes, 90), rng.dirichlet(np.ones(classes), 90)
    weights = rng.integers(0, 4, (3, 90)).astype(np.float64)
    found = weighted_multiclass(labels, said)(weights)
    called = said.argmax(axis=1)
    for row, counts in enumerate(weights.astype(int)):
        truth, calls = np.repeat(labels, counts), np.repeat(called, counts)
        assert found["accuracy"][row] == (truth == calls).sum() / len(truth)
        for k in range(classes):
            if (truth == k).any():
                assert found["class_recall"][row, k] == ((truth == k) & (calls == k)).sum() / (truth == k).sum()
