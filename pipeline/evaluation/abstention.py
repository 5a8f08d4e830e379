"""Which images to leave to a person so that an error holds for new subjects, and what that comes to on a split.

Split conformal prediction for each class apart (Vovk 2012, arXiv:1209.2673), in the form for data of two layers: an
image weighs 1 by the images that its subject has of the class, and one subject more, all wrong, stands for the new one
(Lee, Barber & Willett 2023, arXiv:2306.06342, after Dunn, Wasserman & Ramdas 2023, arXiv:1809.07441). Where new
subjects are like those of the scores, an image of one is on the wrong side of its cut with at most the stated
probability, over new subjects and over all scores that might have been drawn. Checked by `tests/review_coverage.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UsageError
from pipeline.evaluation.adverse import NO_LIMITS, Parts, interval_of, limits, share
from pipeline.evaluation.calibration import ENGINE_TOLERANCE, CalibratedOn
from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import Resampling, as_json, called_units, subject_codes
from pipeline.model.review import Band, ReviewRule, is_in

_POINTS = 200  # of the curve
_EXACT = 1e-9


def fewest_units(error: float) -> int:
    """Subjects of a class that a promise of so little error needs: with fewer, the one more weighs above it."""
    return math.ceil(1 / error - _EXACT) - 1


def review_rule(
    labels: Ints,
    values: Floats,
    subjects: Sequence[str | None] | None,
    error: float,
    *,
    on: CalibratedOn = "validation",
    called: str = "subjects",
    why_not: str = "",
) -> ReviewRule:
    """The cuts for labels 0/1 (N,) and calibrated probabilities of disease (N,) of images that were not learnt from.

    `called`: what the manifest calls the units. With too few of them a cut lies at the end, so that side is left to a
    person altogether. `why_not`: what else speaks against a promise.
    """
    codes, unit = subject_codes(subjects, len(labels))
    sick = labels == 1
    is_unit = np.array([unit == "image" or bool(subject) for subject in subjects or [None] * len(labels)], np.bool_)
    return ReviewRule(
        error=error,
        low=_cut(values[sick], codes[sick], error),
        high=1.0 - _cut(1.0 - values[~sick], codes[~sick], error),
        on=on,
        images=len(labels),
        negative_units=len(np.unique(codes[~sick & is_unit])),
        positive_units=len(np.unique(codes[sick & is_unit])),
        called=called_units(unit, called),
        why_not=why_not or why_not_promised(labels, subjects, error, called),
    )


def _cut(scores: Floats, codes: Ints, error: float) -> float:
    """The highest cut with at most `error` of the weight below it, one subject more being there; 0 where none is.

    It lies ENGINE_TOLERANCE (or half the gap to the next score below, if that is less) under the score it must keep.
    """
    weights = by_subject(codes)
    allowed = error * (round(weights.sum()) + 1) - 1
    if allowed < -_EXACT:
        return 0.0
    order = np.argsort(scores, kind="stable")
    below = np.cumsum(weights[order]) - weights[order]  # of an image: the weight that sorts before it
    last = int(np.flatnonzero(below <= allowed + _EXACT)[-1])
    kept = scores[order][last]
    lower = scores[scores < kept]
    gap = kept - (lower.max() if len(lower) else 0.0)
    return float(max(0.0, kept - min(ENGINE_TOLERANCE, gap / 2)))


def by_subject(codes: Ints) -> Floats:
    """Weights (N,) by which each subject of codes (N,) counts 1."""
    _, numbers, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[numbers], np.float64)


def why_not_promised(labels: Ints, subjects: Sequence[str | None] | None, error: float, called: str) -> str:
    """What is missing for the promise, or nothing."""
    if called != "subjects":
        return f"nobody knows the subjects: {called} stand for them, and several may be of one patient"
    codes, unit = subject_codes(subjects, len(labels))
    if unit == "image":
        return "no subject is known, and images of one patient resemble each other"
    assert subjects is not None, "some are known"
    if unknown := sum(not subject for subject in subjects):
        return f"of {unknown:,} of the {len(labels):,} images the subject is not known, it may be one of the others"
    counts = [len(np.unique(codes[labels == side])) for side in (0, 1)]
    needed = fewest_units(error)
    if min(counts) >= needed:
        return ""
    return (
        f"{counts[0]} {called} have negative images and {counts[1]} positive ones, {needed} of each are needed for "
        f"{error:g}"
    )


def refuse_unpromised(
    labels: Ints, subjects: Sequence[str | None] | None, error: float, called: str, *, more: str = ""
) -> None:
    """Raise UsageError where the images cannot hold the error for new subjects; `more`: what else may be done.

    A band without a promise would be a margin that looks like one.
    """
    missing = why_not_promised(labels, subjects, error, called)
    if not missing:
        return
    codes, _ = subject_codes(subjects, len(labels))
    fewest = min(len(np.unique(codes[labels == side])) for side in (0, 1))
    least = math.ceil(1000 / (fewest + 1)) / 1000
    can = least < 0.5 and not why_not_promised(labels, subjects, least, called)
    advice = f"these can hold {least:g} or more" if can else "these can hold none"
    raise UsageError(f"--review-error {error:g}: {missing}; {advice}{more}, or leave it out")


def judge_review(
    labels: Ints,
    scores: Floats,
    subjects: Sequence[str | None] | None,
    threshold: float,
    band: Band | None,
    rule: ReviewRule | None,
    resampling: Resampling,
) -> dict[str, Any] | None:
    """What the band leaves to a person and what it lets pass, with intervals; None without band and promise.

    `share`: of images left to a person. `missed`, `alarmed`: of the truly positive (negative) images those called
    negative (positive) without a person, each subject counting alike: what is promised. `decided_wrong`: of the images
    that are decided without a person; `all_wrong`: of all, were none left to one.
    """
    if band is None and rule is None:
        return None
    codes, unit = subject_codes(subjects, len(labels))
    review = in_band(band, scores, is_ruled=rule is not None)
    called, sick = scores >= threshold, labels == 1
    wrong, ones = called != sick, np.ones(len(labels))
    weights = {side: np.where(sick == side, 1.0, 0.0) for side in (False, True)}
    for side, weight in weights.items():
        weight[sick == side] = by_subject(codes[sick == side])
    sums = {
        "share": (review, ones),
        "missed": (weights[True] * (wrong & ~review), weights[True]),
        "alarmed": (weights[False] * (wrong & ~review), weights[False]),
        "decided_wrong": (wrong & ~review, ~review),
        "all_wrong": (wrong, ones),
    }
    parts: Parts = {name: share(codes, top, bottom) for name, (top, bottom) in sums.items()}
    found = limits(parts, int(codes.max()) + 1, resampling)
    values = {name: top.sum() / bottom.sum() if bottom.any() else math.nan for name, (top, bottom) in sums.items()}
    return {
        "low": None if band is None else band[0],
        "high": None if band is None else band[1],
        "images": int(review.sum()),
        **{name: as_json(interval_of(float(values[name]), found.get(name, NO_LIMITS), unit)) for name in sums},
        "promise": None if rule is None else rule.model_dump() | {"told": str(rule)},
    }


def in_band(band: Band | None, scores: Floats, *, is_ruled: bool = True) -> NDArray[np.bool_]:
    """Whether each score (N,) is left to a person, as `is_in` says."""
    return np.array([is_in(band, score, is_ruled=is_ruled) for score in scores.tolist()], np.bool_)


def trade_off(
    labels: Ints, scores: Floats, subjects: Sequence[str | None] | None, threshold: float
) -> dict[str, list[float]] | None:
    """Risk over coverage (El-Yaniv & Wiener 2010), each error by its side; None where a class is missing.

    Where the images nearest to the threshold are left to a person, by the way from it to certainty: their share
    `reviewed`, and `missed` and `alarmed` as in `judge_review` of what is still decided.
    """
    sick = labels == 1
    if not 0 < sick.sum() < len(sick):
        return None
    codes, _ = subject_codes(subjects, len(labels))
    tiny = np.finfo(np.float64).tiny
    called = scores >= threshold
    certain = np.where(
        called, (scores - threshold) / max(1 - threshold, tiny), (threshold - scores) / max(threshold, tiny)
    )
    order = np.argsort(certain, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(certain[order]) > 0, True]) + 1  # what lies alike goes together
    counts = np.r_[0, ends]
    kept = counts[np.unique(np.linspace(0, len(counts) - 1, min(len(counts), _POINTS)).round().astype(int))]
    found = {"reviewed": (kept / len(labels)).tolist()}
    for name, side in (("missed", sick), ("alarmed", ~sick)):
        wrong = np.zeros(len(labels))
        wrong[side] = by_subject(codes[side]) * (called != sick)[side]
        left = wrong.sum() - np.r_[0, np.cumsum(wrong[order])][kept]
        found[name] = (left.clip(0) / len(np.unique(codes[side]))).tolist()
    return found
