"""Is a model better than chance? An interval of the monitored metric that few subjects and many epochs cannot fool.

The epoch that is published was chosen as the best of several validations, so the best of many guesses must not pass
either: the limits are those of Bonferroni for `looks` validations. Images of one subject resemble each other:

- ROC-AUC: the variance of Obuchowski 1997 (doi:10.2307/2533958; DeLong's placements summed over each subject), and
  Student's t with one degree of freedom less than the effective subjects (Kish: (sum n)^2 / sum n^2 over the images of
  each subject) of the smaller side; never beyond what a value of exactly 1 or 0 has, Newcombe's limits for as many
  subjects, so that a mistake more does not make a model look better. None where labels could be dealt to so few
  subjects in less than a hundred ways for each look: luck would explain any order of them.
- Balanced accuracy: Clopper and Pearson's limits with C x the harmonic mean of the classes' effective subjects as
  trials, which holds even where all images of a subject get one answer.

Simulated in `tests/unit/test_chance.py`: of models that guess, at most one in twenty passes.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import rankdata, t

from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import Interval, exact_interval, subject_codes
from pipeline.model.chance import AgainstChance

CONFIDENCE = 0.95
METHODS = {  # in words, by metric
    "roc_auc": "Obuchowski's variance with Student's t, and Newcombe's limits",
    "balanced_accuracy": "Clopper and Pearson's limits, with effective {called} as trials",
}
_FEWEST_DEALS = 100  # ways to deal the labels, for each look
_FEWEST_EFFECTIVE = 1.5  # subjects of a side: hardly more than one says nothing of the spread between subjects


def against_chance(
    targets: Ints,
    classes: Floats,
    subjects: Sequence[str | None] | None,
    *,
    task: str,
    looks: int = 1,
    called: str = "subjects",
) -> AgainstChance:
    """Judge validation: targets int64 (N,), probabilities (N, C), `looks`: the validations this was chosen from."""
    answers = classes[:, 1] if task == "binary" else classes.argmax(axis=1)
    return _judged(targets, answers, classes.shape[1], subjects, task, looks, called)


def against_chance_of_present(
    targets: Ints, classes: Floats, subjects: Sequence[str | None] | None, *, task: str, called: str = "subjects"
) -> AgainstChance | None:
    """The same among the classes that images have: guessing need know no others, but the model may call an image one
    of them, which is wrong. None where the classes are fewer than two.
    """
    present, own = np.unique(targets, return_inverse=True)
    if len(present) < 2:
        return None
    if task == "binary":
        return _judged(own, classes[:, 1], 2, subjects, task, 1, called)
    calls = classes.argmax(axis=1)
    answers = np.where(np.isin(calls, present), np.searchsorted(present, calls), len(present))
    return _judged(own, answers, len(present), subjects, task, 1, called)


def _judged(
    targets: Ints, answers: NDArray[Any], count: int, subjects: Sequence[str | None] | None, task: str, looks: int,
    called: str,
) -> AgainstChance:  # fmt: skip
    """Of targets (N,) among `count` classes; answers (N,): of two the probability of the second, of more the class."""
    codes, unit = subject_codes(subjects, len(targets))
    sides = [codes[targets == k] for k in range(count)]
    missing = [k for k, side in enumerate(sides) if not len(side)]
    binary = task == "binary"
    metric, chance = ("roc_auc", 0.5) if binary else ("balanced_accuracy", 1 / len(sides))
    value, low, high, untold = math.nan, math.nan, math.nan, "a class has no image"
    if not missing:
        tail = (1 - CONFIDENCE) / 2 / looks
        judge = _area if binary else _recall
        value, low, high, untold = judge(targets, answers, codes, sides, tail)
    told = not math.isnan(low)
    return AgainstChance(
        metric=metric,
        value=None if math.isnan(value) else value,
        chance=chance,
        low=low if told else None,
        high=high if told else None,
        confidence=CONFIDENCE,
        unit="subject" if unit == "subject" else "image",
        units=len(np.unique(codes)),
        called=called,
        looks=looks,
        untold="" if told else untold,
    )


def effective(codes: Ints) -> float:
    """How many subjects of equal size tell as much as these: (sum n)^2 / sum n^2 (Kish 1965)."""
    counts = np.unique(codes, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


_Judged = tuple[float, float, float, str]  # value, limits (NaN where untold), why untold


def _area(targets: Ints, scores: Floats, codes: Ints, sides: Sequence[Ints], tail: float) -> _Judged:
    value, spread = _clustered_area(targets == 1, scores, codes)
    smaller = min(effective(side) for side in sides)
    looks = (1 - CONFIDENCE) / 2 / tail
    if smaller < _FEWEST_EFFECTIVE or deals(targets, codes) < _FEWEST_DEALS * looks:
        negatives, positives = (len(np.unique(side)) for side in sides)
        return value, math.nan, math.nan, f"too few to tell luck from skill: {positives} positive, {negatives} negative"
    edge = _edge(int(effective(sides[0])), int(effective(sides[1])), tail)
    margin = float(t.ppf(1 - tail, smaller - 1)) * spread
    low, high = min(edge, max(0.0, value - margin)), max(1 - edge, min(1.0, value + margin))
    return value, low, high, ""


def _edge(negatives: int, positives: int, tail: float) -> float:
    """Lower limit of a ROC-AUC of exactly 1, from how many of each side there are; of one of 0 the upper is 1 less it.

    Method 5 of Newcombe, 2006 (doi:10.1002/sim.2324): the value whose standard error by Hanley & McNeil, with the
    mean number of both sides in place of each, reaches the one that was seen.
    """
    z = NormalDist().inv_cdf(1 - tail)
    others = (positives + negatives) / 2 - 1

    def gap(shortfall: float) -> float:  # (1 - theta)^2 = z^2 var(theta), divided by 1 - theta
        theta = 1 - shortfall
        spread = 1 + others * (shortfall / (2 - theta) + theta / (1 + theta))
        return shortfall - z * z * theta * spread / (positives * negatives)

    return 1 - float(brentq(gap, 0.0, 1.0))


def deals(targets: Ints, codes: Ints) -> float:
    """In how many ways labels 0/1 (N,) could lie: within each subject that has both, among those that have one."""
    positives = np.bincount(codes, targets)
    images = np.bincount(codes)
    mixed = (positives > 0) & (positives < images)
    one_sided, sick = float((~mixed).sum()), float((positives[~mixed] > 0).sum())
    among = gammaln(one_sided + 1) - gammaln(sick + 1) - gammaln(one_sided - sick + 1)
    n, k = images[mixed], positives[mixed]
    within = (gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)).sum()
    return math.exp(min(float(among + within), 100.0)) * (1 + 1e-9)


def _clustered_area(positive: NDArray[np.bool_], scores: Floats, codes: Ints) -> tuple[float, float]:
    """ROC-AUC and its standard error over clusters."""
    ranks = rankdata(scores)
    ahead = (ranks[positive] - rankdata(scores[positive])) / (~positive).sum()  # of each positive: negatives below it
    behind = 1 - (ranks[~positive] - rankdata(scores[~positive])) / positive.sum()  # of each negative: positives above
    value = float(ahead.mean())
    clusters = int(codes.max()) + 1
    of_positive = np.bincount(codes[positive], ahead - value, clusters) / positive.sum()
    of_negative = np.bincount(codes[~positive], behind - value, clusters) / (~positive).sum()

    def corrected(squares: Floats, count: int) -> float:
        return float(squares.sum()) * count / max(1, count - 1)

    variance = (
        corrected(of_positive**2, len(np.unique(codes[positive])))
        + corrected(of_negative**2, len(np.unique(codes[~positive])))
        + corrected(2 * of_positive * of_negative, clusters)
    )
    return value, math.sqrt(max(0.0, variance))


def _recall(targets: Ints, calls: Ints, codes: Ints, sides: Sequence[Ints], tail: float) -> _Judged:
    value = float(np.mean([(calls[targets == k] == k).mean() for k in range(len(sides))]))
    found = balanced_limits(value, sides, 1 - 2 * tail)
    return value, found.low, found.high, ""


def balanced_limits(value: float, sides: Sequence[Ints], confidence: float = CONFIDENCE) -> Interval:
    """A balanced accuracy with the limits above; `sides`: the subject's number of each image, an array a class."""
    trials = len(sides) ** 2 / sum(1 / effective(side) for side in sides)
    return exact_interval(min(value * trials, trials), trials, confidence)
