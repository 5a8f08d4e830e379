"""The head that is fitted to features: scikit-learn's optimum, folded into an ordinary layer, the same on every run."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline.training.linear import _scale, choose_strength, fit_head, weigh
from pipeline.training.settings import Settings
from tests.training_settings import training_settings

BINARY = training_settings()
THREE = training_settings(task="multiclass", classes=("a", "b", "c"))


def drawn(classes: int, count: int = 240, views: int = 4) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of very different scales, one of them always 0, that tell the class with many errors."""
    rng = np.random.default_rng(0)
    targets = rng.choice(classes, count, p=[0.6, 0.4] if classes == 2 else [0.5, 0.3, 0.2])
    values = rng.normal(size=(count, views, 6)) + np.eye(6)[targets][:, None] + rng.normal(size=(count, 1, 6))
    values = values * [1.0, 100.0, 0.01, 5.0, 1.0, 0.0] + [0.0, 50.0, 1.0, -5.0, 0.0, 0.0]
    return values.astype(np.float32), targets


def by_sklearn(
    turns: NDArray[np.float32], targets: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Logits of the mean features, by scikit-learn alone."""
    flat = turns.reshape(-1, turns.shape[2]).astype(np.float64)
    mean, deviation = flat.mean(axis=0), flat.std(axis=0)
    deviation[deviation == 0] = 1.0
    labels = np.repeat(targets, turns.shape[1])
    fitted = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000)
    fitted.fit((flat - mean) / deviation, labels, sample_weight=weights[labels] / turns.shape[1])
    return np.asarray(fitted.decision_function((turns.mean(axis=1, dtype=np.float64) - mean) / deviation))


@pytest.mark.parametrize("settings", [BINARY, THREE], ids=["two classes", "three"])
def test_the_head_is_the_optimum_that_sklearn_finds(settings: Settings) -> None:
    turns, targets = drawn(len(settings.classes))
    head = fit_head(turns, targets, weigh(settings, targets), 0.1, settings)
    expected = by_sklearn(turns, targets, np.ones(len(settings.classes)))
    found = head(turns)
    assert found.shape == (len(targets), settings.outputs)
    assert np.abs(found.squeeze() - expected).max() < 1e-4


def test_weights_of_two_classes_move_no_probability_beyond_their_fit() -> None:
    turns, targets = drawn(2)
    costly = training_settings(costs=(5.0, 1.0))
    head = fit_head(turns, targets, weigh(costly, targets), 0.1, costly)
    weights = np.array([1.0, 5.0]) * len(targets) / (targets * 4.0 + 1.0).sum()
    expected = by_sklearn(turns, targets, weights) - np.log(5.0)
    assert np.abs(head(turns)[:, 0] - expected).max() < 1e-4


def test_drawing_classes_as_often_counts_as_weighing_them_so() -> None:
    _, targets = drawn(3)
    sample, loss = (weigh(training_settings(**three(balance)), targets) for balance in ("sample", "loss"))
    assert np.allclose(sample.of_class, loss.of_class, rtol=1e-5)
    assert np.allclose(sample.of_class * np.bincount(targets), len(targets) / 3, rtol=1e-5)


def three(balance: str) -> dict[str, object]:
    return {"task": "multiclass", "classes": ("a", "b", "c"), "balance": balance}


def test_two_classes_by_name_get_two_outputs_that_agree_with_one() -> None:
    turns, targets = drawn(2)
    named = training_settings(task="multiclass", classes=("a", "b"))
    one = fit_head(turns, targets, weigh(BINARY, targets), 0.1, BINARY)(turns)
    two = fit_head(turns, targets, weigh(named, targets), 0.1, named)(turns)
    assert two.shape == (len(targets), 2)
    assert np.abs((two[:, 1] - two[:, 0]) - one[:, 0]).max() < 1e-4


def test_the_strength_is_chosen_between_groups_and_not_within() -> None:
    """Features that know the group only: within groups they would ask for a weak penalty, between them for a strong."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 8)
    targets = (groups % 2).astype(np.int64)
    values = (rng.normal(size=(40, 60))[groups] + 0.01 * rng.normal(size=(320, 60))).astype(np.float32)
    weighed = weigh(BINARY, targets)
    between, said = choose_strength(values, targets, weighed, groups, BINARY)
    within, _ = choose_strength(values, targets, weighed, np.arange(320), BINARY)
    assert between < within / 30
    assert "by 5 folds" in said
    assert choose_strength(values, targets, weighed, groups, BINARY)[0] == between


def test_where_there_is_one_subject_the_usual_strength_is_taken() -> None:
    turns, targets = drawn(2)
    groups = np.zeros(len(targets), np.int64)
    strength, said = choose_strength(turns.mean(axis=1), targets, weigh(BINARY, targets), groups, BINARY)
    assert strength == 3e-3
    assert "too few subjects" in said


def test_a_feature_that_was_constant_but_for_rounding_says_nothing_of_images_where_it_is_not() -> None:
    turns, targets = drawn(2)
    turns[:, :, 5] = 1e-9 * targets[:, None]
    head = fit_head(turns, targets, weigh(BINARY, targets), 0.1, BINARY)
    other = turns.copy()
    other[:, :, 5] = 1.0
    assert np.abs(head(other) - head(turns)).max() < 0.01


def test_features_are_scaled_as_numpy_does_to_the_bit() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (400, 150))
    mean, deviation = _scale(values)
    assert (mean == values.mean(axis=0)).all() and (deviation == values.std(axis=0)).all()
