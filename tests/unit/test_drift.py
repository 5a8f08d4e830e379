"""Reference statistics: distances against scipy's, limits that new subjects stay within, and what follows from them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from pipeline.evaluation import drift
from pipeline.model.bundle import read_bundle
from pipeline.model.drift import (
    FEWEST_IMAGES,
    LEVELS,
    QUANTILES,
    ReferenceStatistics,
    Shift,
    Statistic,
    Verdict,
    shifts,
    told,
    verdict,
)
from tests.bundles import make_bundle


def laboratory(
    subjects: int, images: int, between: float, seed: int = 0
) -> tuple[dict[str, np.ndarray], list[str | None]]:
    """Brightness and sharpness of images of subjects whose means differ by `between`, of images within one by 1."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(subjects), images)
    values = {
        name: middle + scale * (between * rng.normal(size=subjects)[owner] + rng.normal(size=len(owner)))
        for name, middle, scale in (("brightness", 70.0, 5.0), ("sharpness", -0.5, 0.2))
    }
    return values, [f"s{number}" for number in owner]


def fitted(values: Mapping[str, np.ndarray], subjects: list[str | None]) -> ReferenceStatistics:
    found = drift.fit(values, subjects, "subjects")
    assert found is not None
    return found


@given(st.integers(0, 1000), st.floats(-8, 8), st.integers(200, 600))
def test_a_distance_is_wassersteins_in_spreads(seed: int, moved: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    own, here = rng.normal(60, 4, 500), rng.normal(60 + 4 * moved, 5, count)
    known = fitted({"brightness": own}, [None] * 500).statistics["brightness"]
    assert known.distance(here) == pytest.approx(wasserstein_distance(own, here) / own.std(), abs=0.12)


def test_an_image_that_does_not_show_a_figure_is_left_out_of_it() -> None:
    values, subjects = laboratory(20, 10, 0.5)
    with_blank = {name: np.concatenate([found, [np.nan] * 3]) for name, found in values.items()}
    known = fitted(with_blank, [*subjects, "s0", "s0", "s0"])
    assert known.images == 203 and known.subjects == 20
    assert known.statistics["sharpness"].shown == pytest.approx(200 / 203, abs=1e-4)
    assert np.isnan(known.statistics["sharpness"].distance(np.array([np.nan])))


def test_what_few_images_show_has_no_distance_and_what_hardly_any_shows_is_missing() -> None:
    known = fitted(*laboratory(20, 10, 0.5))

    def shift(count: int, others: int, of: ReferenceStatistics = known) -> Shift:
        far = np.r_[np.full(count, 40.0), np.full(others, np.nan)]  # far beyond any limit
        return shifts(of, {"sharpness": far}, 1)[0]

    assert shift(20, 0).is_far_beyond
    for count in (0, 1, 19):
        found = shift(count, 500)
        assert found.is_missing and found.is_beyond and not found.is_far_beyond and np.isnan(found.distance)
        assert verdict([found], 500 + count, None) is Verdict.DIFFERS, "no single image decides"
    assert told(shift(0, 500)) == "fine against coarse detail: cannot be told, no image shows it, most at home do"
    few = shift(19, 2)
    assert not few.is_beyond and verdict([few], 21, None) is Verdict.ALIKE
    assert told(few) == "fine against coarse detail: cannot be told, 19 images show it, 20 are needed"
    rare = known.statistics["sharpness"].model_copy(update={"shown": 0.2})
    assert not shift(0, 500, known.model_copy(update={"statistics": {"sharpness": rare}})).is_beyond
    assert few.record()["distance"] is None and few.record()["is_missing"] is False


@pytest.mark.parametrize(("size", "images"), [(1, 30), (5, 20), (10, 20)])
def test_new_subjects_of_the_laboratory_stay_within_the_limits_and_another_laboratory_does_not(
    size: int, images: int
) -> None:
    inside = []
    for seed in range(6):
        known = fitted(*laboratory(60, 12, 0.7, seed))
        new = (laboratory(size, images, 0.7, 1000 * (seed + 1) + number)[0] for number in range(30))
        inside += [not any(shift.is_beyond for shift in shifts(known, values, size)) for values in new]
    assert np.mean(inside) >= 0.9
    elsewhere = laboratory(size, 40, 0.7, 9)[0]
    first = shifts(known, elsewhere | {"brightness": elsewhere["brightness"] - 15}, size)[0]
    assert first.name == "brightness" and first.is_beyond


def test_limits_widen_with_what_subjects_differ_by_and_narrow_with_their_number() -> None:
    alike, different = (fitted(*laboratory(60, 12, between)).statistics["brightness"] for between in (0.1, 2.0))
    assert alike.limit(1) < different.limit(1)
    assert different.limit(1) > different.limit(5) > different.limit(20)
    assert different.limit(3) == different.limit(2) and different.limit(99) == different.limit(10)


def test_without_subjects_the_limit_is_an_assumption_and_says_so() -> None:
    values, _ = laboratory(30, 10, 0.5)
    known = fitted(values, [None] * 300)
    assert known.subjects == 0 and "an assumption (no subjects known)" in known.rests_on
    few = fitted(values, [f"s{k % 4}" for k in range(300)])
    assert "4 subjects, too few" in few.rests_on
    assert {found.limit(1) for found in few.statistics.values()} == {drift.UNKNOWN_LIMIT}


def test_too_few_images_have_no_statistics() -> None:
    values, subjects = laboratory(13, 3, 0.5)
    assert drift.fit(values, subjects, "subjects") is None


def shift(distance: float, name: str = "brightness", here: float = 60.0, at_home: float = 75.0) -> Shift:
    return Shift(name, 100, distance, 1.0, 1.5, here, at_home)


@pytest.mark.parametrize(
    ("distances", "images", "ood_share", "expected"),
    [
        ([0.9, 0.2], 100, 0.02, Verdict.ALIKE),
        ([0.9, 0.2], 100, None, Verdict.ALIKE),
        ([1.1, 0.2], 100, 0.02, Verdict.DIFFERS),
        ([0.5, 2.9], 100, 0.02, Verdict.DIFFERS),  # within twice the limit of a single subject
        ([0.5, 3.1], 100, 0.02, Verdict.TOO_DIFFERENT),
        ([0.5, 0.5], 100, 0.35, Verdict.DIFFERS),
        ([0.5, 0.5], 30, 0.3, Verdict.ALIKE),  # 9 of 30 may be luck
        ([0.5, 0.5], 100, 0.6, Verdict.TOO_DIFFERENT),
        ([9.0, 9.0], FEWEST_IMAGES - 1, 1.0, Verdict.UNKNOWN),
        ([float("nan")], 100, 0.0, Verdict.ALIKE),
    ],
)
def test_what_follows(distances: list[float], images: int, ood_share: float | None, expected: Verdict) -> None:
    assert verdict([shift(distance) for distance in distances], images, ood_share) is expected


def test_grain_alone_is_never_too_different() -> None:
    assert verdict([shift(9.0, "grain")], 100, 0.0) is Verdict.DIFFERS


@pytest.mark.parametrize(
    ("name", "here", "at_home", "words"),
    [
        ("brightness", 60.0, 75.0, "darker by 15: lightness 60 of 100, at home 75"),
        ("brightness", 80.0, 75.0, "brighter by 5"),
        ("redness", 3.0, 13.0, "greener by 10"),
        ("yellowness", 9.0, 4.0, "yellower by 5"),
        ("saturation", 10.0, 20.0, "paler"),
        ("white_share", 0.2, 0.55, "less bare ground: 20 % of an image, at home 55 %"),
        ("sharpness", -1.0, 0.0, "blurred: 50 % of the fine detail"),
        ("grain", 2.0, 0.0, "more grain, 400 % of that at home: noise"),
        ("grain", -1.0, 0.0, "less grain, 50 % of that at home: compressed or smoothed"),
        ("size", -1.0, -1.585, "cells look 50 % larger"),
        ("ood_score", 2.0, 1.0, "farther: 2.00, at home 1.00"),
    ],
)
def test_words_say_what_differs_which_way_and_by_how_much(name: str, here: float, at_home: float, words: str) -> None:
    assert words in told(shift(3.0, name, here, at_home), "cell")


def test_a_bundle_keeps_them_without_becoming_another_model(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "m")
    known = fitted(*laboratory(20, 10, 0.5))
    assert read_bundle(bundle.uri).info.reference_statistics is None
    changed = bundle.update(reference_statistics=known)
    assert read_bundle(bundle.uri).info.reference_statistics == known
    assert changed.info.identity() == bundle.info.identity()


def test_a_damaged_statistic_is_refused() -> None:
    with pytest.raises(ValueError, match="quantiles"):
        Statistic(quantiles=(0.0,) * (QUANTILES - 1), spread=1.0, limits={1: 1.0})


def test_a_statistic_that_few_subjects_show_has_the_assumed_limit_and_all_limits_are_numbers() -> None:
    values, subjects = laboratory(20, 30, 0.5)
    seen = np.full(len(subjects), np.nan)
    seen[::10] = values["brightness"][::10]  # three images of each subject: none shows enough of it
    known = fitted(values | {"ood_score": seen}, subjects)
    assert known.statistics["ood_score"].limits == {1: drift.UNKNOWN_LIMIT}
    assert set(known.statistics["brightness"].limits) == {1, 2, 5, 10}
    assert all(np.isfinite(list(each.limits.values())).all() for each in known.statistics.values())


def test_where_no_subject_alone_shows_enough_none_is_judged_by_sets_of_several() -> None:
    values, subjects = laboratory(30, 4, 0.5)
    assert all(each.limits == {1: drift.UNKNOWN_LIMIT} for each in fitted(values, subjects).statistics.values())


@given(st.integers(0, 2**32 - 1), st.integers(1, 700), st.sampled_from([np.float32, np.float64]), st.floats(-6, 6))
def test_quantiles_of_values_in_order_are_numpys_to_the_bit(
    seed: int, count: int, kind: type[np.floating], scale: float
) -> None:
    rng = np.random.default_rng(seed)
    values = np.sort((rng.normal(size=count).round(2) * 10**scale).astype(kind))  # rounded, so that some are equal
    found, expected = drift.quantiles_of(values), np.quantile(values, LEVELS)
    assert found.dtype == expected.dtype and (found == expected).all()
