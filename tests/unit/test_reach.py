"""For which images figures hold, and what the decisions rest on."""

import contextlib
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.errors import UsageError
from pipeline.evaluation.calibration import threshold_for, threshold_limits
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import Outcome
from pipeline.evaluation.prevalence import predictive_values
from pipeline.evaluation.reach import (
    holds_for,
    reach,
    refuse_without_validation,
    temperature_of,
    threshold_here,
    threshold_of,
)
from pipeline.evaluation.report import words
from pipeline.model.bundle import BundleInfo
from pipeline.model.prediction import Prediction
from pipeline.sources.manifest import MANIFEST_SCHEMA, Manifest, ManifestInfo, ManifestRow
from pipeline.sources.rows import Access

CALIBRATION = {
    "images": 332, "units": 35, "unit": "subject", "called": "blocks", "confidence": 0.95,
    "temperature": {"value": 1.05, "low": 0.7, "high": 1.4},
    "threshold": {"value": 0.6, "low": 0.35, "high": 0.85},
}  # fmt: skip


def bundle_info(**changes: Any) -> BundleInfo:
    fields: dict[str, Any] = {
        "name": "m", "version": "v", "architecture": "a", "task": "binary", "classes": ("negative", "positive"),
        "positive_classes": ("positive",), "input_size": 16, "preprocessing_digest": "", "weights_sha256": "",
        "graph_sha256": "", "temperature": 1.05, "threshold": 0.6, "manifest_digest": "own", "calibration": CALIBRATION,
        "training": {"threshold_rule": "middle of the thresholds"},
    }  # fmt: skip
    return BundleInfo(**fields | changes)


def outcomes_of(info: BundleInfo, scores: list[float], labels: list[int], split: str = "test") -> Outcomes:
    place = (None, Access.FILE, None, None, 1, "x", None)
    rows = [ManifestRow(k, f"/{k}", *place, label, "n", f"s{k // 2}", split) for k, label in enumerate(labels)]
    said = [Prediction((1 - p, p), p, "", None) for p in scores]
    return Outcomes(info, [Outcome(row, each) for row, each in zip(rows, said, strict=True)])


def manifest_of(outcomes: Outcomes, **info: Any) -> Manifest:
    table = pa.Table.from_pylist([asdict(each.row) for each in outcomes.all], MANIFEST_SCHEMA)
    return Manifest("m", table, ManifestInfo(**{"digest": "own", "source": ["/data/taleqani-all"]} | info))


def test_a_threshold_is_told_with_its_images_its_interval_and_what_its_ends_would_find() -> None:
    info = bundle_info()
    outcomes = outcomes_of(info, [0.9, 0.7, 0.4, 0.3, 0.8, 0.5, 0.2, 0.1], [1, 1, 1, 1, 0, 0, 0, 0])
    record = reach(info, manifest_of(outcomes, unit="field"), "test", outcomes, threshold_of(info))
    assert record["threshold"]["at_low"] == {"sensitivity": 0.75, "specificity": 0.5}
    assert record["threshold"]["at_high"] == {"sensitivity": 0.25, "specificity": 1.0}
    holds, threshold, temperature = words.reach(record)
    assert holds == (
        "The figures hold for fields of many cells like these, from the source of the training images (taleqani-all); "
        "for another laboratory, stain or microscope nothing was measured."
    )
    assert threshold == (
        "The threshold is 0.600 (95 % CI 0.350 – 0.850, percentile bootstrap), chosen on 332 validation images of 35 "
        "blocks; between its limits of 100 diseased ones here 25 to 75 are found, of 100 healthy ones here 0 to 50 "
        "raise an alarm."
    )
    assert temperature == "The temperature of the probabilities is 1.050, from the same images."
    assert (record["temperature"]["low"], record["temperature"]["high"]) == (None, None)  # though this bundle has some


@pytest.mark.parametrize(
    ("labels", "which"), [([1, 1, 1, 1], "diseased ones alone"), ([0, 0], "healthy ones alone"), ([], "none at all")]
)
def test_validation_images_of_one_side_choose_no_threshold(labels: list[int], which: str) -> None:
    """By themselves they would leave 0.5, whatever the bundle's own was and whatever was asked for."""
    info = bundle_info()
    test = outcomes_of(info, [0.1, 0.9], [0, 1])
    rows = [asdict(each.row) for each in test.all]
    if labels:
        validation = outcomes_of(info, [0.3] * len(labels), labels, "validation")
        rows += [asdict(each.row) for each in validation.all]
        with pytest.raises(UsageError, match=f"--target-sensitivity is chosen on validation images.* {which}"):
            threshold_here(validation, 0.9, "subjects")
    manifest = Manifest("m", pa.Table.from_pylist(rows, MANIFEST_SCHEMA), ManifestInfo(split_rule="subjects"))
    with pytest.raises(UsageError, match=f"--target-sensitivity is chosen on validation images.* {which}"):
        refuse_without_validation(manifest, info)


@pytest.mark.parametrize(("error", "is_refused"), [(0.1, False), (0.05, True)])
def test_validation_subjects_that_can_promise_no_such_error_are_told_before_images_are_read(
    error: float, is_refused: bool
) -> None:
    """Twelve subjects with images of both sides: 9 are needed for 0.1, 19 for 0.05."""
    info = bundle_info()
    manifest = manifest_of(outcomes_of(info, [0.1, 0.9] * 12, [0, 1] * 12, "validation"), split_rule="subjects")
    refused = pytest.raises(UsageError, match="19 of each are needed") if is_refused else contextlib.nullcontext()
    with refused:
        refuse_without_validation(manifest, info, "--review-error", error)


def test_a_threshold_chosen_here_rests_on_the_validation_images_of_this_manifest() -> None:
    info = bundle_info()
    labels = [0, 1] * 40
    scores = np.random.default_rng(0).normal(0.3, 0.15, 80).clip(0, 1) + 0.3 * np.array(labels)
    validation = outcomes_of(info, scores.clip(0, 1).tolist(), labels, "validation")
    chosen = threshold_here(validation, 0.9, "subjects")
    assert chosen.value == threshold_for(labels, validation.probability, 0.9).value
    assert (chosen.images, chosen.units, chosen.called, chosen.on) == (80, 40, "subjects", "validation")
    low, high = chosen.spread.low, chosen.spread.high
    assert low is not None and high is not None and low < chosen.value < high
    record = reach(info, manifest_of(validation), "validation", validation, chosen)
    assert "chosen on 80 validation images of 40 subjects" in words.reach(record)[1]
    assert "chosen on 332 validation images of 35 blocks" in words.reach(record)[2]


def test_limits_of_a_chosen_threshold_narrow_with_subjects() -> None:
    widths = []
    for subjects in (20, 200):
        rng = np.random.default_rng(1)
        labels = np.arange(subjects) % 2
        values = (0.5 * labels + rng.uniform(0, 0.5, subjects)).clip(0, 1)
        found = threshold_limits(labels, values, [f"s{k}" for k in range(subjects)], 0.8)
        assert found.low is not None and found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_a_bundle_that_does_not_say_claims_nothing() -> None:
    for info in (bundle_info(calibration={}), bundle_info(threshold=0.7, temperature=2.0)):
        outcomes = outcomes_of(info, [0.9, 0.1], [1, 0])
        told = words.reach(reach(info, manifest_of(outcomes), "test", outcomes, threshold_of(info)))
        assert f"{info.threshold:.3f}, from validation images; of how many this bundle does not say." in told[1]
        assert temperature_of(info).images is None


@pytest.mark.parametrize("units", [1, 19])
def test_few_subjects_give_no_limits_and_that_is_said(units: int) -> None:
    info = bundle_info(calibration=CALIBRATION | {"units": units})  # of a version that told limits of any number
    outcomes = outcomes_of(info, [0.9, 0.1], [1, 0])
    record = reach(info, manifest_of(outcomes), "test", outcomes, threshold_of(info))
    told = words.reach(record)
    assert record["threshold"]["low"] is None and record["threshold"]["at_low"] is None
    assert f"of {units} blocks, too few to say how far others would have moved it." in told[1]
    chosen = threshold_limits(np.arange(units) % 2, np.linspace(0, 1, units), [f"s{k}" for k in range(units)], 0.8)
    assert (chosen.low, chosen.high) == (None, None)


def test_no_number_of_subjects_is_blamed_for_a_temperature_without_limits() -> None:
    """None has any: percentile limits of temperatures hold too seldom."""
    info = bundle_info(positive_classes=())
    outcomes = outcomes_of(info, [0.9, 0.1], [1, 0])
    told = words.reach(reach(info, manifest_of(outcomes), "test", outcomes, threshold_of(info)))
    assert told[1] == "The temperature of the probabilities is 1.050, chosen on 332 validation images of 35 blocks."


def test_without_classes_of_disease_there_is_no_threshold_to_tell_of() -> None:
    info = bundle_info(positive_classes=(), calibration=CALIBRATION | {"on": "validation"})
    outcomes = outcomes_of(info, [0.9, 0.1], [1, 0])
    record = reach(info, manifest_of(outcomes), "test", outcomes, threshold_of(info))
    assert record["threshold"] is None and len(words.reach(record)) == 2


@pytest.mark.parametrize(
    ("info", "sites", "expected"),
    [
        ({}, {}, "from the source of the training images (taleqani-all);"),
        (
            {"split_rule": "images"},
            {},
            "from the source of the training images and of the same patients (taleqani-all);",
        ),
        ({"digest": "other"}, {}, "of another manifest than that of training (taleqani-all);"),
        (
            {"unit": "cell"},
            {"train": "south"},
            "single cells like these, of north, from where no image was trained on;",
        ),
        ({}, {"train": "north"}, "from the source of the training images"),
        ({}, {"train": None}, "from the source of the training images"),
        ({}, {"train": "south", "first": None}, "from the source of the training images"),
    ],
)
def test_figures_hold_for_what_was_measured_only(
    info: dict[str, Any], sites: dict[str, str | None], expected: str
) -> None:
    bundle = bundle_info()
    outcomes = outcomes_of(bundle, [0.9, 0.1, 0.2], [1, 0, 0])
    manifest = manifest_of(outcomes, **info)
    rows = [row | {"site": "north" if sites else None} for row in manifest.table.to_pylist()]
    rows[2] |= {"split": "train", "site": sites.get("train")}
    rows[0] |= {"site": sites.get("first", rows[0]["site"])}
    table = pa.Table.from_pylist(rows, MANIFEST_SCHEMA)
    assert expected in holds_for(bundle, Manifest("m", table, manifest.info), "test")


def test_predictive_values_follow_the_prevalence() -> None:
    found, cleared = {"value": 0.9, "low": 0.8, "high": 0.95}, {"value": 0.95, "low": 0.9, "high": 1.0}
    rare, even = predictive_values(found, cleared, [0.01, 0.5])
    assert rare["ppv"]["value"] == pytest.approx(0.009 / (0.009 + 0.0495))
    assert rare["npv"]["value"] == pytest.approx(0.9405 / (0.9405 + 0.001))
    assert rare["ppv"]["low"] == pytest.approx(0.008 / (0.008 + 0.099)) and rare["ppv"]["high"] == 1.0
    assert even["ppv"]["value"] == pytest.approx(0.9 / 0.95)
    for row in (rare, even):
        for name in ("ppv", "npv"):
            assert row[name]["low"] < row[name]["value"] < row[name]["high"]


def test_predictive_values_are_null_where_a_side_is_unknown_or_nothing_is_called() -> None:
    none = {"value": None, "low": None, "high": None}
    (row,) = predictive_values({"value": 0.9, "low": None, "high": None}, none, [0.1])
    assert row["ppv"] == none and row["npv"] == none
    (row,) = predictive_values({"value": 0.0}, {"value": 1.0}, [0.1])
    assert row["ppv"]["value"] is None and row["npv"]["value"] == 0.9
