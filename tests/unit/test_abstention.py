"""The review band: its cuts by hand, its promise by simulation, what it comes to on a split."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import UsageError
from pipeline.evaluation.abstention import (
    fewest_units,
    judge_review,
    refuse_unpromised,
    review_rule,
    trade_off,
    why_not_promised,
)
from pipeline.evaluation.calibration import ENGINE_TOLERANCE
from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.report import words
from pipeline.model.prediction import decide
from pipeline.model.review import ReviewRule
from tests.bundles import make_bundle
from tests.review_coverage import Setting, errors

Split = tuple[Ints, Floats, list[str]]


def one_each(positive: Floats, negative: Floats) -> Split:
    """A subject an image."""
    labels = np.r_[np.ones(len(positive), np.int64), np.zeros(len(negative), np.int64)]
    return labels, np.r_[positive, negative], [f"s{k}" for k in range(len(labels))]


@pytest.mark.parametrize(("error", "needed"), [(0.02, 49), (0.05, 19), (0.1, 9), (0.3, 3), (1 / 3, 2)])
def test_a_promise_needs_so_many_subjects_that_one_more_weighs_less(error: float, needed: int) -> None:
    assert fewest_units(error) == needed
    enough = one_each(np.linspace(0.6, 0.9, needed), np.linspace(0.1, 0.4, needed))
    refuse_unpromised(enough[0], enough[2], error, "subjects")
    few = one_each(np.linspace(0.6, 0.9, needed - 1), np.linspace(0.1, 0.4, needed))
    with pytest.raises(UsageError, match=f"{needed} of each are needed"):
        refuse_unpromised(few[0], few[2], error, "subjects")


def test_without_known_subjects_nothing_is_promised() -> None:
    labels, values, _ = one_each(np.linspace(0.5, 1, 500), np.linspace(0, 0.5, 500))
    with pytest.raises(UsageError, match=r"no subject is known.*these can hold none"):
        refuse_unpromised(labels, None, 0.1, "subjects")
    assert not review_rule(labels, values, None, 0.1).is_promised


def test_images_without_a_subject_are_no_subjects_and_neither_are_blocks() -> None:
    labels, values = np.arange(64) % 2, np.linspace(0, 1, 64)
    unknown = [f"s{n}" if n < 4 else None for n in range(64)]
    rule = review_rule(labels, values, unknown, 0.05)
    assert "of 60 of the 64 images the subject is not known" in rule.why_not
    assert (rule.negative_units, rule.positive_units) == (2, 2)
    with pytest.raises(UsageError, match=r"of 60 of the 64 images .*; these can hold none, or leave it out"):
        refuse_unpromised(labels, unknown, 0.05, "subjects")
    known = [f"s{n}" for n in range(64)]
    assert not why_not_promised(labels, known, 0.05, "subjects")
    assert "blocks stand for them" in review_rule(labels, values, known, 0.05, called="blocks").why_not
    with pytest.raises(UsageError, match="blocks stand for them, and several may be of one patient; these can hold no"):
        refuse_unpromised(labels, known, 0.05, "blocks")


def test_cuts_of_single_images_are_the_order_statistics_of_split_conformal_prediction() -> None:
    """Of 39 at 5 %, (39 + 1) * 0.05 = 2: the second lowest is the last that must not be cleared."""
    split = one_each(np.arange(1, 40) / 100 + 0.3, np.arange(1, 40) / 100)
    rule = review_rule(*split, 0.05)
    assert rule.is_promised and (rule.positive_units, rule.negative_units, rule.images) == (39, 39, 78)
    assert rule.low == pytest.approx(0.32 - ENGINE_TOLERANCE, abs=1e-12)
    assert rule.high == pytest.approx(0.38 + ENGINE_TOLERANCE, abs=1e-12)


def test_a_subject_with_many_images_counts_as_any_other() -> None:
    """Nine subjects at 20 %: (9 + 1) * 0.2 - 1 = 1 subject may be lost, however many images it has."""
    labels, values, subjects = one_each(np.arange(1, 10) / 10, np.zeros(9))
    many = np.full(1000, 0.05)
    rule = review_rule(np.r_[labels, np.ones(1000, np.int64)], np.r_[values, many], [*subjects, *["s0"] * 1000], 0.2)
    assert rule.low == pytest.approx(0.2 - ENGINE_TOLERANCE, abs=1e-12)


def test_a_side_of_too_few_subjects_is_left_to_a_person_altogether(tmp_path: Path) -> None:
    """Also where a probability is 1 in double precision."""
    rule = review_rule(*one_each(np.array([0.7, 0.9, 1.0]), np.linspace(0.1, 0.8, 20)), 0.05)
    assert "20 subjects have negative images and 3 positive ones, 19 of each are needed for 0.05" in rule.why_not
    info = make_bundle(tmp_path / "m", threshold=0.5).with_review(rule).info
    assert [decide(info, p) for p in (0.0, 0.3, 0.7, 0.9)] == ["review", "review", "review", "positive"]
    turned = review_rule(*one_each(np.linspace(0.1, 0.8, 20), np.array([0.0, 0.2, 1.0])), 0.05)
    info = make_bundle(tmp_path / "n", threshold=0.5).with_review(turned).info
    assert [decide(info, p) for p in (0.05, 0.2, 0.9, 1.0)] == ["negative", "review", "review", "review"]


def test_the_band_reaches_from_a_cut_to_wherever_the_threshold_is_put(tmp_path: Path) -> None:
    rule = review_rule(*one_each(np.linspace(0.4, 0.9, 19), np.linspace(0.1, 0.6, 19)), 0.05)
    bundle = make_bundle(tmp_path / "m", threshold=0.5).with_review(rule)
    assert bundle.info.review_band == (rule.low, rule.high)
    assert bundle.with_threshold(0.2).info.review_band == (0.2, rule.high)
    apart = review_rule(*one_each(np.linspace(0.8, 0.9, 19), np.linspace(0.1, 0.2, 19)), 0.05)
    info = make_bundle(tmp_path / "n", threshold=0.5).with_review(apart).info
    assert info.review_band is None and info.review == apart and decide(info, 0.5) == "positive"
    assert bundle.info.identity() != bundle.with_threshold(0.2).info.identity()


@st.composite
def clustered(draw: st.DrawFn) -> Split:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    subjects = draw(st.integers(2, 40))
    sizes = rng.integers(1, 9, subjects)
    codes = np.repeat(np.arange(subjects), sizes)
    labels = rng.integers(0, 2, len(codes))
    labels[:2] = 0, 1
    values = (rng.random(len(codes)) + rng.random(subjects)[codes] + labels) / 3
    return labels, values.round(draw(st.sampled_from([1, 2, 9]))), [f"s{k}" for k in codes]


@settings(max_examples=60, deadline=None)
@given(split=clustered(), error=st.sampled_from([0.01, 0.05, 0.1, 0.3]), threshold=st.floats(0, 1))
def test_neither_error_is_larger_where_the_band_was_found(split: Split, error: float, threshold: float) -> None:
    rule = review_rule(*split, error)
    found = judge_review(*split, threshold, rule.band(threshold), rule, Resampling(20))
    assert found is not None
    for side in ("missed", "alarmed"):
        assert found[side]["value"] <= error + 1e-9
    assert found["decided_wrong"]["value"] is None or found["images"] < len(split[0])


@pytest.mark.parametrize("subjects", [10, 20, 50, 200])
def test_the_promise_holds_for_new_subjects_and_that_of_single_images_does_not(subjects: int) -> None:
    """Mean over calibrations on clustered cells, within 3 standard errors."""
    error = {10: 0.1, 20: 0.05, 50: 0.05, 200: 0.05}[subjects]
    setting = Setting(subjects, images=20, alike=0.6, sizes="by score")
    found = errors(setting, error, reps=60 if subjects == 200 else 150)
    means = {name: (values.mean(), values.std() / np.sqrt(len(values))) for name, values in found.items()}
    mean, spread = means["**ours**"]
    assert 0 < mean <= error + 3 * spread
    mean, spread = means["each image a unit"]
    assert mean - 3 * spread > error


def test_what_is_let_pass_is_counted_by_subject_and_what_is_decided_by_image() -> None:
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    scores = np.array([0.1, 0.9, 0.9, 0.45, 0.1, 0.1, 0.55, 0.9])
    subjects = ["a", "a", "a", "b", "c", "c", "d", "d"]
    found = judge_review(labels, scores, subjects, 0.5, (0.4, 0.6), None, Resampling(100))
    assert found is not None and found["images"] == 2 and found["promise"] is None
    assert found["share"]["value"] == pytest.approx(2 / 8)
    assert found["missed"]["value"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["alarmed"]["value"] == pytest.approx((0 + 1 / 2) / 2)
    assert found["decided_wrong"]["value"] == pytest.approx(2 / 6)
    assert found["all_wrong"]["value"] == pytest.approx(4 / 8)
    assert all(found[key]["low"] <= found[key]["value"] <= found[key]["high"] for key in ("share", "missed", "alarmed"))


def test_a_broken_promise_is_said_and_a_held_one_is_not_doubted() -> None:
    rng = np.random.default_rng(0)
    rule = review_rule(*one_each(rng.uniform(0.5, 1, 60), rng.uniform(0, 0.5, 60)), 0.05)
    said = []
    for shift in (0.0, 0.5):
        labels, scores, subjects = one_each(rng.uniform(0.5, 1, 200) - shift, rng.uniform(0, 0.5, 200))
        review = judge_review(labels, scores, subjects, 0.5, rule.band(0.5), rule, Resampling(200))
        assert review is not None
        said += [words.promise(review), words.promise(review | {"is_elsewhere": True})]
        local = review | {"is_elsewhere": True, "promise": review["promise"] | {"on": "local"}}
        assert "new subjects of the laboratory that it was calibrated for: at most 5" in words.promise(local)
    whose = "on average over new subjects of the laboratory that the model comes from"
    assert said[0] == f"Promised {whose}: at most 5 of 100 on either side."
    assert said[2].endswith("at most 5 of 100 on either side, which does not hold here (missed).")
    elsewhere = f"The band promises at most 5 of 100 on either side, {whose}: it covers none of these images"
    assert said[1] == f"{elsewhere}." and said[3] == f"{elsewhere}, of which more are wrong (missed)."


def test_the_more_go_to_a_person_the_less_is_decided_wrongly() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    scores = np.clip(0.3 + 0.4 * labels + rng.normal(0, 0.2, 400), 0, 1).round(2)
    subjects = [f"s{k}" for k in rng.integers(0, 40, 400)]
    found = trade_off(labels, scores, subjects, 0.5)
    assert found is not None
    everything = judge_review(labels, scores, subjects, 0.5, (0.5, 0.5), None, Resampling(20))
    assert everything is not None
    assert (found["reviewed"][0], found["reviewed"][-1]) == (0.0, 1.0) and len(found["reviewed"]) <= 200
    for side in ("missed", "alarmed"):
        assert found[side][0] == pytest.approx(everything[side]["value"])
        assert found[side][-1] == pytest.approx(0.0) and (np.diff(found[side]) <= 1e-12).all()
    assert trade_off(np.ones(4, np.int64), np.ones(4), None, 0.5) is None


def test_a_band_from_before_rules_decides_a_certain_image_as_ever(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", threshold=0.9, review_band=(0.75, 1.0)).info
    assert [decide(old, p) for p in (0.7, 0.8, 0.999, 1.0)] == ["negative", "review", "review", "positive"]
    rule = ReviewRule(error=0.1, low=0.2, high=1.0, images=9, negative_units=3, positive_units=3)
    ruled = old.model_copy(update={"review": rule, "review_band": (0.2, 1.0)})
    assert decide(ruled, 1.0) == "review"
