"""Models that guess are not taken for better than chance, whatever subjects they were measured on; useful ones are."""

import math

import numpy as np
import pytest

from pipeline.evaluation.chance import METHODS, against_chance, against_chance_of_present, deals
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


@pytest.mark.parametrize("turned", [False, True])
def test_a_perfect_ranking_has_the_limits_of_newcombe(turned: bool) -> None:
    """Newcombe 2006, method 5: the lower limit is where (1 - theta)^2 = z^2 var(theta), ten subjects a side."""
    truth = np.repeat(np.arange(20) % 2, 2)
    scores = np.column_stack([1 - truth, truth]).astype(float)[:, :: -1 if turned else 1]
    judged = against_chance(truth, scores, [str(k // 2) for k in range(40)], task="binary")
    assert judged.low is not None and judged.high is not None and judged.value == (0.0 if turned else 1.0)
    theta = 1 - judged.high if turned else judged.low
    spread = 1 + 9 * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    assert (1 - theta) ** 2 == pytest.approx(1.959964**2 * theta * (1 - theta) * spread / 100, rel=1e-4)
    assert (judged.low == 0.0) if turned else (judged.high == 1.0)


def test_a_mistake_does_not_make_a_model_look_better() -> None:
    truth = np.arange(40) % 2
    subjects = [str(k) for k in range(40)]
    right = np.column_stack([1 - truth, truth]).astype(float)
    wrong = right.copy()
    wrong[0] = [0.4, 0.6]  # below all positives still
    wrong[1] = [0.45, 0.55]  # now below that one
    perfect, flawed = (against_chance(truth, each, subjects, task="binary") for each in (right, wrong))
    assert perfect.low is not None and flawed.low is not None
    assert flawed.value is not None and flawed.value < 1.0 and flawed.low <= perfect.low


def test_each_metric_that_is_judged_has_a_method_with_a_name() -> None:
    truth = np.arange(40) % 2
    scores = np.column_stack([1 - truth, truth]).astype(float)
    for task in ("binary", "multiclass"):
        judged = against_chance(truth, scores, None, task=task)
        assert "limits" in METHODS[judged.metric].format(called="images")


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


def test_a_class_that_no_image_has_can_be_called_and_is_wrong() -> None:
    """A network of three classes that calls all of them the third, among images of the other two."""
    targets = np.arange(100) % 2
    wrong = np.full((100, 3), 0.2)
    wrong[np.arange(100), targets] = 0.3  # the second best is right each time
    wrong[:, 2] = 0.5
    judged = against_chance_of_present(targets, wrong, None, task="multiclass")
    assert judged is not None and judged.value == 0 and not judged.is_shown
    assert judged.chance == 0.5, "guessing need know no class but those two"
    right = against_chance_of_present(targets, wrong * [1, 1, 0], None, task="multiclass")
    assert right is not None and right.value == 1 and right.is_shown
    last = against_chance_of_present(targets + 1, np.roll(wrong, 1, axis=1), None, task="multiclass")
    assert last is not None and (last.value, last.low, last.high) == (judged.value, judged.low, judged.high)
    assert against_chance_of_present(np.zeros(9, np.int64), wrong[:9], None, task="multiclass") is None
