"""Intervals: what they hold, that mistakes never improve them, and that one quantity has one of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.adverse import draws
from pipeline.evaluation.intervals import Resampling, clustered_error, exact_interval
from pipeline.evaluation.metrics import evaluate_binary, evaluate_multiclass
from tests.interval_coverage import METRICS, Setting, coverage
from tests.searches import search

FEW = Resampling(100)
ERROR_RATED = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1", "roc_auc", "pr_auc")


def measured(rows: Any, resampling: Resampling = FEW, **options: Any) -> dict[str, Any]:
    labels, scores, subjects = (list(column) for column in zip(*rows, strict=True))
    return evaluate_binary(labels, scores, threshold=0.5, subjects=subjects, resampling=resampling, **options)


def limits(rows: list[tuple[int, float, str]]) -> dict[str, tuple[float | None, float | None]]:
    return {name: (found["low"], found["high"]) for name, found in measured(rows)["metrics"].items()}


def blocks(*wrong: int) -> list[tuple[int, float, str]]:
    """Two healthy blocks of 36 images, of which some raise a false alarm, and eight sick ones, all found."""
    healthy = [(0, 0.95 if k in wrong else 0.1, f"h{k // 36}") for k in range(72)]
    return healthy + [(1, 0.9, f"s{k % 8}") for k in range(72)]


@pytest.mark.parametrize("wrong", [(), (0,), (0, 40)])
def test_two_healthy_blocks_tell_little_whether_or_not_one_image_is_wrong(wrong: tuple[int, ...]) -> None:
    found = measured(blocks(*wrong), Resampling(2000))["metrics"]["specificity"]
    assert found["value"] == pytest.approx(1 - len(wrong) / 72)
    assert found["low"] == pytest.approx(0.158, abs=0.03)  # Clopper and Pearson, two of two
    assert found["low"] <= found["value"] <= found["high"] and (found["high"] == 1.0) == (not wrong)


Rows = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.05, 0.2, 0.4, 0.6, 0.8, 0.95]), st.sampled_from("abcde")),
    min_size=4,
    max_size=25,
)


@search(40)
@given(Rows, st.data())
def test_an_answer_that_turns_wrong_never_improves_a_limit(rows: list[tuple[int, float, str]], data: Any) -> None:
    right = [k for k, (label, score, _) in enumerate(rows) if (score >= 0.5) == bool(label)]
    if not right:
        return
    k = data.draw(st.sampled_from(right))
    label, _, subject = rows[k]
    before, after = limits(rows), limits([*rows[:k], (label, 0.01 if label else 0.99, subject), *rows[k + 1 :]])
    for name in ERROR_RATED + (() if label else ("precision",)):  # fewer alarms may be better ones
        for one, other in zip(before[name], after[name], strict=True):
            assert one is None or (other is not None and other <= one + 1e-9), name


@search(20)
@given(Rows)
def test_intervals_hold_their_value_and_have_a_width(rows: list[tuple[int, float, str]]) -> None:
    result = measured(rows)
    labels, scores, subjects = (list(column) for column in zip(*rows, strict=True))
    three = evaluate_multiclass(
        labels, [[1 - s, s] for s in scores], class_names=["a", "b"], subjects=subjects, resampling=FEW
    )
    told = [*result["metrics"].values(), *three["metrics"].values()]
    told += [row[name] for row in result["per_class"] + three["per_class"] for name in ("precision", "recall", "f1")]
    for found in told:
        if found["low"] is not None:
            assert found["low"] <= found["value"] <= found["high"] and found["low"] < found["high"]


def test_one_quantity_has_one_interval_everywhere() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.clip(rng.normal(0.3 + 0.4 * labels, 0.2), 0, 1)
    subjects = [f"s{k}" for k in rng.integers(0, 12, 200)]
    columns = {"class": [str(label) for label in labels], "all": ["x"] * 200, "subject": subjects}
    result = measured(list(zip(labels.tolist(), scores.tolist(), subjects, strict=True)), slices=columns)
    metrics, (negative, positive) = result["metrics"], result["per_class"]
    of_class = {row["value"]: row for row in result["slices"]["class"]}
    assert positive["recall"] == metrics["sensitivity"] == of_class["1"]["accuracy"]
    assert negative["recall"] == metrics["specificity"] == of_class["0"]["accuracy"]
    assert negative["roc_auc"] == pytest.approx(metrics["roc_auc"]) and positive["precision"] == metrics["precision"]
    [whole] = result["slices"]["all"]
    assert whole["accuracy"] == metrics["accuracy"]
    assert whole["intervals"] == {name: metrics[name] for name in ("sensitivity", "specificity", "roc_auc")}
    two = evaluate_multiclass(
        labels, np.column_stack([1 - scores, scores]), class_names=["0", "1"], subjects=subjects, resampling=FEW
    )
    assert two["metrics"]["roc_auc_macro"]["value"] == pytest.approx(metrics["roc_auc"]["value"])
    assert two["per_class"][1]["roc_auc"] == pytest.approx(metrics["roc_auc"])


def test_a_table_has_one_method_and_says_it() -> None:
    rows = [(k % 2, 0.1 + 0.8 * (k % 2), f"s{k // 5}") for k in range(60)]
    subjects = [subject for _, _, subject in rows]
    sites = [
        "north" if subject in ("s0", "s1", "s2") else "south" if subject != "s9" else "east" for subject in subjects
    ]
    result = measured(rows, slices={"site": sites, "subject": subjects}, units="blocks")
    assert result["intervals"]["method"] == "Bayesian bootstrap over blocks, one adverse block added"
    assert result["slice_intervals"]["site"] == {"unit": "subject", "method": result["intervals"]["method"]}
    assert {row["accuracy"]["unit"] for row in result["slices"]["site"]} == {"subject"}
    assert {row["value"]: row["accuracy"]["low"] is None for row in result["slices"]["site"]}["east"]
    assert result["slice_intervals"]["subject"]["unit"] == "image"
    for row in result["slices"]["subject"]:
        assert row["accuracy"]["low"] == pytest.approx(exact_interval(5, 5).low) and row["intervals"] == {}


def test_no_limit_of_a_share_exceeds_one_by_rounding() -> None:
    """Perfect answers of a few subjects, where a sum of weights divided by the same sum was 1.0000000000000002."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        subjects = [f"s{k}" for k in rng.integers(0, 4, 12)]
        rows = list(zip([0, 1] * 6, [0.1, 0.9] * 6, subjects, strict=True))
        told = measured(rows, Resampling(100, seed=seed))["metrics"]
        assert all(found["high"] is None or found["high"] <= 1 for found in told.values())


def test_where_each_subject_has_one_image_it_is_clopper_and_pearson() -> None:
    rows = [(1, 0.9 if k < 16 else 0.1, f"s{k}") for k in range(20)] + [(0, 0.1, f"h{k}") for k in range(9)]
    found, exact = measured(rows, Resampling(20_000))["metrics"]["sensitivity"], exact_interval(16, 20)
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_images_that_share_subjects_count_for_less() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 300)
    scores = 1 / (1 + np.exp(-(2 * labels - 1 + np.repeat(rng.normal(size=40), 15) + rng.normal(size=600))))
    by_subject = measured(list(zip(labels, scores, (f"s{k // 15}" for k in range(600)), strict=True)))["metrics"]
    alone = evaluate_binary(labels, scores, threshold=0.5, resampling=FEW)["metrics"]
    for name in METRICS:
        widths = [found[name]["high"] - found[name]["low"] for found in (by_subject, alone)]
        assert widths[0] > 1.5 * widths[1], name


def test_a_positive_below_another_one_of_more_weight_is_no_better_precision() -> None:
    """The average precision of samples does not depend on which of two neighbouring positives comes first."""
    rows = [(0, 0.6, "a"), (0, 0.6, "b"), (1, 0.05, "a"), (1, 0.6, "b")]
    before, after = limits(rows)["pr_auc"], limits([*rows[:3], (1, 0.01, "b")])["pr_auc"]
    for one, other in zip(before, after, strict=True):
        assert one is not None and other is not None and other <= one + 1e-9
    first, second = ([(1, a, "a"), (1, b, "b"), (0, 0.9, "c"), (0, 0.2, "d")] for a, b in ((0.6, 0.5), (0.5, 0.6)))
    assert limits(first)["pr_auc"] == pytest.approx(limits(second)["pr_auc"])


def test_one_subject_gives_no_interval() -> None:
    assert all(
        found["low"] is None for found in measured([(0, 0.1, "a"), (1, 0.8, "a"), (1, 0.3, "a")])["metrics"].values()
    )


def test_a_subject_more_leaves_the_weights_of_the_others() -> None:
    few, more = (next(draws(units, 2, Resampling(50))) for units in (3, 4))
    assert (few.units == more.units[:, :3]).all() and few.units.shape == (50, 3)


def test_brier_of_many_classes_may_exceed_one() -> None:
    sure = np.eye(2)[[1, 1, 0, 0]]
    found = evaluate_multiclass([0, 0, 1, 1], sure, class_names=["a", "b"], subjects=list("abcd"), resampling=FEW)
    brier = found["metrics"]["brier"]
    assert (brier["value"], brier["high"]) == (2.0, pytest.approx(2.0)) and 0 < brier["low"] < 2


@pytest.mark.parametrize("subjects", [2, 5, 20])
def test_intervals_hold_the_truth_as_often_as_they_say(subjects: int) -> None:
    """What `tests/interval_coverage.py` tells of more settings; and it does tell a method that fails."""
    found = [coverage(Setting(subjects, 5, alike, 0.8), 30, Resampling(200), seed=1) for alike in (0.1, 0.6, 1.0)]
    for metric in METRICS:
        assert np.mean([of["ours", metric][0] for of in found]) >= 0.93, metric
    if subjects < 20:  # of more, ninety test sets do not tell that it fails
        percentile = np.mean([of["percentile bootstrap", "sensitivity"][0] for of in found])
        assert percentile < {2: 0.8, 5: 0.93}[subjects]


def test_the_standard_error_over_units_is_that_of_their_means_where_these_are_alike_in_size() -> None:
    rng = np.random.default_rng(0)
    of_units = rng.normal(size=5)
    codes = np.repeat([7, 3, 9, 100, 4], 6)  # any numbers
    values = np.repeat(of_units, 6) + np.tile([1.0, -1.0], 15)
    assert clustered_error(values, codes) == pytest.approx(of_units.std(ddof=1) / np.sqrt(5))


def test_a_single_unit_tells_no_standard_error() -> None:
    assert np.isnan(clustered_error(np.arange(6.0), np.full(6, 3)))
