"""Models that guess are not taken for better than chance, whatever subjects they were measured on; useful ones are."""

import math

import numpy as np
import pytest

from pipeline.evaluation.chance import against_chance, deals
from pipeline.evaluation.definitions import rank_metrics
from pipeline.model.chance import AgainstChance
from pipeline.model.prediction import probabilities


def best_guess(kind: str, subjects: int, looks: int, *, effect: float, alike: float, seed: int) -> AgainstChance:
    """Judge the best of `looks` epochs whose logits wander: `alike` of their variance is shared within a subject.

    `kind` pure: each subject has one class; mixed: both; images: nobody knows the subjects.
    """
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(subjects), 1 if kind == "images" else 15)
    share = rng.beta(1.5, 1.5, subjects)[of]
    truth = (rng.random(len(of)) < share).astype(np.int64) if kind == "mixed" else of % 2
    common, own, found = rng.normal(size=subjects), rng.normal(size=len(of)), []
    for _ in range(looks):
        common = 0.8 * common + 0.6 * rng.normal(size=subjects)
        own = 0.8 * own + 0.6 * rng.normal(size=len(of))
        logits = math.sqrt(alike) * common[of] + math.sqrt(1 - alike) * own + effect * truth
        found.append((float(rank_metrics(truth == 1, logits)(np.ones((1, len(of))))[0][0]), logits))
    logits = max(found, key=lambda pair: pair[0])[1]
    names = [None if kind == "images" else str(number) for number in of]
    return against_chance(truth, probabilities(logits[:, None]), names, task="binary", looks=looks)


@pytest.mark.parametrize("alike", [0.1, 0.9])
@pytest.mark.parametrize(
    ("kind", "subjects"), [("pure", 16), ("pure", 40), ("mixed", 6), ("mixed", 12), ("images", 32)]
)
def test_the_best_of_many_guesses_is_not_better_than_chance(kind: str, subjects: int, alike: float) -> None:
    for looks in (1, 12):
        judged = [best_guess(kind, subjects, looks, effect=0, alike=alike, seed=seed) for seed in range(120)]
        assert sum(one.is_shown for one in judged) <= 0.05 * 120 + 4  # 4: two standard errors of 120 draws


@pytest.mark.parametrize(("kind", "subjects"), [("pure", 16), ("mixed", 10), ("images", 40)])
def test_a_useful_model_is_shown_to_be_better(kind: str, subjects: int) -> None:
    judged = [best_guess(kind, subjects, 10, effect=2, alike=0.3, seed=seed) for seed in range(30)]
    assert sum(one.is_shown for one in judged) >= 24


def test_so_few_subjects_of_one_class_each_tell_nothing_even_in_perfect_order() -> None:
    truth = np.repeat([0, 0, 0, 1, 1, 1], 20)
    subjects = [str(number) for number in np.repeat(np.arange(6), 20)]
    judged = against_chance(truth, probabilities(truth[:, None] * 8.0 - 4), subjects, task="binary")
    assert (judged.value, judged.low, judged.is_shown, judged.includes_chance) == (1.0, None, False, False)
    assert "3 positive, 3 negative" in str(judged) and "not shown to be better than chance" in str(judged)


def test_ways_to_deal_labels_are_those_within_and_among_subjects() -> None:
    assert deals(np.array([0, 0, 1, 1]), np.arange(4)) == pytest.approx(6)
    assert deals(np.array([0, 0, 1, 1, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 2, 2])) == pytest.approx(2 * 3)


def test_many_classes_are_judged_by_balanced_accuracy_over_subjects() -> None:
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(24), 10)
    truth, names = of % 4, [str(number) for number in of]
    guesses = against_chance(truth, probabilities(rng.normal(size=(240, 4))), names, task="multiclass", looks=10)
    right = against_chance(
        truth, probabilities(np.eye(4)[truth] * 3 + rng.normal(size=(240, 4))), names, task="multiclass", looks=10
    )
    assert guesses.includes_chance and guesses.chance == 0.25 and guesses.metric == "balanced_accuracy"
    assert right.is_shown and right.units == 24 and "over 24 subjects, the best of 10 validations" in str(right)


def test_one_answer_to_all_images_of_a_subject_is_one_trial() -> None:
    """Four subjects, one a class, each of a hundred images: three right at once is luck of four trials, not of 400."""
    of = np.repeat(np.arange(4), 100)
    said = np.where(of == 3, 0, of)
    judged = against_chance(of, np.eye(4)[said], [str(number) for number in of], task="multiclass")
    assert judged.value == 0.75 and judged.includes_chance


def test_a_class_without_images_leaves_it_open() -> None:
    judged = against_chance(np.array([1, 1]), np.array([[0.2, 0.8], [0.3, 0.7]]), None, task="binary")
    assert judged.value is None and not judged.is_shown and not judged.includes_chance
    assert "a class has no image" in str(judged)
