"""What a split of single images promises beside one of subjects, told by a probe."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.evaluation.intervals import Resampling
from pipeline.training.linear import held_out_probabilities
from pipeline.training.split_comparison import FOLDS, Judged, SplitComparison, compared, judge

SUBJECTS, EACH, WIDTH = 40, 10, 24


def drawn(likeness: float, signal: float = 1.0, seed: int = 0) -> tuple[NDArray[np.float32], ...]:
    """Features whose images of one subject are alike by `likeness`, targets of subjects, subjects."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(SUBJECTS), EACH)
    targets = (subjects % 2).astype(np.int64)
    values = rng.normal(size=(len(subjects), WIDTH)) + likeness * rng.normal(size=(SUBJECTS, WIDTH))[subjects]
    values[:, 0] += signal * targets
    return values.astype(np.float32), targets, subjects


def comparison(features: NDArray[np.float32], targets: NDArray, subjects: NDArray, **ways: NDArray) -> SplitComparison:
    groups = {"images": np.arange(len(targets)), "subjects": subjects, **ways}
    judged = [judge(way, features, targets, each, 2) for way, each in groups.items()]
    return compared(judged, targets, subjects, "binary", "subjects", Resampling(200))


def test_where_images_of_a_subject_are_alike_a_random_split_promises_too_much_and_by_how_much_is_told() -> None:
    found = comparison(*drawn(likeness=3.0, signal=0.0))
    gain = found.optimism["roc_auc"]
    assert found.ways["images"]["roc_auc"] > 0.8  # subjects are known again, nothing else is there to know
    assert 0.3 < found.ways["subjects"]["roc_auc"] < 0.7
    assert gain["low"] is not None and gain["low"] > 0.1
    assert gain["value"] == found.ways["images"]["roc_auc"] - found.ways["subjects"]["roc_auc"]
    assert found.images == SUBJECTS * EACH and found.ways["images"]["groups"] == found.images


def test_where_images_are_independent_the_two_promise_the_same() -> None:
    found = comparison(*drawn(likeness=0.0))
    gain = found.optimism["roc_auc"]
    assert gain["low"] is not None and gain["high"] is not None and gain["low"] < 0.02 and gain["high"] > -0.02
    assert abs(found.ways["images"]["roc_auc"] - found.ways["subjects"]["roc_auc"]) < 0.03


def test_two_sites_are_enough_to_leave_each_out() -> None:
    features, targets, subjects = drawn(likeness=1.0)
    assert judge("sites", features, targets, subjects // 20, 2).groups == 2


def test_few_sites_are_left_out_one_by_one() -> None:
    features, targets, subjects = drawn(likeness=1.0)
    found = comparison(features, targets, subjects, sites=subjects % 6)
    assert found.ways["sites"]["groups"] == 6
    assert len(judge("sites", features, targets, subjects // 8, 2).deals) == 1


def test_images_that_no_head_can_judge_under_one_way_are_measured_under_none() -> None:
    features, targets, subjects = drawn(likeness=1.0)
    of_three = np.where(subjects < 2, 2, targets)  # of two subjects
    with pytest.raises(InputError, match="1 of the rarest class"):
        judge("sites", features, of_three, np.where(subjects < 2, 0, 1 + subjects % 5), 3)
    by_images = judge("images", features, of_three, np.arange(len(targets)), 3)
    # both subjects of the third class in one part: nobody learns the class without it, so none is judged there
    dealt = np.where(subjects < 2, 0, subjects % 4)
    by_subjects = Judged("subjects", SUBJECTS, [held_out_probabilities(features, of_three, dealt, 3)])
    found = compared([by_images, by_subjects], of_three, subjects, "multiclass", "subjects", Resampling(100))
    assert found.images == int((dealt != 0).sum()) < len(targets)


def test_too_few_subjects_have_no_interval_and_fewer_than_folds_are_refused() -> None:
    features, targets, subjects = drawn(likeness=1.0)
    few = subjects < 12
    found = comparison(features[few], targets[few], subjects[few])
    assert found.optimism["roc_auc"]["low"] is None and found.optimism["roc_auc"]["value"] is not None
    with pytest.raises(InputError, match=f"4 subjects.*takes {FOLDS}"):
        judge("subjects", features[subjects < 4], targets[subjects < 4], subjects[subjects < 4], 2)
