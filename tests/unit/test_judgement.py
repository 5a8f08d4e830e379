"""What a bundle says of a model, from scores of images that it did not learn from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UsageError
from pipeline.evaluation.calibration import Costs
from pipeline.evaluation.report.card import render_card
from pipeline.sources.manifest import Manifest
from pipeline.training.judgement import HeldOut, judge, refuse_review
from pipeline.training.rows import LabelledRows, labelled_rows
from pipeline.training.validation import Scores, joined
from tests.bundles import make_bundle
from tests.training_data import cell_images, manifest_of
from tests.training_settings import training_settings

SETTINGS = training_settings()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """180 images of 20 subjects a split, of both classes each."""
    folder = tmp_path_factory.mktemp("cells")
    rows = cell_images(folder / "images", 180, size=16)
    for number, row in enumerate(rows):
        row["subject_id"] = f"{row['split']} {number // 6 % 20}"
    return manifest_of(rows, folder / "manifest")


@pytest.fixture(scope="module")
def rows(manifest: Manifest) -> LabelledRows:
    return labelled_rows(manifest)


def scores_of(manifest: Manifest, split: str, *, skill: float, shift: float = 0.0, seed: int = 0) -> Scores:
    table = list(manifest.split(split))
    truth = np.array([row.label for row in table], np.int64)
    noise = np.random.default_rng(seed).normal(size=len(table))
    logits = (skill * (2 * truth - 1) + noise + shift)[:, None].astype(np.float32)
    return Scores(np.array([row.image_id for row in table], np.int64), truth, logits)


def test_validation_and_out_of_fold_scores_are_told_apart_in_bundle_and_card(
    manifest: Manifest, rows: LabelledRows, tmp_path: Path
) -> None:
    validated = judge(HeldOut(scores_of(manifest, "validation", skill=1.5), 4), SETTINGS, rows, manifest)
    folds = [scores_of(manifest, split, skill=1.5) for split in ("train", "validation")]
    out_of_fold = HeldOut(joined(folds), 4, "out-of-fold", shipped=scores_of(manifest, "validation", skill=1.5, seed=9))
    folded = judge(out_of_fold, SETTINGS, rows, manifest, costs=Costs(5, 1), review_error=0.03)
    for judged, on, images in ((validated, "validation", 60), (folded, "out-of-fold", 180)):
        bundle = make_bundle(tmp_path / on, **judged.fields())
        assert bundle.info.calibrated_on == on and bundle.info.calibration["images"] == images
        assert bundle.info.against_chance is not None and bundle.info.against_chance.is_shown
        assert f"| Calibrated on | {on} images ({images}); threshold 0." in render_card(bundle.info)
        assert bundle.info.reference_scores["split"] == on
    assert validated.agreement is None and folded.agreement is not None and folded.agreement.is_alike
    assert bundle.info.calibration["shipped"]["images"] == 60
    assert validated.review is None and validated.fields()["review_band"] is None
    review, band = bundle.info.review, bundle.info.review_band
    assert review is not None and review.is_promised and (review.on, review.positive_units) == ("out-of-fold", 40)
    assert band is not None and band == review.band(bundle.info.threshold) and band[0] < bundle.info.threshold < band[1]
    inside = (folded.rule.values >= band[0]) & (folded.rule.values < band[1])
    assert folded.reviewed == pytest.approx(inside.mean()) and 0 < inside.mean() < 1
    card = render_card(bundle.info)
    assert (
        "without a person at most 0.03 of the truly positive images" in card and "from 180 out-of-fold images" in card
    )
    assert folded.rule.threshold is not None and "FN=5,FP=1 on out-of-fold images" in folded.rule.threshold.rule


def test_a_shipped_model_that_scores_otherwise_is_named(manifest: Manifest, rows: LabelledRows) -> None:
    held = scores_of(manifest, "train", skill=1.5)
    other = scores_of(manifest, "validation", skill=1.5, shift=4.0)
    judged = judge(HeldOut(held, 4, "out-of-fold", other), SETTINGS, rows, manifest, review_error=0.1)
    assert judged.agreement is not None and not judged.agreement.is_alike
    assert judged.review is not None and not judged.review.is_promised
    assert "not promised: the shipped weights score otherwise" in str(judged.review)


def test_a_promise_that_validation_cannot_hold_is_refused_before_training(
    manifest: Manifest, rows: LabelledRows
) -> None:
    refuse_review(manifest, rows, 0.05, has_folds=False)  # 20 subjects of each class, 19 are needed
    with pytest.raises(UsageError, match=r"--review-error 0\.04: 20 subjects have negative .* 24 of each are needed"):
        refuse_review(manifest, rows, 0.04, has_folds=False)
    refuse_review(manifest, rows, 0.025, has_folds=True)  # 40, of which 39 are needed
    by_image = replace(manifest, info=manifest.info.model_copy(update={"split_rule": "images"}))
    with pytest.raises(UsageError, match="split by image"):
        refuse_review(by_image, rows, 0.2, has_folds=False)


def test_scores_without_skill_are_not_better_than_chance(manifest: Manifest, rows: LabelledRows) -> None:
    judged = judge(HeldOut(scores_of(manifest, "validation", skill=0.0), 4), SETTINGS, rows, manifest)
    assert judged.against_chance.includes_chance and judged.against_chance.unit == "subject"


def test_an_image_of_two_folds_is_a_bug(manifest: Manifest) -> None:
    part = scores_of(manifest, "validation", skill=1.0)
    with pytest.raises(RuntimeError, match="twice"):
        joined([part, part])
