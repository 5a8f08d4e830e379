"""Differences of two models on the same images, with limits: the method of `adverse`, paired over subjects.

A sample weighs the subjects alike for both models. For the lower limit of 'first less second' the subject that is added
is one whose images the first answers all wrongly and the second all rightly; for the upper limit the other way round.
For a mean over subjects of one size this is the bound of Gaffke (2005) of a mean in -1..1. A difference is tested by
these limits; that of ROC-AUCs, where each subject has one image and there are `FEWEST_DELONG` of each side, by DeLong's
test, which finds more: its false alarms keep to their rate, while its limits hold a true difference too seldom
(`tests/paired_coverage.py`).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.evaluation.adverse import paired_limits, samples
from pipeline.evaluation.comparison import delong
from pipeline.evaluation.definitions import Floats
from pipeline.evaluation.intervals import Resampling, called_units
from pipeline.evaluation.limits import Answers, Means, Parts, binary_parts, multiclass_parts

METHOD = "Bayesian bootstrap over {units}, paired, one adverse {unit} added"
FEWEST_DELONG = 20
_BEYOND = 4  # samples, less one, that may lie beyond 0 for a real difference of any pair; of 1, luck would decide


@dataclass(frozen=True)
class Difference:
    """A metric of the first model less that of the second. Limits and p are NaN where they cannot be told."""

    value: float
    low: float
    high: float
    p: float  # two-sided, of no difference
    test: str  # that p is of


def paired_differences(
    metrics: Sequence[str], first: "Side", second: "Side", resampling: Resampling, called: str = "subjects"
) -> dict[str, Difference]:
    """By name, of metrics that both sides have. Both are of the same images of the same subjects, in one order."""
    one, other = first.answers, second.answers
    if not (np.array_equal(one.truth, other.truth) and np.array_equal(one.codes, other.codes)):
        raise ValueError("two models can be compared on the same images only")
    wanted: set[Hashable] = set(metrics)
    drawn = [samples(*_needed(side, wanted, one.units, resampling)) for side in (first, second)]
    units = called_units(one.unit, called)
    method = METHOD.format(units=units, unit=units.removesuffix("s"))
    found = {}
    for name in metrics:
        value = first.points[name] - second.points[name]
        if name not in drawn[0] or name not in drawn[1] or np.isnan(value):
            found[name] = Difference(value, np.nan, np.nan, np.nan, method)
            continue
        found[name] = _by_samples(value, drawn[0][name], drawn[1][name], resampling.confidence, method)
        if name == "roc_auc" and is_for_delong(one, called):
            assert one.scores is not None and other.scores is not None, "two classes have scores"
            error = delong.standard_error(one.truth == 1, one.scores, other.scores)
            found[name] = replace(found[name], p=delong.p_value(value, error), test=delong.METHOD)
    return found


@dataclass(frozen=True)
class Side:
    """What one model said of the images, and its metrics by name."""

    answers: Answers
    points: Mapping[str, float]
    probabilities: Floats | None = None  # (N, C), of more than two classes


def _needed(
    side: Side, wanted: set[Hashable], units: int, resampling: Resampling
) -> tuple[Parts, int, Resampling, Means]:
    """What `samples` takes, of the metrics that are asked for alone."""
    parts, means = (
        binary_parts(side.answers) if side.probabilities is None else multiclass_parts(side.answers, side.probabilities)
    )
    means = {name: of for name, of in means.items() if name in wanted}
    kept = wanted.union(*means.values())
    return {name: part for name, part in parts.items() if name in kept}, units, resampling, means


def is_for_delong(answers: Answers, called: str = "subjects") -> bool:
    """Whether each image is of a known subject of its own, and enough are of either side for a normal distribution.

    Images of unknown subjects may be of one, and blocks of file numbers too.
    """
    sick, known = int(answers.truth.sum()), answers.subjects is not None and all(answers.subjects)
    if called != "subjects" or not known:
        return False
    return answers.units == len(answers.truth) and min(sick, len(answers.truth) - sick) >= FEWEST_DELONG


def enough_samples(resampling: Resampling, pairs: int) -> Resampling:
    """As many samples as asked for, or more: the p of `_by_samples` is never below 2 / (R + 1), and Holm's method
    multiplies it by the number of pairs, so that of too few samples no difference could ever be real.
    """
    level = 1 - resampling.confidence
    fewest = math.ceil(_BEYOND * 2 * pairs / level - 1e-6)
    return replace(resampling, replicates=max(resampling.replicates, fewest))


def _by_samples(value: float, first: Floats, second: Floats, confidence: float, method: str) -> Difference:
    """From samples (2, R) with an adverse and with a helpful subject; p is the level at which 0 leaves the limits."""
    lows, highs = first[0] - second[1], first[1] - second[0]
    low, high = paired_limits(first, second, confidence)
    beyond = min(int((lows <= 0).sum()), int((highs >= 0).sum()))
    p = min(1.0, 2 * (1 + beyond) / (1 + len(lows)))
    return Difference(value, min(low, value), max(high, value), p, method)
