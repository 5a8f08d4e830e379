"""Counts of what a model was shown: those of several processes add up to what one would have counted."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.appearance import NAMES
from pipeline.images.load import Preprocessing
from pipeline.model.bundle import BundleInfo
from pipeline.model.drift import LEVELS, OOD_SCORE, ReferenceStatistics, Statistic, Verdict, shift_of
from pipeline.model.drift_counts import Counted, DriftCounts
from pipeline.model.prediction import Prediction
from tests.searches import search

_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def statistic(values: np.ndarray) -> Statistic:
    quantiles = tuple(np.quantile(values, LEVELS).tolist())
    return Statistic(quantiles=quantiles, spread=float(values.std()), limits={1: 0.8, 5: 0.5})


def info(scores: np.ndarray, threshold: float = 0.5, **changes: object) -> BundleInfo:
    """Of a model whose held-out probabilities are `scores`."""
    home = np.random.default_rng(9)
    statistics = {name: statistic(home.normal(60, 10, 4000)) for name in NAMES}
    statistics[OOD_SCORE] = statistic(home.gamma(9, 0.1, 4000))
    known = {"quantiles": {f"{q:g}": float(np.quantile(scores, q)) for q in _QUANTILES}, "count": len(scores)}
    given = {
        "name": "n", "version": "v", "architecture": "plain-cnn", "task": "binary", "classes": ("negative", "positive"),
        "positive_classes": ("positive",), "input_size": 64, "preprocessing_digest": Preprocessing(64).digest(),
        "weights_sha256": "w", "graph_sha256": "g", "threshold": threshold, "reference_scores": known,
        "reference_statistics": ReferenceStatistics(images=4000, subjects=40, statistics=statistics),
    }  # fmt: skip
    return BundleInfo(**(given | changes))  # type: ignore[arg-type]


def said(values: np.ndarray, ood: np.ndarray | None = None, limit: float = 2.0) -> list[Prediction]:
    scores = np.ones(len(values)) if ood is None else ood
    return [
        Prediction((1 - v, v), float(np.float32(v)), "positive", "positive", score, score > limit)
        for v, score in zip(values.tolist(), scores.tolist(), strict=True)
    ]


@search(60)
@given(st.integers(0, 10_000), st.floats(-30, 30), st.floats(0.2, 5), st.integers(20, 400))
def test_a_distance_of_counts_is_that_of_the_values(seed: int, moved: float, scale: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    known = statistic(rng.normal(0, 1, 500))
    values = rng.normal(moved, scale, count)
    counted = Counted(known)
    counted.add(np.append(values, np.nan))
    found, exact = counted.shift(OOD_SCORE, 1), shift_of(OOD_SCORE, known, values, 1)
    assert found is not None and found.images == count == exact.images
    within = 0.01 + 0.01 * exact.distance + 3 * scale / count  # steps, and quantiles of few values
    assert found.distance == pytest.approx(exact.distance, abs=within)
    assert found.is_beyond == exact.is_beyond or abs(exact.distance - exact.limit) < within


def test_values_far_outside_are_counted_and_few_are_not_judged() -> None:
    counted = Counted(statistic(np.random.default_rng(0).normal(0, 1, 500)))
    counted.add(np.array([1e9, -1e9, np.inf, np.nan]))
    assert counted.images == 2 and counted.shift(OOD_SCORE, 1) is None
    counted.add(np.full(100, 40.0))
    shift = counted.shift(OOD_SCORE, 1)
    assert shift is not None and shift.here == pytest.approx(40, rel=0.01) and shift.is_far_beyond


@search(30)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_counts_of_several_processes_add_up_also_by_way_of_json(seed: int, processes: int) -> None:
    rng = np.random.default_rng(seed)
    of = info(rng.beta(2, 5, 500))
    values, ood = rng.beta(2, 3, 120), rng.gamma(9, 0.1, 120)
    looks = rng.normal(60, 12, (120, len(NAMES))).astype(np.float32)
    whole = DriftCounts.of(of)
    whole.add(said(values, ood), looks)
    parts = []
    for rows in np.array_split(rng.permutation(120), processes):
        one = DriftCounts.of(of)
        for some in np.array_split(rows, 3):
            one.add(said(values[some], ood[some]), looks[some])
        parts.append(DriftCounts.unpacked(of, json.loads(json.dumps(one.packed()))))
    together = parts[0]
    for one in parts[1:]:
        together = together.added(one)
    assert together.probability == pytest.approx(whole.probability)
    mine, all_of_them = together.packed(), whole.packed()
    assert {**mine, "probability": 0} == {**all_of_them, "probability": 0}
    assert together.psi() == whole.psi() and together.shifts() == whole.shifts()
    assert together.verdict(5) == whole.verdict(5)


def test_counts_of_two_models_do_not_add_up() -> None:
    scores = np.random.default_rng(0).beta(2, 5, 500)
    one, other = DriftCounts.of(info(scores)), DriftCounts.of(info(scores, threshold=0.4))
    with pytest.raises(ValueError, match="do not add up"):
        one.added(other)
    with pytest.raises(ValueError, match="counts of model"):
        DriftCounts.unpacked(info(scores), other.packed())


def test_the_stability_index_is_that_of_its_formula_and_small_where_nothing_changed() -> None:
    rng = np.random.default_rng(1)
    home = rng.beta(2, 5, 4000)
    of = info(home)
    counts = DriftCounts.of(of)
    counts.add(said(np.array([0.001] * 50 + [0.999] * 50)))  # below the first and above the last edge
    here = np.array([50, *[0.5] * 8, 50]) / 104
    there = np.diff([0, *_QUANTILES[1:-1], 1])
    assert counts.psi() == pytest.approx(float(((here - there) * np.log(here / there)).sum()))
    same, moved = [], []
    for _ in range(60):
        for found, values in ((same, rng.beta(2, 5, 300)), (moved, rng.beta(3, 4, 300))):
            one = DriftCounts.of(of)
            one.add(said(values))
            found.append(one.psi() or 0.0)
            chance = one.psi_by_chance() or 0.0
    assert np.mean(same) == pytest.approx(chance, rel=0.35) and min(moved) > 0.25


def test_a_model_that_is_sure_of_most_images_has_fewer_bins_and_no_drift_at_home() -> None:
    """Half of the held-out images have one and the same probability; so have those that are shown."""
    rng = np.random.default_rng(2)
    home = np.where(rng.random(4000) < 0.5, 1.0, rng.beta(2, 2, 4000))
    counts = DriftCounts.of(info(home))
    assert len(counts.edges) < 9 and sum(counts.expected) == pytest.approx(1) and min(counts.expected) > 0
    counts.add(said(np.where(rng.random(2000) < 0.5, 1.0, rng.beta(2, 2, 2000))))
    psi, chance = counts.psi(), counts.psi_by_chance()
    assert psi is not None and chance is not None and psi < 5 * chance < 0.05


def test_what_follows_from_the_counts_is_what_a_transfer_check_says() -> None:
    rng = np.random.default_rng(3)
    home = rng.beta(2, 5, 500)
    alike, stained, strange, few = (DriftCounts.of(info(home)) for _ in range(4))
    looks = rng.normal(60, 10, (300, len(NAMES)))
    alike.add(said(rng.beta(2, 5, 300), rng.gamma(9, 0.1, 300)), looks)
    stained.add(said(rng.beta(2, 5, 300), rng.gamma(9, 0.1, 300)), looks + 60)
    strange.add(said(rng.beta(2, 5, 300), rng.gamma(9, 0.1, 300) + 9))
    few.add(said(rng.beta(2, 5, 19)), looks[:19])
    assert alike.verdict() is Verdict.ALIKE and stained.verdict() is Verdict.TOO_DIFFERENT
    assert strange.verdict() is Verdict.TOO_DIFFERENT and strange.flagged == strange.told == 300
    assert few.verdict() is Verdict.UNKNOWN and few.psi() is None and few.shifts() == []


def test_an_older_bundle_tells_less() -> None:
    older = DriftCounts.of(info(np.array([0.5]), reference_scores={}, reference_statistics=None))
    older.add(said(np.linspace(0, 1, 50)))
    assert older.psi() is None and older.shifts() == [] and older.images == 50
    older.add([])
    assert older.images == 50
